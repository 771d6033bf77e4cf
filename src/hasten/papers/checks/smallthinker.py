"""SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local Deployment."""

from __future__ import annotations

import itertools

import torch

from hasten.cost.serving.expert_storage import ROUTES, LittleMemory, carried_over
from hasten.models import named
from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.runtime.storage.expert_timing import time_experts, timeline
from hasten.train.small_mixture import train_mixture

GIB = 2**30
# B/s of main memory of the devices that the paper names: dual-channel DDR5-5600, RK3588's LPDDR4X.
PC, BOARD = 89.6e9, 34e9
# Published tokens/s in Q4_0, with all in memory and with little: 8 GB for the 21B, 1 GB for the 4B.
RATES = {
    "smallthinker-21b": {"PC": (30.19, 20.30), "phone": (23.03, 15.50), "RK3588": (10.84, 8.56)},
    "smallthinker-4b": {"PC": (108.17, 29.99), "phone": (78.99, 20.91), "RK3588": (39.76, 15.04)},
}


def q4(parameters: float) -> float:
    """Bytes in Q4_0: 18 for 32 values."""
    return parameters * 18 / 32


@shared(weight=5)
def published(experiment: Experiment, name: str) -> SmallThinkerLM:
    """A model of the paper, on the meta device; in a quick run the small one, whichever is asked for."""
    model = named.build(experiment.at(quick="smallthinker-4b", normal=name))
    assert isinstance(model, SmallThinkerLM)
    return model


def sizes(model: SmallThinkerLM) -> tuple[float, float, float]:
    """Parameters of all, of what a step reads, and of one expert."""
    c = model.config
    total = sum(p.numel() for p in model.parameters())
    expert = 3 * c.width * c.inner
    # A step reads everything but the experts it does not use, and one row of an embedding that is not the head.
    table = 0 if c.tied else c.vocabulary * c.width
    return total, total - c.layers * (c.experts - c.used) * expert - table, expert


def bounded(experiment: Experiment, name: str, memory: float) -> Seen:
    """Memory and rate of a model in Q4_0 beside the published ones: GiB at run time, tokens/s of PC and board."""
    total, read, _ = sizes(experiment.once(published, name))
    held, moved = q4(total) / GIB, q4(read)
    bounds, rates = (PC / moved, BOARD / moved), (RATES[name]["PC"][0], RATES[name]["RK3588"][0])
    value = (
        f"Q4_0 weights {held:.2f} GiB (published {memory} at run time), {moved / 1e9:.2f} GB read a token: at most"
        f" {bounds[0]:.0f} tokens/s from DDR5-5600, {bounds[1]:.0f} on an RK3588 (published {rates[0]:.1f}, {rates[1]:.1f})"
    )
    holds = 0.93 * memory < held < memory and bounds[0] > rates[0] and bounds[1] > rates[1]
    return experiment.judge(value, holds, held < memory)


@check("S1")
def rates_of_21b(experiment: Experiment) -> Seen:
    """The 21B within its memory and the devices' bandwidth."""
    return bounded(experiment, "smallthinker-21b", 11.47)


@check("S3")
def rates_of_4b(experiment: Experiment) -> Seen:
    """The 4B likewise."""
    return bounded(experiment, "smallthinker-4b", 2.24)


def little_memory(model: SmallThinkerLM, held: int) -> LittleMemory:
    """A model whose memory holds so many experts in Q4_0."""
    c, (_, read, expert) = model.config, sizes(model)
    return LittleMemory(c.layers, c.experts, c.used, q4(expert), held, 1 - c.layers * c.used * expert / read)


@check("S2", weight=2)
def storage_of_21b(experiment: Experiment) -> Seen:
    """The 21B in 8 GB, with the storage that the 4B's published rates imply for each device: no drive is assumed."""
    small, model = experiment.once(published, "smallthinker-4b"), experiment.once(published, "smallthinker-21b")
    known, ours = little_memory(small, 256), little_memory(model, 2048)
    parts, off, ahead = [], dict.fromkeys(ROUTES, 0.0), True
    for device, rates in RATES["smallthinker-4b"].items():
        whole, little = RATES["smallthinker-21b"][device]
        seen = carried_over(known, rates, ours, whole, experiment.at(quick=8, normal=200), experiment.seed)
        off = {r: max(o, abs(one.rate / little - 1)) for (r, o), one in zip(off.items(), seen)}
        ahead = ahead and all(one.rate > one.on_demand for one in seen)
        low, high = min(one.rate for one in seen), max(one.rate for one in seen)
        demand = max(one.on_demand for one in seen)
        parts.append(f"{device} {low:.1f} to {high:.1f} (published {little}; on demand at most {demand:.1f})")
    within = sum(o <= 0.25 for o in off.values())
    value = (
        f"2048 of 3328 experts ({2048 * ours.bundle / 1e9:.2f} GB); storage as the 4B's rates in 1 GB and in full imply it,"
        f" {len(ROUTES)} kinds of skewed, lasting routes: {', '.join(parts)} tokens/s; within 25 % on all devices for"
        f" {within} of the routes, at best {min(off.values()):.0%} off"
    )
    # Where it depends on routes that nobody published, it is not known to hold.
    return experiment.judge(value, within == len(ROUTES) and ahead, within > 0 and ahead)


@check("S4", weight=30)
def storage(experiment: Experiment) -> Seen:
    """Experts in Q4_0 really read from a file past the page cache, ahead and on demand, at an equal budget."""
    experiment.require(60)
    torch.manual_seed(experiment.seed)
    layers, experts = experiment.at(quick=(2, 8), normal=(8, 32))
    config = SmallThinkerConfig(
        width=384, layers=layers, heads=6, kv_heads=2, head_dim=64, vocabulary=256, experts=experts, used=4, inner=192,
    )  # fmt: skip
    share = experiment.at(quick=0.5, normal=0.25)
    steps, length = experiment.at(quick=(4, 64), normal=(40, 24576))
    model = SmallThinkerLM(config).eval()
    seen = time_experts(model, steps, length, share=share, form="q4_0", seed=experiment.seed)
    ahead, demand, resident = seen["prefetch"], seen["on demand"], seen["resident"]
    same = all(torch.equal(one.logits, resident.logits) for one in seen.values())
    removed = 1 - ahead.stalled / max(1e-9, demand.stalled)
    line = timeline(seen, layers)
    off = [seen[name].step / line[name] - 1 for name in line]
    known = [one.stored for one in (ahead, demand) if one.stored is not None]
    value = (
        f"experts of {ahead.bundle} bytes in Q4_0 (fp32: {4 * 3 * 384 * 192}) from a file past the page cache, held to"
        f" {ahead.held_to / 1e6:.0f} MB/s of the {ahead.drive / 1e6:.0f} that this drive gives, memory for"
        f" {share:.0%}: {ahead.step * 1e3:.1f} ms a token with prefetch, {demand.step * 1e3:.1f} on demand,"
        f" {resident.step * 1e3:.1f} all resident; {ahead.read / 1e6:.2f} MB read a token; {removed:.0%} of the waiting"
        f" removed; timeline off by {off[0]:+.0%} and {off[1]:+.0%}; logits {'equal' if same else 'DIFFERENT'}; "
        + (
            f"{min(known):.0%} of what was read came from storage itself"
            if known
            else "the system does not count what storage gave"
        )
    )
    holds = (not known or min(known) >= 0.95) and removed >= 0.5 and same and max(map(abs, off)) < 0.25
    return experiment.judge(value, holds, removed > 0.2 and same)


@check("S6")
def cache_at_32k(experiment: Experiment) -> Seen:
    """The 21B's cache with windows in three of four layers."""
    model, length = experiment.once(published, "smallthinker-21b"), 32768
    held = sum(t.numel() * 2 for t in model.state_tensors(model.state_at(1, length)).values())
    full = 52 * 2 * 4 * 128 * 2 * length
    value = f"{held / GIB:.2f} GiB of {full / GIB:.2f} GiB in fp16, {held / full:.1%}"
    return experiment.judge(value, abs(held / full - 0.344) < 0.002 and abs(full / GIB - 3.25) < 0.01)


@check("S7", weight=250)
def early_router(experiment: Experiment) -> Seen:
    """Every combination of router, gate and attention, at equal active parameters and steps; two seeds each."""
    experiment.require(300)
    steps = experiment.at(quick=1, normal=experiment.steps(280, most=2800))
    plan = {
        f"{'early' if early else 'late'}, {'ReLU' if gate == 'relu' else 'SiLU'}, {'hybrid' if mixed else 'all full'}":
            (early, gate, mixed)
        for early, gate, mixed in itertools.product((True, False), ("relu", "silu"), (True, False))
    }  # fmt: skip
    seeds = experiment.seeds(2)
    arms = {f"{name}, seed {seed}": (*setting, steps, seed) for name, setting in plan.items() for seed in seeds}
    needed = [arm for arm in arms if arm.startswith(("early, ReLU, hybrid", "late, ReLU, hybrid"))]
    results, failed = succeeded(experiment.arms(train_mixture, arms), needed=needed)
    means = {}
    for name in plan:
        of = [results[arm] for arm in (f"{name}, seed {seed}" for seed in seeds) if arm in results]
        if of:
            means[name] = [sum(r[k] for r in of) / len(of) for k in (0, 1)]
    losses, closed = {name: m[0] for name, m in means.items()}, 1 - means["early, ReLU, hybrid"][1]
    ours, late, best = losses["early, ReLU, hybrid"], losses["late, ReLU, hybrid"], min(losses.values())
    value = (
        "; ".join(f"{n} {v:.3f}" for n, v in losses.items()) + f" (held-out loss); {closed:.0%} of ReLU gates closed"
    )
    return experiment.judge(value + failed, ours <= 1.02 * best and closed > 0.5, ours <= 1.02 * late)
