"""Checks of AccLLM: Accelerating Long-Context LLM Inference Via Algorithm-Hardware Co-Design."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from hasten.cost.chips.fpga import (
    EFFICIENCIES,
    LLAMA_2_7B,
    PLANS,
    DspEngine,
    Plan,
    StepCost,
    joules_a_token,
    run,
    without_packing,
)
from hasten.data.text import default_text
from hasten.methods.recovery import last_states, recover
from hasten.methods.solvers import Rounding
from hasten.methods.sparse_low_bit import calibration, compress, int8_activations, pack, solver, trainable
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.papers.language_models import fresh_model, real_model, real_tokens
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.policies import LocalShare
from hasten.runtime.quality import losses_by_position, perplexities, perplexity
from hasten.train.text_llama import text_llama

CONTEXT = 4096
FINAL = "2:4, W2, KV4, window 2048"


@check("X1")
def rate(experiment: Experiment) -> Seen:
    """Tokens a second of the FPGA's engine, by its model, over the bandwidth that it may get."""
    engine, sizes = DspEngine(), LLAMA_2_7B

    def said(cost: StepCost) -> str:
        return f"{1 / cost.latency:.0f}" + ("" if cost.fits else f" (does not fit: {', '.join(cost.misfits)})")

    steps = ", ".join(
        f"{n} {' / '.join(said(run(engine, p, sizes, c)) for c in (CONTEXT, 32768))}" for n, p in PLANS.items()
    )
    plan = PLANS[FINAL]
    final, prompt = run(engine, plan, sizes, CONTEXT), run(engine, plan, sizes, 0, 4 * 512)
    bound = engine.bandwidth / final.bytes["memory"]
    packed = run(engine, plan, sizes, 0, 4 * 512, without_packing).products / prompt.products
    # Dense 8-bit weights and cache on the same engine: what the stack itself gains, free of the published baseline.
    eight = final.latency / run(engine, Plan(8, 0.0, 8, 0, False, 8), sizes, CONTEXT).latency
    reached = {e: 1 / run(replace(engine, efficiency=e), plan, sizes, CONTEXT).latency for e in EFFICIENCIES}
    met = {e: 164 <= r <= bound for e, r in reached.items()}
    verdicts = ", ".join(f"{e:.0%} {r:.1f} ({'met' if met[e] else 'NOT met'})" for e, r in reached.items())
    value = (
        f"bytes at 460 GB/s allow {bound:.0f} tokens/s, so the published 164 need {164 / bound:.1%} of the bandwidth; with"
        f" {verdicts}; at {engine.efficiency:.0%}, 4K / 32K: {steps}; {1 / final.latency / 55:.2f}x FlightLLM's published 55"
        f" (2.98x published), {1 / eight:.2f}x a dense 8-bit model on the same engine; packing {packed:.1f}x the 2-bit"
        f" products a cycle; decode bound by {final.bound}, prompt by {prompt.bound}; {final.needs.slices} slices,"
        f" {final.needs.luts} LUTs (estimated), {final.needs.memory / 1e9:.1f} GB"
    )
    stands = final.bound == "memory" and prompt.bound == "compute" and abs(packed - 3) < 0.01 and final.fits
    holds = all(met.values()) and abs(bound - 205) < 3 and stands
    # What about 0.8 of the bandwidth gives is not known well enough where only a part of its range reaches the figure.
    return experiment.judge(value, holds, bound >= 164 and stands)


@check("X2")
def energy(experiment: Experiment) -> Seen:
    """Tokens a joule of it, and how far that moves with constants that are estimates."""
    cost = run(DspEngine(), PLANS[FINAL], LLAMA_2_7B, CONTEXT)
    each, watts = 1 / cost.energy, cost.power
    low, high = (1 / joules for joules in reversed(joules_a_token(DspEngine(), PLANS[FINAL], LLAMA_2_7B, CONTEXT)))
    value = (
        f"{each:.2f} tokens/J at {watts:.0f} W (published 4.96 at 33 W; 164 / 33 = {164 / 33:.2f}), {each / 1.22:.2f}x"
        f" FlightLLM's 1.22 (4.07x published); the energy constants are estimates: 30 % either way, over the same range of"
        f" bandwidth, give {low:.1f} to {high:.1f} tokens/J"
    )
    near = abs(each / 4.96 - 1) < 0.15 and abs(watts / 33 - 1) < 0.15
    # Near with estimated constants is no proof: it holds only if the comparison stands wherever they lie.
    return experiment.judge(value, near and low > 0.85 * 4.96, low > 1.22)


@check("X4", weight=90)
def long_texts(experiment: Experiment) -> Seen:
    """A text read far beyond the trained length: everything, a window, a window with sinks and capped positions."""
    experiment.require(300)
    steps = experiment.at(quick=3, normal=experiment.steps(450, most=4000))
    length = experiment.at(quick=256, normal=2048)
    network, held = text_llama(steps, experiment.seed)
    model = LanguageModel(network)
    rows = torch.stack([held[s : s + length + 1] for s in range(0, 4 * length, length)])
    arms = {
        "everything": CacheSpec(),
        "window": CacheSpec("fp32", 124),
        "capped window with sinks": CacheSpec("fp32", 124, 4, capped=True),
    }
    end, sizes, start = {}, {}, 0.0
    for name, spec in arms.items():
        model.cache = spec
        losses, sizes[name] = losses_by_position(model, rows, 32)
        end[name] = float(losses[-512:].mean())
        start = float(losses[64:128].mean()) if name == "everything" else start
    # The real model where every step reads the newest 20 % of the tokens, without and with 4 sinks.
    caches = {name: CacheSpec(policy=LocalShare(0.2, sinks=count)) for name, count in (("local", 0), ("sinks", 4))}
    scored, segments = experiment.at(quick=(8, 1), normal=(128, 2))
    sinks = perplexities(
        experiment.once(real_model), experiment.once(real_tokens, 20_000), caches,
        context=128, scored=scored, segments=segments,
    )  # fmt: skip
    value = (
        f"trained at 128 characters (loss there {start:.3f}), read on to {length}: "
        + ", ".join(f"{n} {v:.3f}" for n, v in end.items())
        + f"; cache {sizes['everything'] / sizes['capped window with sinks']:.0f}x smaller, and constant; SmolLM2-135M reading"
        f" the newest 20 % alone: perplexity {sinks['local']:.1f}, with 4 sinks {sinks['sinks']:.1f}"
    )
    ours = end["capped window with sinks"]
    steady = ours < 1.03 * start and end["everything"] > 1.1 * start
    return experiment.judge(value, steady and sinks["local"] > 1.5 * sinks["sinks"], ours < end["everything"])


def score(model: LanguageModel, quick: bool) -> float:
    """Perplexity on four pieces of text."""
    tokens = model.tokenizer(default_text()[:20000], add_special_tokens=False, verbose=False)["input_ids"]
    return perplexity(model, tokens, context=128, scored=16 if quick else 256, segments=1 if quick else 4).value


def compressed(name: str, rows: list[list[int]], quick: bool) -> float:
    """Perplexity with every matrix compressed by one solver on rows of tokens: an arm."""
    model = fresh_model(quick)
    compress(model, torch.tensor(rows), solver(name, Rounding(2, 64)))
    return score(model, quick)


@shared(weight=250)
def perplexities_of_parts(experiment: Experiment) -> dict[str, float]:
    """Perplexity of the real model under each part of the stack, and under all of it."""
    experiment.require(300)
    quick = experiment.quick
    found = {"dense": score(fresh_model(quick), quick)}
    # 4 sinks and the newest tokens, fewer than the text that is scored has.
    newest = experiment.at(quick=60, normal=252)
    window = CacheSpec("int4", newest, 4, capped=True)
    for name, spec in {"KV4": CacheSpec("int4"), "window": replace(window, dtype="fp32")}.items():
        model = fresh_model(quick)
        model.cache = spec
        found[name] = score(model, quick)
    found["A8"] = score(int8_activations(fresh_model(quick)), quick)
    # The slow ones first: a solver's sweep over columns takes one thread, so that two run at once.
    names = ("sparsegpt", "gptq", "prune, then round", "wanda", "magnitude", "round")
    text = calibration(fresh_model(quick), *experiment.at(quick=(4, 64), normal=(24, 512)))
    few = text[: experiment.at(quick=2, normal=8)]
    solvers, _ = succeeded(experiment.arms(compressed, {n: (n, few.tolist(), quick) for n in names}), needed=names)
    solved = fresh_model(quick)
    states = last_states(solved, text)
    trainable(solved, few)
    found["joint"] = score(solved, quick)
    recover(solved, text, states, seconds=experiment.at(quick=0.1, normal=36.0, long=180.0))
    found["recovered"] = score(solved, quick)
    # The stack as it would be used: packed, int8 activations, a window of a cache of four bits, recovered.
    pack(solved)
    solved.cache = window
    return found | solvers | {"whole stack": score(solved, quick)}


@check("X5")
def stack(experiment: Experiment) -> Seen:
    """Every part of the compression by itself, and the whole."""
    seen = experiment.once(perplexities_of_parts)
    eight, four = (seen[n] / seen["dense"] - 1 for n in ("A8", "KV4"))
    gap = math.log(seen["joint"] / seen["dense"])
    closed = 1 - math.log(seen["recovered"] / seen["dense"]) / gap
    parts = {
        f"2:4 by SparseGPT {seen['sparsegpt']:.0f} < Wanda {seen['wanda']:.0f} < magnitude {seen['magnitude']:.0f}, 2x each":
            2 * seen["sparsegpt"] <= seen["wanda"] and 2 * seen["wanda"] <= seen["magnitude"],
        f"A8 {eight:+.1%} below 4 %": eight < 0.04,
        f"KV4 {four:+.1%} below 1.5 %": four < 0.015,
        f"W2 by GPTQ {seen['gptq']:.0f}, 10x below rounding {seen['round']:.0f}": 10 * seen["gptq"] <= seen["round"],
        f"2:4 and W2 jointly {seen['joint']:.0f}, 3x below one after the other {seen['prune, then round']:.0f}":
            3 * seen["joint"] <= seen["prune, then round"],
        f"recovery {seen['recovered']:.0f}, at least 30 % of the gap in log-perplexity closed ({closed:.0%})":
            closed >= 0.3,
    }  # fmt: skip
    listed = "; ".join(name if met else f"NOT {name}" for name, met in parts.items())
    value = (
        f"perplexity of SmolLM2-135M {seen['dense']:.1f}: {listed}; a Λ-shaped window of 256 alone {seen['window']:.1f}; the"
        f" whole packed stack with it {seen['whole stack']:.0f}: usable quality is a claim about 7B"
    )
    # The paper's claim is a small loss; the orderings are what a small model can show of it.
    return experiment.judge(value, seen["whole stack"] < 1.1 * seen["dense"], all(parts.values()))
