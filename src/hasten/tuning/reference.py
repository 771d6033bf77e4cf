"""What the unchanged model is measured beside: transformers' own generate, or llama.cpp on the same file."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from typing import Any

import torch

from hasten.cost.measuring import synchronize
from hasten.dtypes import name_of
from hasten.errors import HastenError
from hasten.tuning.outcome import Figures
from hasten.tuning.prepare import Deadline, Prepared
from hasten.tuning.settings import Reference, Reporter, Settings

# Part of the time that is left which transformers may take where nobody asked for it.
_SHARE = 0.2
_ADD_LLAMA = "llama.cpp is not installed: pip install 'hasten[bench]' adds it, or choose another --reference"


def check_reference(settings: Settings) -> None:
    """Raises HastenError where what was asked for cannot be measured, before minutes go into other things."""
    if settings.reference != "llama.cpp":
        return
    if importlib.util.find_spec("llama_cpp") is None:
        raise HastenError(_ADD_LLAMA)
    if settings.batch > 1:
        raise HastenError("llama.cpp is measured on one sequence: --batch 1, or choose another --reference")


def chosen(prepared: Prepared, prefill: float, decode: float, deadline: Deadline) -> tuple[Reference, str]:
    """What to measure beside the unchanged model, and a line for the report where that is not what one may expect.

    Args:
        prepared: with what was asked for.
        prefill, decode: seconds that the unchanged model took.
        deadline: of all measuring.
    """
    if (asked := prepared.settings.reference) is not None:
        return asked, ""
    # It reads the prompt thrice, and decodes in two to three times the seconds.
    seconds = 3 * (prefill + decode)
    if deadline.left is None or seconds <= _SHARE * deadline.left:
        return "transformers", ""
    return "none", (
        f"transformers was not measured beside it, which would take about {seconds:.0f} s of the budget: "
        "--reference transformers measures it all the same"
    )


def reference(
    prepared: Prepared, which: Reference, reporter: Reporter, deadline: Deadline
) -> tuple[Figures | None, str]:
    """Figures of what the unchanged model is compared with, and what it is called; None for ``none``.

    Raises:
        HastenError: llama.cpp is not there, or cannot read the model.
    """
    if which == "transformers":
        return transformers_figures(prepared, reporter, deadline), f"transformers generate, {_format(prepared)}"
    if which == "llama.cpp":
        return llama_figures(prepared, reporter, deadline), "llama.cpp on the same file"
    return None, ""


def _format(prepared: Prepared) -> str:
    return "weights as packed" if prepared.packed else name_of(prepared.base.dtype)


def transformers_figures(prepared: Prepared, reporter: Reporter, deadline: Deadline) -> Figures:
    """transformers' own generate, greedy: the better of two runs, or one where time is short."""
    reporter.stage(f"measuring transformers in {_format(prepared)}")
    s, base = prepared.settings, prepared.base
    ids = prepared.ids.to(base.device)
    mask = torch.ones_like(ids)

    def seconds(count: int) -> float:
        synchronize(base.device)
        begin = time.perf_counter()
        with torch.inference_mode():
            base.network.generate(
                ids, attention_mask=mask, max_new_tokens=count, eos_token_id=None, do_sample=False
            )  # fmt: skip
        synchronize(base.device)
        return time.perf_counter() - begin

    seconds(1)

    def run() -> tuple[float, float]:
        first = seconds(1)
        return first, seconds(s.new_tokens + 1) - first

    held = base.new_cache(s.batch, s.prompt + s.new_tokens + 1).nbytes
    return _better(prepared, run, float(base.weight_bytes + held), reporter, deadline)


def llama_figures(prepared: Prepared, reporter: Reporter, deadline: Deadline) -> Figures:
    """llama.cpp on the model's own file, greedy, with as many threads as torch has.

    Raises:
        HastenError: it is not installed, the model is no GGUF file, or llama.cpp does not read it.
    """
    reporter.stage("measuring llama.cpp")
    s, source = prepared.settings, prepared.loaded.source
    if not (source.endswith(".gguf") and os.path.isfile(source)):
        raise HastenError(f"llama.cpp reads GGUF files, not {source[:120]}: choose another --reference")
    try:
        import llama_cpp
    except ImportError:
        raise HastenError(_ADD_LLAMA) from None
    room, threads = s.prompt + s.new_tokens + 8, torch.get_num_threads()
    try:
        model: Any = llama_cpp.Llama(source, n_ctx=room, n_threads=threads, n_threads_batch=threads, verbose=False)
    except (ValueError, RuntimeError) as error:
        raise HastenError(f"llama.cpp cannot read {source[:120]} ({error}): choose another --reference") from None
    ids = prepared.ids[0].tolist()

    def run() -> tuple[float, float]:
        model.reset()
        begin = time.perf_counter()
        model.eval(ids)
        token = model.sample(temp=0.0)
        middle = time.perf_counter()
        for _ in range(s.new_tokens):
            model.eval([token])
            token = model.sample(temp=0.0)
        return middle - begin, time.perf_counter() - middle

    held = prepared.base.new_cache(1, room).nbytes / 2  # llama.cpp keeps fp16
    return _better(prepared, run, os.path.getsize(source) + held, reporter, deadline)


def _better(
    prepared: Prepared, run: Callable[[], tuple[float, float]], memory: float, reporter: Reporter, deadline: Deadline
) -> Figures:
    """The better of two runs; of one where a second would take more than a fifth of what is left."""
    s = prepared.settings
    prefill, decode = run()
    low = high = decode
    reporter.advance(1, 2)
    if deadline.left is None or prefill + decode <= _SHARE * deadline.left:
        again = run()
        prefill = min(prefill, again[0])
        low, high = min(low, again[1]), max(high, again[1])
    low = max(low, 1e-9)
    return Figures(
        prefill=prefill,
        decode=low,
        decode_low=low,
        decode_high=max(low, high),
        prefill_rate=s.batch * s.prompt / prefill,
        decode_rate=s.batch * s.new_tokens / low,
        memory=memory,
    )
