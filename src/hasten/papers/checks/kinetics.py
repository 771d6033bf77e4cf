"""Checks of Kinetics: Rethinking Test-Time Scaling Laws."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded

if TYPE_CHECKING:
    from hasten.cost.serving.recorded_trials import Record
    from hasten.cost.serving.scaling import Point


@check("K1")
def dominant(experiment: Experiment) -> Seen:
    """What attention costs of long answers, by the published sizes."""
    from hasten.cost.serving.scaling import QWEN3, dense

    shares = [1 - 2 * model.active_parameters * 16384 / dense(model, 200, 16384).equivalent() for model in QWEN3]
    value = (
        f"attention is {min(shares):.1%} to {max(shares):.1%} of the equivalent FLOPs of six Qwen3 sizes at 16K tokens"
    )
    return experiment.judge(value, min(shares) >= 0.95)


@shared(weight=250)
def family(experiment: Experiment) -> list[Record]:
    """Three models, their answers recorded once under every kind of attention."""
    from hasten.runtime.recorded_answers import BUDGETS, METHODS, WIDTHS, answers, train_follower

    experiment.require(300)
    steps, seed = experiment.at(quick=2, normal=experiment.steps(800, most=3000)), experiment.seed
    batch, questions, trials = experiment.at(quick=(4, 2, 1), normal=(64, 64, 16))
    methods = [m for m in METHODS if not experiment.quick or m[1] in (0, BUDGETS[0])]
    # The slowest first.
    trained = experiment.arms(train_follower, {str(w): (w, steps, seed, batch) for w in reversed(WIDTHS)})
    weights, _ = succeeded(trained, needed=trained)
    arms = {str(w): (weights[str(w)], w, methods, questions, trials, seed) for w in WIDTHS}
    found, _ = succeeded(experiment.arms(answers, arms), needed=arms)
    return [record for records in found.values() for record in records]


def spent(records: list[Record], method: str, intensity: float) -> list[Point]:
    """Accuracy and mean cost over models, budgets, trials and caps on tokens."""
    from hasten.cost.serving.recorded_trials import points
    from hasten.runtime.recorded_answers import ASKED

    return points([r for r in records if r.method == method], ASKED, intensity)


@dataclass(frozen=True)
class Compared:
    """Block top-k beside dense: accuracy gaps at the dense frontier's costs, cost at its best accuracy, local's best."""

    most: float
    least: float
    ratio: float
    best: float
    local: float


def compared(records: list[Record], intensity: float) -> Compared:
    """On hardware of an intensity."""
    from hasten.cost.serving.scaling import best_within, envelope

    fronts = {m: envelope(spent(records, m, intensity)) for m in ("dense", "block top-k", "local")}
    top = fronts["dense"][-1]
    needed = [p.cost for p in fronts["block top-k"] if p.accuracy >= top.accuracy]
    others = [(best_within(fronts["block top-k"], point.cost), point) for point in fronts["dense"]]
    gaps = [(other.accuracy if other else 0.0) - point.accuracy for other, point in others]
    ratio = needed[0] / top.cost if needed else float("inf")
    return Compared(max(gaps), min(gaps), ratio, top.accuracy, fronts["local"][-1].accuracy)


@check("K3", weight=3)
def sparse_against_dense(experiment: Experiment) -> Seen:
    """Block top-k beside dense at equal cost, on a B200 and on this machine."""
    from hasten.cost.measuring import measured_intensity
    from hasten.cost.serving.scaling import B200_INTENSITY

    records = experiment.once(family)
    here = measured_intensity()
    seen = {name: compared(records, i) for name, i in (("a B200", B200_INTENSITY), (f"{here:.0f} FLOP/B", here))}
    parts = [
        f"at {name} block top-k is {c.least:+.0%} to {c.most:+.0%} over dense at equal cost and reaches its best"
        f" ({c.best:.0%}) at {c.ratio:.2f}x the cost"
        for name, c in seen.items()
    ]
    first = seen["a B200"]
    value = f"following a permutation, three models, 16 trials: {'; '.join(parts)}; a local window at most {first.local:.0%}"
    holds = first.least >= 0 and first.ratio <= 0.7 and first.local < 0.5 * first.best
    return experiment.judge(value, holds, first.most > 0 and first.ratio < 1)


@check("K4", weight=0.1)
def by_the_law(experiment: Experiment) -> Seen:
    """What is chosen by FLOPs alone, beside what is chosen by all costs."""
    from hasten.cost.serving.scaling import B200_INTENSITY, best_within, envelope

    records = experiment.once(family)
    charged = envelope(spent(records, "block top-k", B200_INTENSITY))
    # Chosen by FLOPs alone among dense settings, then charged for the memory that it moves.
    settings = ("model", "trials", "longest")
    full = {tuple(p.settings[k] for k in settings): p.cost for p in spent(records, "dense", B200_INTENSITY)}
    dense = envelope(spent(records, "dense", B200_INTENSITY))
    gains, sizes = [], []
    for point in envelope(spent(records, "dense", 0.0)):
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


@check("K5", weight=0.1)
def exponents(experiment: Experiment) -> Seen:
    """How a frontier's cache budget and generated tokens grow with its cost."""
    from hasten.cost.measuring import log_slope
    from hasten.cost.serving.scaling import B200_INTENSITY, envelope

    every = envelope(spent(experiment.once(family), "block top-k", B200_INTENSITY))
    front = [p for p in every if p.accuracy > 0]
    if len(front) < 3:
        return experiment.judge("fewer than three points on the frontier", False, None)
    costs = [p.cost for p in front]
    budget = log_slope(costs, [p.settings["budget"] for p in front])
    tokens = log_slope(costs, [p.settings["tokens"] for p in front])
    value = (
        f"along the frontier of {len(front)} points a doubled cost raises the budget {2**budget:.2f}x and the generated"
        f" tokens {2**tokens:.2f}x (published 1.18x and 1.74x)"
    )
    return experiment.judge(value, 0 <= budget < tokens, budget < tokens)


@check("K6", weight=30)
def throughput(experiment: Experiment) -> Seen:
    """A decode step of one layer over long caches, dense and by blocks."""
    import torch

    from hasten.cost.measuring import alternating
    from hasten.cost.serving.scaling import block_top_k, dense
    from hasten.models.language.llama import small_llama
    from hasten.runtime import CacheSpec, LanguageModel
    from hasten.runtime.long_steps import steps_over
    from hasten.runtime.policies import BlockTopKPolicy
    from hasten.workload.decoder import DecoderSizes

    experiment.require(30)
    torch.manual_seed(experiment.seed)
    # SmolLM2-135M's attention; two layers, of which the first reads everything, so the difference is of one.
    network = small_llama(512, width=576, inner=64, layers=2, heads=9, kv_heads=3, positions=20000).eval()
    lengths, batch, steps = experiment.at(quick=((1024, 2048), 2, 2), normal=((1024, 4096, 16384), 8, 12))
    shape = replace(DecoderSizes.of(network.config), layers=1, parameters=0)
    parts, ratios = [], []
    for length in lengths:
        models = {
            name: LanguageModel(network, cache=CacheSpec("bf16", policy=policy))
            for name, policy in (("dense", None), ("sparse", BlockTopKPolicy(16, 2)))
        }
        calls = {name: steps_over(model, length, batch, steps + 1) for name, model in models.items()}
        times = {name: min(seconds) for name, seconds in alternating(calls, steps).items()}
        # Both have the dense first layer; take half of the dense time, one layer, off each.
        ratio = (times["dense"] / 2) / max(1e-9, times["sparse"] - times["dense"] / 2)
        model_ratio = dense(shape, length, 1).bytes / block_top_k(shape, length, 1, 19 * 32, block=32).bytes
        ratios.append(ratio)
        parts.append(f"{ratio:.1f}x at {length} (bytes: {model_ratio:.1f}x)")
    value = "one layer of SmolLM2-135M's shape, batch 8, 19 blocks of 32: " + ", ".join(parts)
    return experiment.judge(value, ratios[1] > 1 and ratios == sorted(ratios), ratios[-1] > 1)
