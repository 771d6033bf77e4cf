"""Checks of Kinetics: Rethinking Test-Time Scaling Laws."""

from __future__ import annotations

import functools
import itertools
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from hasten.cost.serving.recorded_trials import Record
    from hasten.cost.serving.scaling import Point


_NEEDS = 100.0
# Steps end before the cycle closes: from there on an answer could be copied from a few tokens back.
_SYMBOLS, _FILLER, _STEPS, _LAYERS, _BLOCK = 16, 64, 15, 3, 2
_PROMPT = 2 * _SYMBOLS + _FILLER + 1
_ASKED = (4, 8, 12, 15)
_WIDTHS, _BUDGETS = (32, 64, 96), (16, 32, 64)
_BATCH, _TRAINING = 64, 800


@check("K1")
def _dominant(experiment: Experiment) -> Seen:
    from hasten.cost.serving.scaling import QWEN3, dense

    shares = []
    for model in QWEN3:
        cost = dense(model, 200, 16384)
        shares.append(1 - 2 * model.active_parameters * 16384 / cost.equivalent())
    value = (
        f"attention is {min(shares):.1%} to {max(shares):.1%} of the equivalent FLOPs of six Qwen3 sizes at 16K tokens"
    )
    return Seen(value, min(shares) >= 0.95)


def _network(width: int) -> Any:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=3 * _SYMBOLS, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=_LAYERS,
        num_attention_heads=width // 16, num_key_value_heads=width // 32, head_dim=16, max_position_embeddings=128,
        tie_word_embeddings=False,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def _trained(width: int, steps: int, seed: int) -> dict[str, Any]:
    """Weights of a model that has learned to follow a permutation given in its prompt."""
    import torch

    from hasten.tasks.recall import iterated_map
    from hasten.train.fitting import fit

    torch.manual_seed(seed)
    network = _network(width)
    generator = torch.Generator().manual_seed(seed + 1)

    def loss(step: int) -> torch.Tensor:
        # From few pairs to all, then scattered.
        share = step / steps
        used = 3 if share < 0.2 else 5 if share < 0.4 else _SYMBOLS
        ids, written = iterated_map(
            _BATCH,
            symbols=_SYMBOLS,
            longest=used - 1,
            used=used,
            filler=_FILLER if share >= 0.5 else 0,
            generator=generator,
        )
        logits, wanted = network(ids[:, :-1]).logits, written[:, 1:]
        return torch.nn.functional.cross_entropy(logits[wanted], ids[:, 1:][wanted])

    fit(network, loss, steps=steps, peak=0.32 / width)
    return dict(network.state_dict())


def _sampled(
    weights: dict[str, Any], width: int, methods: list[tuple[str, int]], questions: int, trials: int, seed: int
) -> list[list[list[int]]]:
    """For each method and question, how many steps each trial got right before the first error: really generated."""
    import torch

    from hasten.runtime import CacheSpec, LanguageModel
    from hasten.tasks.recall import iterated_map

    network = _network(width)
    network.load_state_dict(weights)
    ids, _ = iterated_map(
        questions,
        symbols=_SYMBOLS,
        longest=_STEPS,
        filler=_FILLER,
        generator=torch.Generator().manual_seed(seed + 7),
    )
    found = []
    for method, budget in methods:
        model = LanguageModel(network, cache=CacheSpec(policy=_policy(method, budget)))
        torch.manual_seed(seed)
        answers = ids.repeat_interleave(trials, 0)
        cache = model.new_cache(len(answers), _PROMPT + _STEPS)
        with torch.inference_mode():
            logits = model.prefill(answers[:, :_PROMPT], cache)
            right = torch.ones(len(answers), dtype=torch.bool)
            lengths = torch.zeros(len(answers), dtype=torch.int64)
            for step in range(_STEPS):
                token = torch.multinomial(torch.softmax(logits, -1), 1)
                right &= token[:, 0] == answers[:, _PROMPT + step]
                lengths += right
                logits = model(token, past_key_values=cache).logits[:, -1].float()
        found.append(lengths.view(questions, trials).tolist())
    return found


def _policy(method: str, budget: int) -> Any:
    from hasten.runtime.policies import BlockTopKPolicy, LocalWindow, TopK

    if method == "dense":
        return None
    if method == "top-k":
        return TopK(budget - 2 * _BLOCK - 1, local=2 * _BLOCK, sinks=1)
    if method == "block top-k":
        return BlockTopKPolicy(budget // _BLOCK - 3, local=2, block=_BLOCK)
    return LocalWindow(budget, sinks=1)


_METHODS = [("dense", 0), *itertools.product(("top-k", "block top-k", "local"), _BUDGETS)]


@functools.cache
def _family(budget: float, seed: int) -> list[Record]:
    """Three models, their answers recorded once under every kind of attention."""
    from hasten.cost.serving.recorded_trials import Answer, Record, RecordedQuestion
    from hasten.processes import run_arms
    from hasten.workload.decoder import DecoderSizes

    enough = budget >= _NEEDS
    steps = 3000 if budget >= 1500 else _TRAINING if enough else 5
    questions, trials = (64, 16) if enough else (4, 2)
    weights = run_arms(_trained, [(w, steps, seed) for w in reversed(_WIDTHS)])[::-1]
    methods = _METHODS if enough else [m for m in _METHODS if m[1] in (0, _BUDGETS[0])]
    arms = [(w, width, methods, questions, trials, seed) for w, width in zip(weights, _WIDTHS, strict=True)]
    family = []
    for (state, width, *_), found in zip(arms, run_arms(_sampled, arms), strict=True):
        parameters = sum(t.numel() for t in state.values())
        decoder = DecoderSizes(
            str(width), layers=_LAYERS, hidden=width, heads=width // 16, kv_heads=width // 32, inner=2 * width,
            vocabulary=3 * _SYMBOLS, parameters=parameters,
        )  # fmt: skip
        for (method, keys), lengths in zip(methods, found, strict=True):
            # A prompt asked for so many steps is a question; an answer has that many tokens.
            asked = tuple(
                RecordedQuestion(_PROMPT, tuple(Answer(steps, n >= steps) for n in row))
                for steps in _ASKED
                for row in lengths
            )
            # The policies leave the first layer dense, and it is charged so.
            dense = 0 if method == "dense" else 1
            family.append(Record(decoder, method, keys, asked, _BLOCK, dense))
    return family


def record(path: str, seconds: float = 300.0, seed: int = 0, questions: int = 64) -> None:
    """Trains the three models and writes what they answered, as `hasten.cost.serving.recorded_trials.read_records` reads it.

    Args:
        path: the file.
        seconds, seed: as for the check; it and this share what they train.
        questions: of each kind of attention that are written.
    """
    from hasten.cost.serving.recorded_trials import write_records

    write_records(
        path,
        [replace(r, questions=r.questions[:: max(1, len(r.questions) // questions)]) for r in _family(seconds, seed)],
    )


def _points(family: list[Record], method: str, intensity: float) -> list[Point]:
    """Accuracy and mean cost over models, budgets, trials and caps on tokens."""
    from hasten.cost.serving.recorded_trials import points

    return points([r for r in family if r.method == method], _ASKED, intensity)


@functools.cache
def _this_intensity() -> float:
    """FLOPs that this machine does in the time of a byte: a matrix product's rate over a large copy's."""
    import torch

    from hasten.cost.measuring import least_seconds

    a, large = torch.randn(1024, 1024), torch.empty(1 << 26, dtype=torch.uint8)
    target = torch.empty_like(large)
    flops = 2 * 1024**3 / least_seconds(lambda: a @ a, 5)
    return flops / (2 * large.nbytes / least_seconds(lambda: target.copy_(large), 5))


@dataclass(frozen=True)
class _Compared:
    """Block top-k beside dense: accuracy gaps at the dense frontier's costs, cost at its best accuracy, local's best."""

    most: float
    least: float
    ratio: float
    best: float
    local: float


def _compared(family: list[Record], intensity: float) -> _Compared:
    from hasten.cost.serving.scaling import best_within, envelope

    fronts = {m: envelope(_points(family, m, intensity)) for m in ("dense", "block top-k", "local")}
    top = fronts["dense"][-1]
    needed = [p.cost for p in fronts["block top-k"] if p.accuracy >= top.accuracy]
    gaps = []
    for point in fronts["dense"]:
        other = best_within(fronts["block top-k"], point.cost)
        gaps.append((other.accuracy if other else 0.0) - point.accuracy)
    ratio = needed[0] / top.cost if needed else float("inf")
    return _Compared(max(gaps), min(gaps), ratio, top.accuracy, fronts["local"][-1].accuracy)


@check("K3", needs=_NEEDS)
def _sparse_against_dense(experiment: Experiment) -> Seen:
    from hasten.cost.serving.scaling import B200_INTENSITY

    family = _family(experiment.paper_budget, experiment.seed)
    here = _this_intensity()
    seen = {name: _compared(family, i) for name, i in (("a B200", B200_INTENSITY), (f"{here:.0f} FLOP/B", here))}
    parts = [
        f"at {name} block top-k is {c.least:+.0%} to {c.most:+.0%} over dense at equal cost and reaches its best"
        f" ({c.best:.0%}) at {c.ratio:.2f}x the cost"
        for name, c in seen.items()
    ]
    first = seen["a B200"]
    value = f"following a permutation, three models, 16 trials: {'; '.join(parts)}; a local window at most {first.local:.0%}"
    holds = first.least >= 0 and first.ratio <= 0.7 and first.local < 0.5 * first.best
    return experiment.judge(value, holds, first.most > 0 and first.ratio < 1)


@check("K4", needs=_NEEDS)
def _by_the_law(experiment: Experiment) -> Seen:
    from hasten.cost.serving.scaling import B200_INTENSITY, best_within, envelope

    family = _family(experiment.paper_budget, experiment.seed)
    charged = envelope(_points(family, "block top-k", B200_INTENSITY))
    # Chosen by FLOPs alone among dense settings, then charged for the memory that it moves.
    settings = ("model", "trials", "longest")
    full = {tuple(p.settings[k] for k in settings): p.cost for p in _points(family, "dense", B200_INTENSITY)}
    by_flops = envelope(_points(family, "dense", 0.0))
    dense = envelope(_points(family, "dense", B200_INTENSITY))
    gains, sizes = [], []
    for point in by_flops:
        price = full[tuple(point.settings[k] for k in settings)]
        better = [p.cost for p in charged if p.accuracy >= point.accuracy]
        if better:
            gains.append(price / better[0])
        rival = best_within(dense, price)
        if rival is not None:
            sizes.append((int(point.settings["model"]), int(rival.settings["model"])))
    smaller, no_larger = sum(a < b for a, b in sizes), sum(a <= b for a, b in sizes)
    value = (
        f"equal accuracy for up to {max(gains, default=0):.1f}x less than the choice by FLOPs alone, whose model is no larger"
        f" in {no_larger} and smaller in {smaller} of {len(sizes)} cases"
    )
    law = no_larger == len(sizes) and smaller > 0
    return experiment.judge(value, max(gains, default=0) >= 2 and law, max(gains, default=0) > 1)


@check("K5", needs=_NEEDS)
def _exponents(experiment: Experiment) -> Seen:
    from hasten.cost.measuring import log_slope
    from hasten.cost.serving.scaling import B200_INTENSITY, envelope

    front = [
        p
        for p in envelope(_points(_family(experiment.paper_budget, experiment.seed), "block top-k", B200_INTENSITY))
        if p.accuracy > 0
    ]
    if len(front) < 3:
        return Seen("fewer than three points on the frontier", False, None)
    costs = [p.cost for p in front]
    budget = log_slope(costs, [p.settings["budget"] for p in front])
    tokens = log_slope(costs, [p.settings["tokens"] for p in front])
    value = (
        f"along the frontier of {len(front)} points a doubled cost raises the budget {2**budget:.2f}x and the generated"
        f" tokens {2**tokens:.2f}x (published 1.18x and 1.74x)"
    )
    return experiment.judge(value, 0 <= budget < tokens, budget < tokens)


@check("K6", needs=30)
def _throughput(experiment: Experiment) -> Seen:
    import torch
    import transformers

    from hasten.cost.serving.scaling import block_top_k, dense
    from hasten.runtime import CacheSpec, LanguageModel
    from hasten.runtime.policies import BlockTopKPolicy
    from hasten.workload.decoder import DecoderSizes

    # SmolLM2-135M's attention; two layers, of which the first reads everything, so the difference is of one.
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=576, intermediate_size=64, num_hidden_layers=2, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=20000,
    )  # fmt: skip
    torch.manual_seed(experiment.seed)
    network = transformers.LlamaForCausalLM(config).eval()
    lengths, batch, steps = ((1024, 4096, 16384), 8, 12) if experiment.paper_budget >= 30 else ((1024, 2048), 2, 2)
    shape = replace(DecoderSizes.of(config), layers=1, parameters=0)
    parts, ratios = [], []
    for length in lengths:
        times = {}
        for name, policy in (("dense", None), ("sparse", BlockTopKPolicy(16, 2))):
            model = LanguageModel(network, cache=CacheSpec("bf16", policy=policy))
            cache, step = model.session(batch, length + steps + 2)
            for layer in cache.layers:
                for tensor in layer.tensors.values():
                    tensor.normal_()
            cache.lengths[:] = [length] * batch
            cache.quantized[:] = [length // 32] * batch
            best = float("inf")
            for at in range(steps + 1):
                positions = [length + at] * batch
                begun = time.perf_counter()
                if step is None:
                    return Seen("the compiled kernels are not installed", False)
                step([1] * batch, list(range(batch)), positions)
                cache.advance([1] * batch)
                best = min(best, time.perf_counter() - begun)
            times[name] = best
        # Both have the dense first layer; take half of the dense time, one layer, off each.
        ratio = (times["dense"] / 2) / max(1e-9, times["sparse"] - times["dense"] / 2)
        model_ratio = dense(shape, length, 1).bytes / block_top_k(shape, length, 1, 19 * 32, block=32).bytes
        ratios.append(ratio)
        parts.append(f"{ratio:.1f}x at {length} (bytes: {model_ratio:.1f}x)")
    value = "one layer of SmolLM2-135M's shape, batch 8, 19 blocks of 32: " + ", ".join(parts)
    return experiment.judge(value, ratios[1] > 1 and ratios == sorted(ratios), ratios[-1] > 1)
