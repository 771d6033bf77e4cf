"""Checks of HELP: Hardware-Adaptive Efficient Latency Prediction for NAS via Meta-Learning."""

from __future__ import annotations

import random
import statistics
from typing import Any

from hasten.cost.latency.meta_settings import EPISODES, LEARNERS
from hasten.cost.latency.regimes import Regime
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.search.networks import architecture_space as spaces
from hasten.search.networks.new_device import new_device_cost, targets_met
from hasten.search.networks.unseen_devices import (
    Curve,
    DevicePool,
    Learned,
    Roles,
    comparable,
    few_roles,
    held_out_ranks,
    learned_from,
    learning_curves,
    measurements_needed,
    meta_trained,
    meta_trainings,
    reach,
    reached_from,
    this_machine_and_others,
)

_NEEDS = 180.0  # seconds below which too little is measured and learned to compare anything
_REFERENCES = 10
_LEAST = 30  # measured networks without which nothing is compared
_MODELLED = 3000  # networks with modelled latencies to learn from (the paper: 4000)
# Networks of a space that are measured, seconds for it, and sets of references.
_MEASURED = {"chain": (120, 110.0, 2), "cell": (110, 50.0, 1)}


def _timing(experiment: Experiment) -> dict[str, Any]:
    """Of every measurement of a network in a regime, so that all are the least of as many."""
    return {"rounds": 2, "runs": experiment.at(quick=1, normal=5)}


def roles(experiment: Experiment) -> Roles:
    """Held out: a number format and an instruction set that no regime of training has; an FPGA, a small board, an array."""
    # An instruction set's limit takes a process of its own, and parts are traced for each batch.
    return few_roles() if experiment.quick else this_machine_and_others()


@shared(weight=180)
def _pool(experiment: Experiment, name: str) -> DevicePool:
    """Measures this machine, models other devices, and parts devices and networks."""
    experiment.require(_NEEDS)
    space, devices = spaces.open_space(name), roles(experiment)
    count, seconds, _ = _MEASURED[name]
    least, some = experiment.at(quick=(1, 14), normal=(_LEAST, experiment.steps(count)))
    rng, modelled = random.Random(experiment.seed), experiment.at(quick=14, normal=experiment.steps(_MODELLED))
    drawn = list(dict.fromkeys(space.sample(rng) for _ in range(experiment.at(quick=16, normal=_MODELLED + 2 * count))))
    measured = spaces.measured_latencies(
        space,
        drawn[:some],
        devices.regimes,
        **_timing(experiment),
        seconds=experiment.at(quick=60.0, normal=seconds * min(1.0, experiment.scale)),
        progress=lambda message, done: experiment.tell(f"{name}: {message}", 0.3 * done),
    )
    if comparable(measured, devices) < least:  # a slow machine, or a busy one
        experiment.require_more()
    experiment.tell(f"{name}: modelling devices", 0.3)
    return DevicePool.parted(
        space, devices, drawn, measured, spaces.modelled_latencies(space, drawn[:modelled], devices.modelled)
    )


@shared(weight=120)
def _learned(experiment: Experiment, name: str) -> list[Learned]:
    """For every set of references: each learner's predictor, and the seconds that its meta-training took."""
    pool = experiment.once(_pool, name)
    normal = EPISODES["graphs" if pool.space.prefers_graphs else "vectors"]
    episodes = experiment.at(quick=1, normal=experiment.steps(normal, most=10 * normal))
    count = experiment.at(quick=4, normal=_REFERENCES)
    seeds = [experiment.seed + i for i in range(experiment.at(quick=1, normal=_MEASURED[name][2]))]
    sets = {seed: pool.references(count, seed) for seed in seeds}
    arms = meta_trainings(pool, LEARNERS, episodes, sets)
    experiment.tell(f"{name}: meta-learning", 0.4)
    found, _ = succeeded(experiment.arms(meta_trained, arms), needed=arms)
    return learned_from(pool, LEARNERS, episodes, sets, found)


_RIVALS = ("Meta-SGD", "MAML", "MLP", "GNN", "layer-wise sum", "FLOPs", "best proxy", "mean device + ridge")


def _ranked(name: str, experiment: Experiment) -> Seen:
    """At least 0.9 on held-out devices; above Meta-SGD by 0.03, above a network trained on the ten alone by 0.2, and
    above all others."""
    pool, learned = experiment.once(_pool, name), experiment.once(_learned, name)
    found = held_out_ranks(pool, learned, experiment.seed, steps=experiment.at(quick=2, normal=200))
    means = {m: statistics.mean(row[m] for row in found.values()) for m in ("HELP", *_RIVALS)}
    ours, best = means["HELP"], max(means[m] for m in _RIVALS)
    value = f"HELP {ours:.3f} on {len(found)} held-out devices; " + ", ".join(f"{m} {means[m]:.3f}" for m in _RIVALS)
    noise = {d: row["noise ceiling"] for d, row in found.items() if "noise ceiling" in row}
    lines = [
        f"{d}: HELP {row['HELP']:.3f}"
        + (f", two measurements of the same networks {noise[d]:.3f}" if d in noise else ", modelled")
        for d, row in found.items()
    ]
    detail = (
        f"{len(pool.ask)} networks asked, without the fastest and slowest tenth; {len(pool.train)} devices "
        f"learned from; " + "; ".join(lines)
    )
    holds = ours >= 0.9 and ours > best and ours >= means["Meta-SGD"] + 0.03 and ours >= means["MLP"] + 0.2
    return experiment.judge(value, holds, ours >= 0.85 and ours > best, detail)


@check("H1", weight=15, needs=_NEEDS)
def _cells(experiment: Experiment) -> Seen:
    return _ranked("cell", experiment)


@check("H2", weight=15, needs=_NEEDS)
def _chains(experiment: Experiment) -> Seen:
    return _ranked("chain", experiment)


_COUNTS = (10, 20, 50, 100, 200, 400, 900)


@shared(weight=15)
def _curves(experiment: Experiment) -> dict[str, Curve]:
    """Of the chains' held-out devices; up to 900 measurements where latencies are modelled."""
    pool, learned = experiment.once(_pool, "chain"), experiment.once(_learned, "chain")[0]
    told = lambda device, share: experiment.tell(f"learning curves: {device}", share)  # noqa: E731
    counts, steps = experiment.at(quick=((4, 6), 2), normal=(_COUNTS, 200))
    return learning_curves(pool, learned, counts, experiment.seed, steps=steps, progress=told)


@check("H3", needs=_NEEDS)
def _fewer(experiment: Experiment) -> Seen:
    """As the paper: with fewer than 900 measurements no predictor of one device ranks as well as HELP with ten.

    Few networks are measured: of those devices it is asked as far as their curves go, of modelled ones up to 900.
    """
    curves = experiment.once(_curves)
    lines = [f"{kind} devices: {reach(curve)}" for kind, curve in curves.items()]
    detail = "; ".join(
        f"{kind}, {m}: " + ", ".join(f"{n}: {v:.3f}" for n, v in row.items())
        for kind, curve in curves.items()
        for m, row in curve.items()
    )
    first = reached_from(curves)
    return experiment.judge("; ".join(lines), first >= 900, first > _REFERENCES, detail)


@check("H4", weight=10, needs=_NEEDS)
def _constrained(experiment: Experiment) -> Seen:
    """The largest of 3000 candidates that is predicted to be within a target, measured: hit within 10 %.

    Operations stand for accuracy, which nobody has for these networks.
    """
    pool, learned = experiment.once(_pool, "chain"), experiment.once(_learned, "chain")[0]
    rng = random.Random(experiment.seed + 7)
    candidates = list(dict.fromkeys(pool.space.sample(rng) for _ in range(experiment.at(quick=20, normal=3000))))
    found = targets_met(
        pool, learned, candidates, progress=lambda regime: experiment.tell(f"measuring what was found, {regime}", 0.9),
        **_timing(experiment),
    )  # fmt: skip
    hits = [hit for met in found.values() for hit in met.hits()]
    lines = [
        f"{regime}: "
        + ", ".join(f"{o:+.0%} of {t * 1e3:.2f} ms" for o, t in zip(met.off, met.targets, strict=True))
        + f", the machine at {met.drift:.2f} of its time before"
        for regime, met in found.items()
    ]
    value = f"{sum(hits)} of {len(hits)} targets met within 10 % on regimes never learned from; " + "; ".join(lines)
    return experiment.judge(value, all(hits), sum(hits) > len(hits) / 2)


@check("H6", weight=5, needs=_NEEDS)
def _cheaper(experiment: Experiment) -> Seen:
    """Seconds for a new device: ten networks and an adaptation, against every block of the space by itself, and
    against as many networks as a predictor of that device alone needs."""
    pool, learned = experiment.once(_pool, "chain"), experiment.once(_learned, "chain")[0]
    operations = experiment.at(quick=range(1), normal=range(9))
    tabled = [(o,) * len(pool.ask[0]) for o in operations]
    cost = new_device_cost(pool, learned, Regime(), tabled, **_timing(experiment))
    curve = experiment.once(_curves)["measured"]
    needed = [n for n in measurements_needed(curve).values() if n]
    alone = min(needed, default=max(n for row in curve.values() for n in row))
    ours, each = cost.predictor, cost.network
    ratio = cost.table / ours
    value = (
        f"{cost.references} networks and {cost.adapting:.2f} s of adaptation: {ours:.2f} s; a table of {cost.parts} blocks "
        f"{cost.table:.2f} s ({ratio:.1f}x); a predictor of the device alone {'' if needed else 'over '}{alone} networks, "
        f"about {alone * each:.1f} s; meta-learning took {learned.seconds['HELP']:.0f} s once"
    )
    most = max(ratio, alone * each / ours)
    return experiment.judge(value, most >= 100, most > 1)
