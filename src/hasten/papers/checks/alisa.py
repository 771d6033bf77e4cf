"""Checks of ALISA: Accelerating Large Language Model Inference via Sparsity-Aware KV Caching."""

from __future__ import annotations

import contextlib

import torch

from hasten.cost.serving.tiers import MODELS, ExpectedReads, Job, Speedups, Tiers, speedups
from hasten.errors import HastenError
from hasten.hardware.device import load_device
from hasten.models.language.llama import small_llama
from hasten.papers.experiment import Experiment, Seen, TooShort, check, shared
from hasten.papers.language_models import real_model, real_tokens
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.policies import LocalShare, SparseWindowPolicy, Strided
from hasten.runtime.quality import perplexities
from hasten.runtime.storage.tier_timing import TierTimes, time_tiers


@shared(weight=150)
def perplexities_by_rule(experiment: Experiment) -> dict[str, float]:
    """Perplexity of the real model, a prompt and on through the cache, under each rule."""
    experiment.require(60)
    context, scored, segments = experiment.at(quick=(64, 8, 1), normal=(128, 256, 2), long=(128, 512, 4))
    policies = {
        "sparse window 0.2": SparseWindowPolicy(0.2),
        "heavy hitters 0.2": SparseWindowPolicy(0.2, history=-1),
        "sinks and local 0.2": LocalShare(0.2, sinks=4),
        "local 0.2": LocalShare(0.2),
        "strided 0.2": Strided(0.2),
        "sparse window 0.5": SparseWindowPolicy(0.5),
    }
    caches = {"dense": CacheSpec()} | {name: CacheSpec(policy=policy) for name, policy in policies.items()}
    caches |= {name: CacheSpec(name) for name in ("int8", "fp32")}
    model, ids = experiment.once(real_model), experiment.once(real_tokens, 60_000)
    return perplexities(model, ids, caches, context=context, scored=scored, segments=segments)


@shared(weight=120)
def tiers_here(experiment: Experiment) -> TierTimes:
    """A batch really decoded over a throttled slow tier, beside the simulator's prediction."""
    experiment.require(60)
    torch.manual_seed(experiment.seed)
    layers, batch, new, link = experiment.at(quick=(1, 4, 4, 20e9), normal=(4, 8, 96, 200e6))
    model = LanguageModel(small_llama(512, width=256, layers=layers, heads=4))
    return time_tiers(model, torch.randint(0, 512, (batch, 256)), new, link=link)


def opt_in_16_gb(link: float = 20e9) -> Tiers:
    """What 16 GB leave to the cache beside the weights of OPT-6.7B."""
    return Tiers(fast_bytes=16 * 2**30 - 13.4e9, link=link, fast=900e9, compute=100e12)


def opt(experiment: Experiment, batch: int, link: float = 20e9, *, evenly: bool = False) -> Speedups:
    """Simulated for OPT-6.7B in 16 GB; ``evenly``: older tokens are all read as often."""
    job = Job(MODELS["opt-6.7b"], batch, new_tokens=new_tokens(experiment))
    return speedups(job, opt_in_16_gb(link), reads=ExpectedReads(job.prompt, 0.2, 1.0) if evenly else None)


def new_tokens(experiment: Experiment) -> int:
    """That a simulated batch makes: the paper's 512."""
    return experiment.at(quick=16, normal=512)


@shared(weight=15)
def published_sizes(experiment: Experiment) -> dict[str, Speedups]:
    """Device and model -> simulated at batch 64 over a 20 GB/s link, where the weights fit."""
    found = {}
    for name in ("v100", "h100"):
        device = load_device(name)
        for model in MODELS.values():
            with contextlib.suppress(HastenError):  # weights larger than the device
                job = Job(model, 64, new_tokens=new_tokens(experiment))
                found[f"{model.name} on {name}"] = speedups(job, Tiers.of(device, model, link=20e9))
    return found


@check("A1", weight=2)
def against_static_split(experiment: Experiment) -> Seen:
    """Over full attention with a fixed share of each token's cache in slow memory (FlexGen)."""
    times, small, large = experiment.once(tiers_here), opt(experiment, 4), opt(experiment, 64)
    live = times.split / times.two
    offs = times.two / times.predicted_two - 1, times.split / times.predicted_split - 1
    moved = [times.bytes[name] for name in ("two", "three", "int8", "split")]
    value = (
        f"measured over a 200 MB/s tier with memory for 30 %: {live:.1f}x the static split ({times.split / times.three:.1f}x"
        f" with deleting), simulator off by {offs[0]:+.0%} and {offs[1]:+.0%}; over the link"
        f" {', '.join(f'{m.run / 1e6:.1f}' for m in moved)} MB in two phases, three, int8 and the split, simulated"
        f" {', '.join(f'{m.simulated / 1e6:.1f}' for m in moved)} (knowing no choices"
        f" {', '.join(f'{m.expected / 1e6:.1f}' for m in moved)}); tokens {'equal' if times.same else 'DIFFERENT'};"
        f" simulated OPT-6.7B in 16 GB: {small.over_split:.2f}x at batch 4, {large.over_split:.2f}x at 64"
    )
    listed = ", ".join(f"{name} {s.over_split:.2f}x" for name, s in experiment.once(published_sizes).items())
    detail = (
        f"in int8 {times.split / times.int8:.1f}x, {times.int8_agrees:.0%} of the tokens as in fp32 (random weights);"
        f" simulated at batch 64:"
        f" {listed}; remembered attention rows take {times.rows:.0%} of the fast memory beside it here, uncounted as in the"
        " paper; without overlap of transfers"
    )
    agree = all(abs(m.simulated - m.run) <= 0.01 * m.run and abs(m.expected - m.run) <= 0.25 * m.run for m in moved)
    near = abs(small.over_split - 1) < 0.25 and max(map(abs, offs)) < 0.25 and agree
    holds = live >= 1.5 and times.same and large.over_split >= 1.5 and near
    return experiment.judge(value, holds, live > 1 and large.over_split > 1, detail)


@check("A2", weight=2)
def against_waves(experiment: Experiment) -> Seen:
    """Over full attention of as many sequences at a time as fit (vLLM)."""
    ratios = {batch: opt(experiment, batch).over_waves for batch in (4, 16, 64)}
    value = (
        "simulated OPT-6.7B: " + ", ".join(f"{r:.2f}x at batch {b}" for b, r in ratios.items()) + " over waves that fit"
    )
    listed = ", ".join(f"{name} {s.over_waves:.2f}x" for name, s in experiment.once(published_sizes).items())
    detail = f"simulated at batch 64: {listed}"
    with contextlib.suppress(TooShort):  # what is simulated is judged all the same
        live = experiment.once(tiers_here)
        detail += f"; measured here {live.waves / live.two:.2f}x"
    return experiment.judge(value, ratios[64] >= 1.5, ratios[64] > 1, detail)


@check("A3", weight=0.1)
def accuracy(experiment: Experiment) -> Seen:
    """Reading 20 % of the cache beside all of it."""
    seen = experiment.once(perplexities_by_rule)
    value = (
        f"perplexity {seen['sparse window 0.2']:.1f} at 80 % sparsity, {seen['sparse window 0.5']:.1f} at 50 %,"
        f" dense {seen['dense']:.1f}: not negligible at 80 % for 135M parameters"
    )
    change = seen["sparse window 0.2"] / seen["dense"] - 1
    return experiment.judge(value, change < 0.03, seen["sparse window 0.5"] < 1.12 * seen["dense"])


@check("A4", weight=0.1)
def against_static(experiment: Experiment) -> Seen:
    """The sparse window beside rules that do not look, at equal budgets."""
    seen = experiment.once(perplexities_by_rule)
    ours = seen["sparse window 0.2"]
    names = ("heavy hitters 0.2", "sinks and local 0.2", "local 0.2", "strided 0.2")
    value = f"perplexity {ours:.1f} reading 20 %; " + ", ".join(f"{n[:-4]} {seen[n]:.1f}" for n in names)
    holds = (
        ours < 1.05 * seen[names[0]] and ours < seen[names[1]] and ours < 0.6 * seen[names[2]] and ours < 0.1 * seen[names[3]]
    )  # fmt: skip
    return experiment.judge(value, holds, ours < seen[names[2]] and ours < seen[names[3]])


@check("A5", weight=0.1)
def int8(experiment: Experiment) -> Seen:
    """Keys and values in int8."""
    seen = experiment.once(perplexities_by_rule)
    change = seen["int8"] / seen["fp32"] - 1
    return experiment.judge(f"perplexity {change:+.2%} with keys and values in int8", change < 0.01)


@check("A6", weight=2)
def recompute(experiment: Experiment) -> Seen:
    """What the third phase gains over links of many speeds, by which older tokens a step reads."""
    links, gains, parts = (5e9, 20e9, 80e9, 1e12), [], []
    for evenly in (False, True):
        found = [opt(experiment, 64, link, evenly=evenly) for link in links]
        gains.append([f.two / f.three for f in found])
        parts.append(", ".join(f"{g:.2f}x at {link / 1e9:g} GB/s" for g, link in zip(gains[-1], links, strict=True)))
    value = f"third phase gains {parts[0]}; were older tokens all read as often {parts[1]}"
    detail = (
        "what is deleted are the oldest tokens, which few steps read once others are in their place, so that to delete them"
        " saves little; what they are computed from takes the place of newer ones"
    )
    helps = [rates[0] > 1.02 and rates == sorted(rates, reverse=True) and rates[-1] < 1.02 for rates in gains]
    return experiment.judge(value, helps[0], gains[1][0] > 1, detail)
