"""Decoding and prefill of SmolLM2-135M beside its peers, in one run, and how far from this machine's limit.

transformers in fp32 and bf16, llama.cpp on the same GGUF file when llama-cpp-python is installed, hasten unchanged in
fp32, hasten with the file's own codes and formats as llama.cpp has them (int8 activations, keys and values in fp16),
the same with keys and values in fp32, and with a key-value method that costs little quality: int8 keys and values.
`--tuned tuned.json` adds what `hasten tune` left. Everybody runs in turn, several rounds, and the best of each counts,
so that a machine that is busy for a while bends nobody's figure. The last rows are the rate at which this machine could
stream weights and cache from memory.

    python benchmarks/decode.py [--json] [--threads 2] [--prompt 16,512,4096] [--new-tokens 64]
        [--tuned tuned.json [--model FILE]]
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable

import torch

from hasten.data import assets
from hasten.data.text import default_text
from hasten.hardware import probe
from hasten.kernels.packed_linear import fast_bf16
from hasten.models import load_network, load_packed
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.quality import perplexity
from hasten.tuning.tune import load
from rows import Row, compared, emit, takes_required, told_missing

MODEL = "smollm2-135m-instruct"
PEERS = ("transformers-fp32", "transformers-bf16", "llama.cpp")
PACKED = ("hasten", "hasten fp32 cache", "hasten int8 cache")
HOW_TO_ADD = dict.fromkeys(PEERS, "it gave no rate")
"""Why a peer is missing, and what helps."""

Run = Callable[[], tuple[float, float]]


class Marks:
    """transformers' streamer that notes when each token came; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None: ...


def transformers_run(network: torch.nn.Module, ids: torch.Tensor, new: int) -> tuple[float, float]:
    """(prefill, decode) seconds of ``generate``, once: to its first token, and from there on."""
    mask, marks = torch.ones_like(ids), Marks()
    begin = time.perf_counter()
    with torch.inference_mode():
        network.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new + 1,
            min_new_tokens=new + 1,
            do_sample=False,
            streamer=marks,
        )
    return marks.times[1] - begin, marks.times[-1] - marks.times[1]


def hasten_run(model: LanguageModel, ids: torch.Tensor, new: int) -> tuple[float, float]:
    marks: list[float] = []
    begin = time.perf_counter()
    model.generate(ids, max_new_tokens=new + 1, eos_token_id=None, do_sample=False, prefilled=marks.append)
    return marks[0] - begin, time.perf_counter() - marks[0]


def llama_runner(path: str, ids: list[int], new: int, threads: int) -> Run | None:
    try:
        import llama_cpp
    except ImportError as error:
        # Perhaps a module that it needs in turn: the last line of the run says so.
        HOW_TO_ADD["llama.cpp"] = f"pip install 'hasten[bench]' adds it ({error})"
        return None
    model = llama_cpp.Llama(path, n_ctx=len(ids) + new + 8, n_threads=threads, n_threads_batch=threads, verbose=False)

    def run() -> tuple[float, float]:
        model.reset()
        begin = time.perf_counter()
        model.eval(ids)
        middle = time.perf_counter()
        token = model.sample(temp=0.0)
        for _ in range(new):
            model.eval([token])
            token = model.sample(temp=0.0)
        return middle - begin, time.perf_counter() - middle

    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", default="16,512,4096", help="lengths of prompts, with commas")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    takes_required(parser, PEERS)
    parser.add_argument("--tuned", help="a tuned.json to show as hasten tuned")
    parser.add_argument("--model", help="where the model of the tuned.json is now")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = assets.get(MODEL, lambda message: print(message, file=sys.stderr))
    try:
        prompts = [int(p) for p in str(arguments.prompt).split(",")]
    except ValueError:
        sys.exit(f"--prompt takes lengths with commas, such as 16,512, not {arguments.prompt!r}")
    loaded = load_network(MODEL)
    half = load_network(MODEL).network.to(torch.bfloat16)
    begin = time.perf_counter()
    packed = load_packed(MODEL, bf16=fast_bf16(), int8=True)
    loading = time.perf_counter() - begin
    tokens = loaded.tokenizer(default_text()[:60000], add_special_tokens=False, verbose=False)["input_ids"]
    models = {
        "hasten fp32": LanguageModel(loaded.network),
        "hasten": LanguageModel(packed.network, cache=CacheSpec("fp16")),
        "hasten fp32 cache": LanguageModel(packed.network),
        "hasten int8 cache": LanguageModel(packed.network, cache=CacheSpec("int8")),
    }
    if arguments.tuned:
        models["hasten tuned"] = load(arguments.tuned, model=arguments.model)
    rows = [Row("loading the file's codes", "hasten", loading, "s")]
    weights = models["hasten"].weight_bytes
    rows.append(compared("weights in memory", "hasten", weights, "B", "the file", path.stat().st_size))
    for prompt in prompts:
        rows += measured(arguments, prompt, tokens, str(path), loaded.network, half, models)
    for name in PACKED:
        print(f"measuring quality of {name}", file=sys.stderr)
        context = min(max(prompts), 3840)
        seen = perplexity(models[name], tokens, context=context, scored=128, segments=4)
        case = f"perplexity after {context} tokens"
        plain = next((r.value for r in rows if r.case == case), None)
        rows.append(
            Row(case, name, seen.value, "1")
            if plain is None
            else compared(case, name, seen.value, "1", PACKED[0], plain, less_is_better=True)
        )
    emit(rows, arguments.json)
    return told_missing(rows, HOW_TO_ADD, arguments.require)


@functools.cache
def main_memory_bandwidth() -> float:
    return float(probe(refresh=True).main_memory.bandwidth)


def measured(
    arguments: argparse.Namespace,
    prompt: int,
    tokens: list[int],
    path: str,
    network: torch.nn.Module,
    half: torch.nn.Module,
    models: dict[str, LanguageModel],
) -> list[Row]:
    """Prefill and decode of one prompt's length, by everybody."""
    ids, new = torch.tensor([tokens[:prompt]]), arguments.new_tokens
    case = f"prompt {ids.shape[1]}, {new} new tokens, {arguments.threads} threads"
    subjects: dict[str, Run | None] = {
        "transformers-fp32": functools.partial(transformers_run, network, ids, new),
        "transformers-bf16": functools.partial(transformers_run, half, ids, new),
        "llama.cpp": llama_runner(path, tokens[:prompt], new, arguments.threads),
        **{name: functools.partial(hasten_run, model, ids, new) for name, model in models.items()},
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name, run in subjects.items() if run}
    for model in models.values():
        model.generate(ids[:, :16], max_new_tokens=4, eos_token_id=None, do_sample=False)  # a warm-up
    for number in range(arguments.runs):
        for name, run in subjects.items():
            if run is not None:
                print(f"round {number + 1} of {arguments.runs}: {name}, {case}", file=sys.stderr)
                times[name].append(run())
    seen = {n: (ids.shape[1] / min(t[0] for t in s), new / min(t[1] for t in s)) for n, s in times.items()}
    rows = []
    for index, phase in enumerate(("prefill", "decode")):
        for name, rates in seen.items():
            rows += [
                compared(f"{phase}, {case}", name, rates[index], "tokens/s", peer, seen[peer][index])
                for peer in PEERS
                if name.startswith("hasten") and peer in seen
            ]
            if not name.startswith("hasten"):
                rows.append(Row(f"{phase}, {case}", name, rates[index], "tokens/s"))
    # Probed now: a kept figure may be of a busier hour.
    bandwidth = main_memory_bandwidth()
    for name in PACKED:
        model = models[name]
        # What a step in the middle reads: all weights, and the cache up to there.
        cache = model.new_cache(1, ids.shape[1] + new // 2)
        limit = bandwidth / (model.weight_bytes + cache.nbytes)
        rows.append(Row(f"decode, {case}", f"limit of {name}", limit, "tokens/s"))
        rows.append(compared(f"decode, {case}", name, seen[name][1], "tokens/s", f"limit of {name}", limit))
    return rows


if __name__ == "__main__":
    sys.exit(main())
