"""Decoding and prefill of SmolLM2-135M beside its peers, in one run, and how far from this machine's limit.

transformers in fp32 and bf16, llama.cpp on the same GGUF file when llama-cpp-python is installed, hasten unchanged, and
hasten as `hasten tune` left it (`--tuned tuned.json`; without it: int4 weights and an int8 head, which are the
file's own precision). The last row is the rate at which this machine could stream the tuned weights from memory.

    python benchmarks/decode.py [--json] [--threads 2] [--prompt 512] [--new-tokens 64] [--tuned tuned.json]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

from hasten.data import assets
from hasten.data.text import default_text
from hasten.hardware import probe
from hasten.kernels.packed_linear import fast_bf16
from hasten.methods import WeightOnly, apply_all
from hasten.models import load_network
from hasten.runtime import LanguageModel
from hasten.search.tune import load
from rows import Row, emit

MODEL = "smollm2-135m-instruct"


def transformers_rates(network: torch.nn.Module, ids: torch.Tensor, new: int, runs: int) -> tuple[float, float]:
    """(prefill, decode) tokens/s of ``generate``: the best of several runs, the peer's favour."""
    mask = torch.ones_like(ids)

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            network.generate(ids, attention_mask=mask, max_new_tokens=count, min_new_tokens=count, do_sample=False)
        return time.perf_counter() - begin

    seconds(2)
    first = min(seconds(1) for _ in range(runs))
    whole = min(seconds(new + 1) for _ in range(runs))
    return ids.shape[1] / first, new / (whole - first)


def hasten_rates(model: LanguageModel, ids: torch.Tensor, new: int, runs: int) -> tuple[float, float]:
    seen = model.measure(ids.shape[1], new, 1, runs, ids=ids)
    return ids.shape[1] / seen.phases["prefill"].low, new / seen.phases["decode"].low


def llama_rates(path: str, ids: list[int], new: int, runs: int, threads: int) -> tuple[float, float] | None:
    try:
        import llama_cpp
    except ImportError:
        print("llama.cpp is left out: pip install 'hasten[bench]' adds it", file=sys.stderr)
        return None
    model = llama_cpp.Llama(path, n_ctx=len(ids) + new + 8, n_threads=threads, n_threads_batch=threads, verbose=False)
    prefills, decodes = [], []
    for _ in range(runs + 1):
        model.reset()
        begin = time.perf_counter()
        model.eval(ids)
        prefills.append(time.perf_counter() - begin)
        token = model.sample(temp=0.0)
        begin = time.perf_counter()
        for _ in range(new):
            model.eval([token])
            token = model.sample(temp=0.0)
        decodes.append(time.perf_counter() - begin)
    return len(ids) / min(prefills[1:]), new / min(decodes[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--tuned", help="a tuned.json to show as hasten tuned")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = assets.get(MODEL, lambda message: print(message, file=sys.stderr))
    loaded = load_network(MODEL)
    tokens = loaded.tokenizer(default_text()[:20000], add_special_tokens=False)["input_ids"][: arguments.prompt]
    ids, new, runs = torch.tensor([tokens]), arguments.new_tokens, arguments.runs
    case = f"prompt {len(tokens)}, {new} new tokens, {arguments.threads} threads"

    seen: dict[str, tuple[float, float]] = {}

    def run(name: str, measure: Callable[[], tuple[float, float] | None]) -> None:
        print(f"measuring {name}", file=sys.stderr)
        rates = measure()
        if rates is not None:
            seen[name] = rates

    run("transformers-fp32", lambda: transformers_rates(loaded.network, ids, new, runs))
    half = load_network(MODEL).network.to(torch.bfloat16)
    run("transformers-bf16", lambda: transformers_rates(half, ids, new, runs))
    run("llama.cpp", lambda: llama_rates(str(path), tokens, new, runs, arguments.threads))
    plain = LanguageModel(loaded.network)
    run("hasten unchanged (fp32)", lambda: hasten_rates(plain, ids, new, runs))
    packed = apply_all(LanguageModel(load_network(MODEL).network), [WeightOnly(4, 8, bf16=fast_bf16())])
    run("hasten int4, head int8", lambda: hasten_rates(packed, ids, new, runs))
    if arguments.tuned:
        tuned = load(arguments.tuned)
        run("hasten tuned", lambda: hasten_rates(tuned, ids, new, runs))

    rows = []
    for index, phase in enumerate(("prefill", "decode")):
        for name, rates in seen.items():
            for peer in ("transformers-fp32", "transformers-bf16", "llama.cpp"):
                if name.startswith("hasten") and peer in seen:
                    ratio = rates[index] / seen[peer][index]
                    rows.append(Row(f"{phase}, {case}", name, rates[index], "tokens/s", peer, ratio))
            if not name.startswith("hasten"):
                rows.append(Row(f"{phase}, {case}", name, rates[index], "tokens/s"))
    device = probe()
    moved = packed.weight_bytes + packed.session(1, len(tokens) + new)[0].nbytes
    limit = float(device.main_memory.bandwidth) / moved
    ours = seen["hasten int4, head int8"][1]
    rows.append(Row(f"decode, {case}", "hasten int4, head int8", ours, "tokens/s", "limit", ours / limit))
    rows.append(Row(f"decode, {case}", "limit", limit, "tokens/s"))
    emit(rows, arguments.json)


if __name__ == "__main__":
    main()
