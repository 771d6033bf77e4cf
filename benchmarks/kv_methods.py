"""SnapKV and StreamingLLM here and in kvpress, at equal compression of the same prompts of SmolLM2-135M, in one run.

Quality is the perplexity of the 128 tokens that follow a compressed prompt, and how many numbers hidden in a prompt
are found again; speed is decoding after it. kvpress runs transformers' own loop in fp32, hasten the same fp32 weights
in its own.

    pip install kvpress   # brings datasets and pandas; the pinned transformers may be newer than it asks for
    python benchmarks/kv_methods.py [--json] [--require kvpress] [--prompt 2048] [--keep 512]
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

import torch

from hasten.data.text import default_text
from hasten.models import load_network
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.policies import KeepEnds, SnapKVPolicy
from hasten.tasks.questions import hidden_number
from rows import Row, compared, emit, takes_required, told_missing

PEERS = {"kvpress": "pip install kvpress"}
"""What may be missing, and what helps."""


def told_positions(network: Any) -> None:
    """kvpress reads ``cache_position``, which newer transformers no longer pass to a layer's attention."""

    def tell(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        start = kwargs["past_key_values"].get_seq_length(module.layer_idx)
        count = (kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]).shape[1]
        return args, {**kwargs, "cache_position": torch.arange(start, start + count)}

    for layer in network.model.layers:
        layer.self_attn.register_forward_pre_hook(tell, with_kwargs=True)


def by_kvpress(network: Any, press: Any, ids: torch.Tensor, following: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(logits for each of ``following``, seconds of reading it token by token) after a compressed prompt."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        with press(network):
            logits = [network(ids, past_key_values=cache, logits_to_keep=1).logits[0]]
        begin = time.perf_counter()
        for i in range(following.shape[1] - 1):
            # The positions go on behind the whole prompt, whatever was dropped.
            where = torch.tensor([[ids.shape[1] + i]])
            logits.append(network(following[:, i : i + 1], past_key_values=cache, position_ids=where).logits[0])
        return torch.cat(logits), time.perf_counter() - begin


def by_hasten(network: Any, policy: Any, ids: torch.Tensor, following: torch.Tensor) -> tuple[torch.Tensor, float]:
    model = LanguageModel(network, cache=CacheSpec(policy=policy))
    cache, step = model.session(1, ids.shape[1] + following.shape[1] + 1)
    assert step is not None, model.why_not_compiled
    with torch.inference_mode():
        logits = [model.prefill(ids, cache)]
        begin = time.perf_counter()
        for i in range(following.shape[1] - 1):
            place = cache.lengths[0]
            logits.append(step([int(following[0, i])], [0], [place], turns=[place + cache.dropped[0]]).clone())
            cache.advance([1])
        return torch.cat(logits), time.perf_counter() - begin


def presses(ratio: float) -> dict[str, Any]:
    """kvpress's own by name; empty where it cannot be imported, and `PEERS` says why."""
    try:
        from kvpress import SnapKVPress, StreamingLLMPress
    except ImportError as error:
        # Perhaps a module that it needs in turn.
        PEERS["kvpress"] = f"pip install kvpress adds it ({error})"
        return {}
    return {
        "SnapKV": SnapKVPress(ratio, window_size=16, kernel_size=7),
        "StreamingLLM": StreamingLLMPress(ratio, n_sink=4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=2048)
    parser.add_argument("--keep", type=int, default=512)
    parser.add_argument("--texts", type=int, default=4)
    takes_required(parser, PEERS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    length, keep = arguments.prompt, arguments.keep
    theirs = presses(1 - keep / length)
    loaded = load_network()
    network, tokenizer = loaded.network, loaded.tokenizer
    theirs_network = load_network().network if theirs else network
    if theirs:
        told_positions(theirs_network)
    tokens = tokenizer(default_text()[:120000], add_special_tokens=False, verbose=False)["input_ids"]
    arms: dict[str, Any] = {
        "SnapKV": SnapKVPolicy(keep, window=16, kernel=7, pooling="mean"),
        "StreamingLLM": KeepEnds(keep, sinks=4),
    }
    rows = []
    for name, policy in arms.items():
        seen: dict[str, list[float]] = {}
        press = theirs.get(name)
        for who in ("hasten",) if press is None else ("hasten", "kvpress"):
            print(f"{name} by {who}", file=sys.stderr)
            losses, found, seconds, made = [], 0, 0.0, 0
            for text in range(arguments.texts):
                begin = text * (len(tokens) - length - 200) // max(1, arguments.texts - 1)
                ids = torch.tensor([tokens[begin : begin + length]])
                after = torch.tensor([tokens[begin + length : begin + length + 128]])
                run = (lambda i, a, p=policy: by_hasten(network, p, i, a)) if who == "hasten" else (
                    lambda i, a, p=press: by_kvpress(theirs_network, p, i, a)
                )  # fmt: skip
                logits, spent = run(ids, after)
                losses.append(torch.nn.functional.cross_entropy(logits.float(), after[0]))
                seconds, made = seconds + spent, made + after.shape[1] - 1
                sentence, question, answer = (
                    tokenizer(t, add_special_tokens=False)["input_ids"] for t in hidden_number(text)
                )
                room = length - len(sentence) - len(question)
                cut = room * (text + 1) // (arguments.texts + 1)
                hidden = [*tokens[:cut], *sentence, *tokens[cut:room], *question]
                logits, _ = run(torch.tensor([hidden]), torch.tensor([answer]))
                found += bool((logits.argmax(-1) == torch.tensor(answer)).all())
            seen[who] = [float(torch.stack(losses).mean().exp()), found / arguments.texts, made / seconds]
        case = f"{name}, {keep} of {length} tokens kept"
        for i, (what, unit) in enumerate((("perplexity", "1"), ("needles found", "1"), ("decode", "tokens/s"))):
            told, ours = f"{case}: {what}", seen["hasten"][i]
            if "kvpress" not in seen:
                rows.append(Row(told, "hasten", ours, unit))
                continue
            peers = seen["kvpress"][i]
            less = what == "perplexity"
            rows.append(compared(told, "hasten", ours, unit, "kvpress", peers, less_is_better=less))
            rows.append(Row(told, "kvpress", peers, unit))
    emit(rows, arguments.json)
    return told_missing(rows, PEERS, arguments.require)


if __name__ == "__main__":
    sys.exit(main())
