"""Checks of HELP: Hardware-Adaptive Efficient Latency Prediction for NAS via Meta-Learning."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hasten.errors import HastenError
from hasten.papers.experiment import Experiment, Seen, check

if TYPE_CHECKING:
    from hasten.cost.latency.predictor import AdaptedLatency, LatencyPredictor
    from hasten.cost.latency.regimes import MeasuredRegimes, Regime
    from hasten.cost.latency.tables import Arch, LatencyTables


_REFERENCES = 10
# Of the measured networks, this share may be learned from; the rest is asked.
_LEARNED = 0.5
_LEAST = 30  # measured networks without which nothing is compared
_MODELLED = 3000  # networks with modelled latencies to learn from (the paper: 4000)


@dataclass(frozen=True)
class _Split:
    """Which devices are learned from, validated on and held out."""

    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]


def _regimes() -> dict[str, list[Regime]]:
    """This machine as devices. Held out: a number format and an instruction set that no regime of training has."""
    from hasten.cost.latency.regimes import Regime

    train = [
        Regime(),
        Regime(layout="channels-last"),
        Regime(batch=4),
        Regime(batch=4, layout="channels-last", program="folded"),
        Regime(threads=2, batch=4),
    ]
    test = [
        Regime(dtype="bf16", batch=4, layout="channels-last"),
        Regime(isa="sse4.1"),
        Regime(batch=4, isa="sse4.1"),
    ]
    return {"train": train, "valid": [Regime(isa="avx2")], "test": test}


def _devices() -> dict[str, list[Any]]:
    """Devices that are modelled, from data sheets and dataflow equations."""
    from hasten.cost.chips.dataflow import SubAccelerator
    from hasten.cost.latency.modelled import ArrayDevice, EstimatedDevice
    from hasten.hardware import load_device

    def of(name: str, batch: int = 1, schedule: Any = "fused") -> Any:
        return EstimatedDevice(load_device(name), batch, schedule)

    def array(dataflow: str, pes: int, bandwidth: float) -> Any:
        return ArrayDevice(SubAccelerator(dataflow, pes, bandwidth))

    train = [
        of("rtx4090", 64, "eager"),
        of("v100", 64),
        of("orin", 64, "eager"),
        of("cpu2", 1, "eager"),
        of("cpu2", 64),
        of("pi5", 64, "eager"),
        of("m2"),
        array("dla", 1024, 8),
        array("shi", 64, 2),
    ]
    valid = [of("h100", 64), array("rs", 1024, 16)]
    test = [of("u280", 64), of("pi5"), array("rs", 168, 1)]
    return {"train": train, "valid": valid, "test": test}


_Space = Any  # an ArchitectureSpace whose networks are the keys of latency tables
# Networks of a space that are measured, and the seconds for it.
_MEASURED = {"chain": (120, 110.0), "cell": (110, 50.0)}


@dataclass(frozen=True)
class _Pool:
    """What is known of a space: tables of all devices, and networks to learn from and to ask."""

    space: _Space
    tables: LatencyTables
    split: _Split
    learn: tuple[Arch, ...]
    ask: tuple[Arch, ...]
    measured: MeasuredRegimes

    def known(self, device: str, archs: Sequence[Arch]) -> dict[Arch, float]:
        table = self.tables.known(device)
        return {a: table[a] for a in archs if a in table}


# Of every measurement of a network in a regime, so that all are the least of as many.
_TIMING: Any = {"rounds": 2, "runs": 5}


@lru_cache(maxsize=2)
def _pool(name: str, seed: int, budget: float, report: Any) -> _Pool:
    """Measures this machine, models other devices, and parts devices and networks."""
    from hasten.cost.latency.modelled import modelled_tables
    from hasten.cost.latency.regimes import measure_regimes
    from hasten.search.networks.architecture_space import open_space

    space = open_space(name)
    networks, seconds = _MEASURED[name]
    rng = random.Random(seed)
    share = min(1.0, budget / 300)
    drawn = list(dict.fromkeys(space.sample(rng) for _ in range(_MODELLED + 2 * networks)))
    regimes, devices = _regimes(), _devices()
    measured = measure_regimes(
        space.example,
        drawn[: max(40, round(networks * share))],
        [r for role in regimes.values() for r in role],
        **_TIMING,
        seconds=seconds * max(share, 0.2),
        progress=lambda message, done: report(f"{name}: {message}", 0.3 * done),
    )
    report(f"{name}: modelling devices", 0.3)
    tables = measured.tables
    # With several threads a busy machine gets to few networks: such a regime is no device then.
    counts = {d: len(tables.known(d)) for d in tables}
    tables = tables.only([d for d in tables if counts[d] >= 0.6 * max(counts.values())])
    complete = [a for i, a in enumerate(tables.archs) if all(row[i] == row[i] for row in tables.seconds.values())]
    lacking = [r.name for r in regimes["test"] if r.name not in tables.seconds]
    if len(complete) < _LEAST or lacking:
        what = f"regimes without enough networks: {', '.join(lacking)}" if lacking else f"{len(complete)} networks"
        raise HastenError(f"this machine measured too little in the time ({what}): give it a larger --budget, or quiet")
    modelled = modelled_tables(
        space.parts, (drawn if share == 1 else drawn[:200])[:_MODELLED], [d for v in devices.values() for d in v]
    )
    names = {
        role: [r.name for r in regimes[role] if r.name in tables.seconds] + [d.name for d in devices[role]]
        for role in regimes
    }
    cut = round(_LEARNED * len(complete))
    ask = tuple(complete[cut:])
    left = set(ask)
    learn = tuple(a for a in drawn if a not in left)
    split = _Split(tuple(names["train"]), tuple(names["valid"]), tuple(names["test"]))
    return _Pool(space, tables.joined(modelled), split, learn, ask, measured)


# -- learners ------------------------------------------------------------------------------------


def _predictor(
    space: _Space, references: Sequence[Arch], learner: str, episodes: int, seed: int
) -> LatencyPredictor[Arch]:
    from hasten.cost.latency.meta_settings import quick_settings
    from hasten.search.networks.architecture_space import latency_predictor

    return latency_predictor(space, references, quick_settings(learner, episodes), seed)


def _trained(
    name: str, learner: str, seed: int, episodes: int, references: Sequence[Arch], train: Any, valid: Any
) -> tuple[dict[str, Any], float]:
    """State and seconds of one meta-training: an arm."""
    from hasten.search.networks.architecture_space import open_space

    begun = time.perf_counter()
    predictor = _predictor(open_space(name), references, learner, episodes, seed).fit(train, valid)
    return predictor.state(), time.perf_counter() - begun


def _references(pool: _Pool, seed: int) -> list[Arch]:
    """Ten networks that every device has, drawn from those to learn from."""
    ask = set(pool.ask)
    rows = pool.tables.seconds.values()
    free = [a for i, a in enumerate(pool.tables.archs) if a not in ask and all(row[i] == row[i] for row in rows)]
    return random.Random(1000 + seed).sample(free, _REFERENCES)


_SETS = {"chain": 2, "cell": 1}


@lru_cache(maxsize=2)
def _learned(name: str, seed: int, budget: float, report: Any) -> list[tuple[list[Arch], dict[str, Any], float]]:
    """For every set of references: the set, each learner's predictor, and the seconds that HELP's training took."""
    from hasten.cost.latency.meta_settings import EPISODES, LEARNERS
    from hasten.processes import run_arms

    pool = _pool(name, seed, budget, report)
    episodes = max(
        20, round(EPISODES["graphs" if pool.space.prefers_graphs else "vectors"] * min(budget, 3000.0) / 300)
    )
    sets = [_references(pool, seed + i) for i in range(_SETS[name])]
    arms = []
    for i, references in enumerate(sets):
        train, valid = (
            {d: pool.known(d, (*references, *pool.learn)) for d in devices}
            for devices in (pool.split.train, pool.split.valid)
        )
        arms += [(name, learner, seed + i, episodes, references, train, valid) for learner in LEARNERS]
    label = f"{name}: meta-learning"
    report(label, 0.4)
    states = run_arms(_trained, arms, progress=lambda share: report(label, 0.4 + 0.5 * share))
    found = []
    for i, references in enumerate(sets):
        made: dict[str, Any] = {}
        for learner, (state, _) in zip(LEARNERS, states[3 * i : 3 * i + 3], strict=True):
            made[learner] = _predictor(pool.space, references, learner, episodes, seed + i).load_state(state)
        found.append((references, made, states[3 * i][1]))
    return found


# -- comparison ----------------------------------------------------------------------------------


def _kept(pool: _Pool, device: str) -> list[Arch]:
    """Networks to ask of a device, without the fastest and the slowest tenth, as in the paper."""
    from hasten.cost.latency.tables import middle

    return middle(pool.known(device, pool.ask))


def _adapted(pool: _Pool, device: str, predictor: LatencyPredictor[Arch]) -> AdaptedLatency[Arch]:
    return predictor.adapt(pool.known(device, predictor.references))


@lru_cache(maxsize=2)
def _compared(name: str, seed: int, budget: float, report: Any) -> dict[str, dict[str, float]]:
    """Held-out device -> method -> Spearman at ten measurements, a mean over sets of references."""
    from hasten.cost.latency.correlation import spearman
    from hasten.search.networks.latency_baselines import all_baselines

    pool = _pool(name, seed, budget, report)
    learned = _learned(name, seed, budget, report)
    known = [pool.tables.known(d) for d in pool.split.train]
    found: dict[str, dict[str, list[float]]] = {}
    for device in pool.split.test:
        asked = _kept(pool, device)
        truth = list(pool.known(device, asked).values())
        row = found.setdefault(device, {})
        for i, (references, predictors, _) in enumerate(learned):
            for learner, predictor in predictors.items():
                scores = _adapted(pool, device, predictor).scores(asked)
                row.setdefault(learner, []).append(spearman(scores, truth))
            for method, values in all_baselines(
                pool.space, pool.known(device, references), asked, known, seed + i
            ).items():
                row.setdefault(method, []).append(spearman(values, truth))
        if device in pool.measured.halves:
            place = {a: i for i, a in enumerate(pool.measured.archs)}
            halves = pool.measured.halves[device][[place[a] for a in asked]]
            row["noise ceiling"] = [spearman(halves[:, 0], halves[:, 1])]
    return {d: {m: statistics.mean(v) for m, v in row.items()} for d, row in found.items()}


_RIVALS = ("Meta-SGD", "MAML", "MLP", "GNN", "layer-wise sum", "FLOPs", "best proxy", "mean device + ridge")


def _means(name: str, experiment: Experiment) -> dict[str, float]:
    found = _compared(name, experiment.seed, experiment.paper_budget, experiment.run.progress)
    return {m: statistics.mean(row[m] for row in found.values()) for m in ("HELP", *_RIVALS)}


def _ranked(name: str, experiment: Experiment) -> Seen:
    """At least 0.9 on held-out devices; above Meta-SGD by 0.03, above a network trained on the ten alone by 0.2, and
    above all others."""
    found = _compared(name, experiment.seed, experiment.paper_budget, experiment.run.progress)
    means = _means(name, experiment)
    ours = means["HELP"]
    value = f"HELP {ours:.3f} on {len(found)} held-out devices; " + ", ".join(f"{m} {means[m]:.3f}" for m in _RIVALS)
    noise = {d: row["noise ceiling"] for d, row in found.items() if "noise ceiling" in row}
    lines = [
        f"{d}: HELP {row['HELP']:.3f}"
        + (f", two measurements of the same networks {noise[d]:.3f}" if d in noise else ", modelled")
        for d, row in found.items()
    ]
    pool = _pool(name, experiment.seed, experiment.paper_budget, experiment.run.progress)
    detail = (
        f"{len(pool.ask)} networks asked, without the fastest and slowest tenth; {len(pool.split.train)} devices "
        f"learned from; " + "; ".join(lines)
    )
    best = max(means[m] for m in _RIVALS)
    holds = ours >= 0.9 and ours > best and ours >= means["Meta-SGD"] + 0.03 and ours >= means["MLP"] + 0.2
    return Seen(value, holds, ours >= 0.85 and ours > best, detail)


@check("H1")
def _cells(experiment: Experiment) -> Seen:
    return _ranked("cell", experiment)


@check("H2")
def _chains(experiment: Experiment) -> Seen:
    return _ranked("chain", experiment)


_COUNTS = (10, 20, 50, 100, 200, 400)
Curve = dict[str, dict[int, float]]


@lru_cache(maxsize=1)
def _curves(seed: int, budget: float, report: Any) -> dict[str, Curve]:
    """``measured`` and ``modelled`` held-out devices: method -> measurements -> mean Spearman.

    Means are over the same devices at every count. Few networks are measured, so that those curves are short.
    """
    from hasten.cost.latency.correlation import spearman
    from hasten.search.networks.latency_baselines import of_one_device

    pool = _pool("chain", seed, budget, report)
    references, predictors, _ = _learned("chain", seed, budget, report)[0]
    found: dict[str, dict[str, dict[int, list[float]]]] = {"measured": {}, "modelled": {}}
    for number, device in enumerate(pool.split.test):
        kind = "measured" if device in pool.measured.halves else "modelled"
        report(f"learning curves: {device}", 0.9 + 0.01 * number)
        table = pool.known(device, pool.learn)
        order = [*references, *(a for a in table if a not in set(references))]
        asked = _kept(pool, device)
        truth = list(pool.known(device, asked).values())
        for count in (n for n in _COUNTS if n <= len(order)):
            used = order[:count]
            rows: dict[str, Any] = dict(of_one_device(pool.space, used, [table[a] for a in used], asked, seed))
            if count <= 50:
                rows["HELP"] = predictors["HELP"].adapt({a: table[a] for a in used}).scores(asked)
            for method, scores in rows.items():
                found[kind].setdefault(method, {}).setdefault(count, []).append(spearman(scores, truth))
    return {
        kind: {m: {n: statistics.mean(v) for n, v in row.items()} for m, row in methods.items()}
        for kind, methods in found.items()
        if methods
    }


def _needed(curve: Curve) -> dict[str, int | None]:
    """Measurements with which a predictor of one device reaches HELP's rank correlation at ten."""
    goal = curve["HELP"][_REFERENCES]
    return {m: next((n for n, v in sorted(row.items()) if v >= goal), None) for m, row in curve.items() if m != "HELP"}


@check("H3")
def _fewer(experiment: Experiment) -> Seen:
    """As the paper: a predictor of one device needs ninety times as many."""
    curves = _curves(experiment.seed, experiment.paper_budget, experiment.run.progress)
    lines, least, most = [], [], 0
    for kind, curve in curves.items():
        needed = _needed(curve)
        most = max(most, *(max(row) for row in curve.values()))
        least += [n or max(curve[m]) + 1 for m, n in needed.items()]
        reach = ", ".join(f"{m} at {n}" if n else f"{m} not at {max(curve[m])}" for m, n in needed.items())
        lines.append(f"{kind} devices: HELP {curve['HELP'][_REFERENCES]:.3f} at {_REFERENCES}, reached by {reach}")
    detail = "; ".join(
        f"{kind}, {m}: " + ", ".join(f"{n}: {v:.3f}" for n, v in row.items())
        for kind, curve in curves.items()
        for m, row in curve.items()
    )
    return Seen("; ".join(lines), min(least) >= 900, min(least) > _REFERENCES, detail)


@check("H4")
def _constrained(experiment: Experiment) -> Seen:
    """The largest of 3000 candidates that is predicted to be within a target, measured: hit within 10 %.

    Operations stand for accuracy, which nobody has for these networks. A machine that others use is faster or slower
    by now than when the target was read from it: how much, the reference networks beside tell, and the target moves.
    """
    from hasten.cost.latency.regimes import measure_regimes

    pool = _pool("chain", experiment.seed, experiment.paper_budget, experiment.run.progress)
    references, predictors, _ = _learned("chain", experiment.seed, experiment.paper_budget, experiment.run.progress)[0]
    rng = random.Random(experiment.seed + 7)
    candidates = list(dict.fromkeys(pool.space.sample(rng) for _ in range(3000)))
    macs = [pool.space.products(a) for a in candidates]
    hits, lines = [], []
    regimes = [r for r in _regimes()["test"] if r.name in pool.measured.halves]
    for regime in regimes:
        adapted = _adapted(pool, regime.name, predictors["HELP"])
        predicted = adapted.predict(candidates)
        known = sorted(pool.known(regime.name, pool.learn).values())
        targets = [known[round(q * (len(known) - 1))] for q in (0.3, 0.5, 0.7)]
        chosen = []
        for target in targets:
            within = [i for i, s in enumerate(predicted) if s <= target]
            if not within:
                within = [min(range(len(predicted)), key=lambda i: predicted[i])]
            chosen.append(candidates[max(within, key=lambda i: macs[i])])
        unique = list(dict.fromkeys((*chosen, *references)))
        experiment.run.progress(f"measuring what was found, {regime.name}", 0.95)
        seen = measure_regimes(pool.space.example, unique, [regime], **_TIMING).tables.known(regime.name)
        before = pool.known(regime.name, references)
        drift = statistics.median(seen[a] / s for a, s in before.items())
        off = [seen[arch] / (drift * target) - 1 for target, arch in zip(targets, chosen, strict=True)]
        hits += [abs(o) <= 0.1 for o in off]
        lines.append(
            f"{regime.name}: "
            + ", ".join(f"{o:+.0%} of {t * 1e3:.2f} ms" for o, t in zip(off, targets, strict=True))
            + f", the machine at {drift:.2f} of its time before"
        )
    value = f"{sum(hits)} of {len(hits)} targets met within 10 % on regimes never learned from; " + "; ".join(lines)
    return Seen(value, all(hits), sum(hits) > len(hits) / 2)


@check("H6")
def _cheaper(experiment: Experiment) -> Seen:
    """Seconds for a new device: ten networks and an adaptation, against every block of the space by itself, and
    against as many networks as a predictor of that device alone needs."""
    from hasten.cost.latency.regimes import Regime, time_regimes

    pool = _pool("chain", experiment.seed, experiment.paper_budget, experiment.run.progress)
    references, predictors, trained = _learned(
        "chain", experiment.seed, experiment.paper_budget, experiment.run.progress
    )[0]
    space, regime = pool.space, Regime()

    def timed(call: Callable[[], object]) -> float:
        begun = time.perf_counter()
        call()
        return time.perf_counter() - begun

    def measure(archs: Sequence[Arch]) -> None:
        for arch in archs:
            module, image = space.example(arch)
            time_regimes(module, image, [regime], **_TIMING)

    ten = timed(lambda: measure(references))
    adapting = timed(lambda: _adapted(pool, regime.name, predictors["HELP"]).scores(pool.ask))
    blocks = {}
    for chain in [(o,) * space.config.places for o in range(9)]:
        blocks.update({key: (make, shape) for key, make, shape in space.parts(chain)})

    def all_blocks() -> None:
        import torch

        for make, shape in blocks.values():
            time_regimes(make().eval(), torch.zeros(1, *shape), [regime], **_TIMING)

    table = timed(all_blocks)
    curve = _curves(experiment.seed, experiment.paper_budget, experiment.run.progress)["measured"]
    needed = [n for n in _needed(curve).values() if n]
    alone = min(needed, default=max(n for row in curve.values() for n in row))
    ours = ten + adapting
    ratio = table / ours
    value = (
        f"{_REFERENCES} networks and {adapting:.2f} s of adaptation: {ours:.2f} s; a table of {len(blocks)} blocks "
        f"{table:.2f} s ({ratio:.1f}x); a predictor of the device alone {'' if needed else 'over '}{alone} networks, "
        f"about {alone / _REFERENCES * ten:.1f} s; meta-learning took {trained:.0f} s once"
    )
    most = max(ratio, alone / _REFERENCES * ten / ours)
    return Seen(value, most >= 100, most > 1)
