"""SmallThinker: A Family of Efficient Large Language Models Natively Trained for Local Deployment."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded

if TYPE_CHECKING:
    from hasten.models.language.smallthinker import SmallThinkerLM

GIB = 2**30
# B/s of main memory, of the devices that the paper names (dual-channel DDR5-5600, RK3588's LPDDR4X), and of a drive.
PC, BOARD, DRIVE = 89.6e9, 34e9, 3.5e9


def q4(parameters: float) -> float:
    """Bytes in Q4_0: 18 for 32 values."""
    return parameters * 18 / 32


@shared(weight=5)
def published(experiment: Experiment, name: str) -> SmallThinkerLM:
    """A model of the paper, on the meta device; in a quick run the small one, whichever is asked for."""
    from hasten.models import named
    from hasten.models.language.smallthinker import SmallThinkerLM

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


def bounded(experiment: Experiment, name: str, memory: float, rates: tuple[float, float], listed: str) -> Seen:
    """Memory and rate of a model in Q4_0 beside the published ones: GiB at run time, tokens/s of PC and board."""
    total, read, _ = sizes(experiment.once(published, name))
    held, moved = q4(total) / GIB, q4(read)
    bounds = [PC / moved, BOARD / moved]
    value = (
        f"Q4_0 weights {held:.2f} GiB (published {memory} at run time), {moved / 1e9:.2f} GB read a token: at most"
        f" {bounds[0]:.0f} tokens/s from DDR5-5600, {bounds[1]:.0f} on an RK3588 (published {listed})"
    )
    holds = 0.93 * memory < held < memory and bounds[0] > rates[0] and bounds[1] > rates[1]
    return experiment.judge(value, holds, held < memory)


@check("S1")
def rates_of_21b(experiment: Experiment) -> Seen:
    """The 21B within its memory and the devices' bandwidth."""
    return bounded(experiment, "smallthinker-21b", 11.47, (30.19, 10.84), "30.2, 10.8")


@check("S3")
def rates_of_4b(experiment: Experiment) -> Seen:
    """The 4B likewise."""
    return bounded(experiment, "smallthinker-4b", 2.24, (108.17, 39.76), "108, 39.8")


def from_a_drive(experiment: Experiment, model: SmallThinkerLM, capacity: int, prefetch: bool) -> tuple[float, float]:
    """(tokens/s on a PC with a drive where memory holds ``capacity`` experts, share of choices found there)."""
    from hasten.cost.serving.expert_routes import share_held
    from hasten.runtime.storage.expert_store import predicted_step

    c, (_, read, expert) = model.config, sizes(model)
    steps = experiment.at(quick=8, normal=200)
    hits = share_held(c.experts, c.used, c.layers, capacity, steps, experiment.seed)
    # Per layer: the experts that are missing at the drive's rate, those used and the attention at the memory's.
    used, missing = c.used * q4(expert) / PC, c.used * (1 - hits) * q4(expert) / DRIVE
    attention = (q4(read) / c.layers - c.used * q4(expert)) / PC
    return 1 / (c.layers * predicted_step(attention, missing, used, prefetch=prefetch)), hits


@check("S2", weight=2)
def little_memory(experiment: Experiment) -> Seen:
    """The 21B with its experts on a drive."""
    model = experiment.once(published, "smallthinker-21b")
    (rate, hits), (without, _) = (from_a_drive(experiment, model, 2048, prefetch) for prefetch in (True, False))
    value = (
        f"2048 of 3328 experts ({2048 * q4(sizes(model)[2]) / 1e9:.2f} GB) find {hits:.0%} of choices under skewed, lasting"
        f" routes; timeline with a 3.5 GB/s drive {rate:.0f} tokens/s, without prefetch {without:.0f} (published 20.3)"
    )
    return experiment.judge(value, 0.5 < rate / 20.3 < 2 and rate > without, rate > without)


@check("S4", weight=30)
def storage(experiment: Experiment) -> Seen:
    """Experts really read from a file past the page cache, ahead and on demand, at an equal budget."""
    import torch

    from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM
    from hasten.runtime.storage.expert_store import predicted_step
    from hasten.runtime.storage.expert_timing import time_experts

    experiment.require(60)
    torch.manual_seed(experiment.seed)
    layers, experts = experiment.at(quick=(2, 8), normal=(8, 32))
    config = SmallThinkerConfig(
        width=384, layers=layers, heads=6, kv_heads=2, head_dim=64, vocabulary=256, experts=experts, used=4, inner=192,
    )  # fmt: skip
    share = experiment.at(quick=0.5, normal=0.25)
    steps, length = experiment.at(quick=(4, 64), normal=(40, 24576))
    seen = time_experts(SmallThinkerLM(config).eval(), steps, length, share=share, seed=experiment.seed)
    ahead, demand, resident = seen["prefetch"], seen["on demand"], seen["resident"]
    same = all(torch.equal(one.logits, resident.logits) for one in seen.values())
    removed = 1 - ahead.stalled / max(1e-9, demand.stalled)
    read = ahead.missing * ahead.bundle / 600e6
    rest = resident.step - resident.attention - resident.experts
    line = [
        rest + layers * predicted_step(resident.attention / layers, read, resident.experts / layers, prefetch=p)
        for p in (True, False)
    ]
    small, _ = from_a_drive(experiment, experiment.once(published, "smallthinker-4b"), 256, True)
    known = [one.stored for one in (ahead, demand) if one.stored is not None]
    off = [ahead.step / line[0] - 1, demand.step / line[1] - 1]
    value = (
        f"experts from a file at 600 MB/s past the page cache, memory for a quarter: {ahead.step * 1e3:.1f} ms a token with"
        f" prefetch, {demand.step * 1e3:.1f} on demand, {resident.step * 1e3:.1f} all resident; {removed:.0%} of the"
        f" waiting removed; timeline off by {off[0]:+.0%} and {off[1]:+.0%}; logits {'equal' if same else 'DIFFERENT'}; "
        + (
            f"{min(known):.0%} of what was read came from storage itself"
            if known
            else "the system does not count what storage gave"
        )
        + f"; the timeline gives a 4B in 1 GB {small:.0f} tokens/s on a PC (published 30)"
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


def trained(early: bool, activation: str, mixed: bool, steps: int, seed: int) -> tuple[float, float]:
    """(loss on held-out text, share of positive gates) of a small model after equal steps: an arm."""
    import torch

    from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM, hybrid
    from hasten.nn.reglu_experts import balance_loss
    from hasten.tasks.text import Text
    from hasten.train import fit

    torch.manual_seed(seed)
    task = Text("sources", 128, splits=(0.9, 0.1))
    rotary, windowed = hybrid(4) if mixed else ((), ())
    config = SmallThinkerConfig(
        width=96, heads=4, kv_heads=2, head_dim=24, vocabulary=task.classes, experts=8, used=2, inner=96,
        rotary=rotary, windowed=windowed, window=64, early=early, activation=activation,  # type: ignore[arg-type]
    )  # fmt: skip
    model = SmallThinkerLM(config).train()
    batches = task.batches("training", 8, seed)
    moes = [layer.block_sparse_moe for layer in model.blocks]

    def loss(step: int) -> torch.Tensor:
        text = task.loss(model, next(batches))
        balance = torch.stack([balance_loss(moe.logits, 2) for moe in moes if moe.logits is not None]).mean()
        return text + 1e-3 * balance

    fit(model, loss, steps=steps, peak=3e-3)
    opened = sum(moe.open_share for moe in moes) / len(moes)
    return task.evaluate(model.eval(), "test", size=16, batches=8, seed=1), opened


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
    results, failed = succeeded(experiment.arms(trained, arms), needed=needed)
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
