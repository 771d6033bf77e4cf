"""Checks of Kinetics: Rethinking Test-Time Scaling Laws."""

from __future__ import annotations

from dataclasses import replace

import torch

from hasten.cost.measuring import alternating, log_slope, measured_intensity
from hasten.cost.serving.frontiers import by_the_law as law_of
from hasten.cost.serving.frontiers import compared, spent
from hasten.cost.serving.recorded_trials import Record
from hasten.cost.serving.scaling import B200_INTENSITY, QWEN3, block_top_k, dense, envelope, intensity_of
from hasten.hardware.device import load_device
from hasten.models.language.llama import small_llama
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.long_steps import steps_over
from hasten.runtime.policies import BlockTopKPolicy
from hasten.runtime.recorded_answers import ASKED, BUDGETS, METHODS, WIDTHS, answers, train_follower
from hasten.workload.decoder import DecoderSizes


@check("K1")
def dominant(experiment: Experiment) -> Seen:
    """What attention costs of long answers, by the published sizes."""
    shares = [1 - 2 * model.active_parameters * 16384 / dense(model, 200, 16384).equivalent() for model in QWEN3]
    value = (
        f"attention is {min(shares):.1%} to {max(shares):.1%} of the equivalent FLOPs of six Qwen3 sizes at 16K tokens"
    )
    return experiment.judge(value, min(shares) >= 0.95)


@shared(weight=250)
def family(experiment: Experiment) -> list[Record]:
    """Three models, their answers recorded once under every kind of attention."""
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


@shared(weight=0.1)
def devices(experiment: Experiment) -> dict[str, float]:
    """Intensities of the paper's device, of one of the catalogue and of this machine: each has to agree."""
    here = measured_intensity()
    return {"a B200": B200_INTENSITY, "an H100": intensity_of(load_device("h100")), f"{here:.0f} FLOP/B": here}


@check("K3", weight=3)
def sparse_against_dense(experiment: Experiment) -> Seen:
    """Block top-k beside dense at equal cost, on every device; and what the controls get right that do not look."""
    records = experiment.once(family)
    seen = {name: compared(records, "block top-k", ASKED, i) for name, i in experiment.once(devices).items()}
    parts = [
        f"at {name} block top-k is {c.least:+.0%} to {c.most:+.0%} over dense at equal cost and reaches its best"
        f" ({c.best:.0%}) at {c.ratio:.2f}x the cost"
        for name, c in seen.items()
    ]
    # What is right at most does not depend on the device.
    blind = {m: compared(records, m, ASKED, 1.0).own for m in ("local", "strided blocks", "random")}
    most = ", ".join(f"{name} at most {own:.0%}" for name, own in blind.items())
    value = f"following a permutation, three models, 16 trials: {'; '.join(parts)}; {most}"
    holds = all(c.least >= 0 and c.ratio <= 0.7 and blind["local"] < 0.5 * c.best for c in seen.values())
    return experiment.judge(value, holds, all(c.most > 0 and c.ratio < 1 for c in seen.values()))


@check("K4", weight=0.1)
def by_the_law(experiment: Experiment) -> Seen:
    """Dense models chosen by FLOPs alone, beside dense ones chosen by all costs; sparse attention apart from it."""
    records = experiment.once(family)
    seen = {name: law_of(records, "block top-k", ASKED, i) for name, i in experiment.once(devices).items()}
    parts = [
        f"at {name} the law alone up to {law.gain:.1f}x less for equal accuracy, its model no smaller in {law.no_larger} and"
        f" larger in {law.smaller} of {law.cases} cases (block top-k on top of it up to {law.sparse:.1f}x)"
        for name, law in seen.items()
    ]
    # The figure is one of the paper's device; where memory is cheaper the law gains less, and must still point one way.
    ordered = all(law.larger_models_first for law in seen.values())
    gain = seen["a B200"].gain
    return experiment.judge("; ".join(parts), gain >= 2 and ordered, gain > 1)


@check("K5", weight=0.1)
def exponents(experiment: Experiment) -> Seen:
    """How a frontier's cache budget and generated tokens grow with its cost, on every device."""
    records = experiment.once(family)
    grown, parts = [], []
    for name, intensity in experiment.once(devices).items():
        every = envelope(spent(records, "block top-k", ASKED, intensity))
        front = [p for p in every if p.accuracy > 0]
        if len(front) < 3:
            return experiment.judge(f"at {name} fewer than three points on the frontier", False, None)
        costs = [p.cost for p in front]
        budget, tokens = (log_slope(costs, [p.settings[k] for p in front]) for k in ("budget", "tokens"))
        grown.append((budget, tokens))
        parts.append(f"at {name} ({len(front)} points) the budget {2**budget:.2f}x and the tokens {2**tokens:.2f}x")
    value = f"along the frontier a doubled cost raises {'; '.join(parts)} (published 1.18x and 1.74x)"
    return experiment.judge(value, all(0 <= b < t for b, t in grown), all(b < t for b, t in grown))


@check("K6", weight=30)
def throughput(experiment: Experiment) -> Seen:
    """A decode step of one layer over long caches, dense and by blocks."""
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
