"""What a latency predictor says of devices that it never learned from: devices and networks parted, ranks, targets.

Networks are `ArchitectureSpace.numbers` wherever tables know them by those; the spaces asked here have no other keys.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from hasten.cost.chips.dataflow import SubAccelerator
from hasten.cost.latency.correlation import spearman
from hasten.cost.latency.meta_settings import quick_settings
from hasten.cost.latency.modelled import ArrayDevice, EstimatedDevice
from hasten.cost.latency.predictor import AdaptedLatency, LatencyPredictor
from hasten.cost.latency.regimes import MeasuredRegimes, Regime
from hasten.cost.latency.tables import Arch, LatencyTables, middle
from hasten.cost.roofline import Schedule
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.search.networks.architecture_space import ArchitectureSpace, latency_predictor
from hasten.search.networks.latency_baselines import all_baselines, of_one_device

Space: TypeAlias = ArchitectureSpace[Any]
AnyDevice: TypeAlias = Regime | EstimatedDevice | ArrayDevice
Curve: TypeAlias = dict[str, dict[int, float]]
"""Method -> measurements of a device -> rank correlation."""


@dataclass(frozen=True)
class Roles:
    """Devices to learn from, to choose the best state by, and to hold out; regimes of this machine are measured.

    Raises:
        HastenError: a device in two roles, or twice.
    """

    train: tuple[AnyDevice, ...]
    valid: tuple[AnyDevice, ...]
    test: tuple[AnyDevice, ...]

    def __post_init__(self) -> None:
        names = [d.name for d in self.all]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise HastenError(f"{', '.join(twice)} has two roles: a device is learned from or held out")

    @property
    def all(self) -> tuple[AnyDevice, ...]:
        return (*self.train, *self.valid, *self.test)

    @property
    def regimes(self) -> list[Regime]:
        """Those of this machine."""
        return [d for d in self.all if isinstance(d, Regime)]

    @property
    def modelled(self) -> list[EstimatedDevice | ArrayDevice]:
        """Those priced by a model."""
        return [d for d in self.all if not isinstance(d, Regime)]


def estimated(name: str, batch: int = 1, schedule: Schedule = "fused") -> EstimatedDevice:
    """A device of the catalogue."""
    return EstimatedDevice(load_device(name), batch, schedule)


def array(dataflow: str, elements: int, bandwidth: float) -> ArrayDevice:
    """A small array of this dataflow, of so many elements, fed with GB/s."""
    return ArrayDevice(SubAccelerator(dataflow, elements, bandwidth))


def this_machine_and_others() -> Roles:
    """This machine in nine regimes, and fourteen modelled devices, from data sheets and dataflow equations.

    Held out: a number format and an instruction set that no other regime has; an FPGA, a small board, a small array.
    """
    fast: tuple[AnyDevice, ...] = (
        Regime(),
        Regime(layout="channels-last"),
        Regime(batch=4),
        Regime(batch=4, layout="channels-last", program="folded"),
        Regime(threads=2, batch=4),
    )
    known = (
        estimated("rtx4090", 64, "eager"),
        estimated("v100", 64),
        estimated("orin", 64, "eager"),
        estimated("cpu2", 1, "eager"),
        estimated("cpu2", 64),
        estimated("pi5", 64, "eager"),
        estimated("m2"),
        array("dla", 1024, 8),
        array("shi", 64, 2),
    )
    held_out = (
        Regime(dtype="bf16", batch=4, layout="channels-last"),
        Regime(isa="sse4.1"),
        Regime(batch=4, isa="sse4.1"),
        estimated("u280", 64),
        estimated("pi5"),
        array("rs", 168, 1),
    )
    return Roles((*fast, *known), (Regime(isa="avx2"), estimated("h100", 64), array("rs", 1024, 16)), held_out)


def few_roles() -> Roles:
    """A device or two in each role, in one number format and instruction set: enough to run everything once."""
    held_out = (Regime(batch=2), estimated("pi5", 1, "fused"))
    return Roles((Regime(), array("dla", 1024, 8)), (array("rs", 1024, 16),), held_out)


def well_measured(measured: MeasuredRegimes, share: float = 0.6) -> LatencyTables:
    """Tables of the regimes with at least this share of the networks of the one with the most.

    With several threads a busy machine gets to few networks: such a regime is no device then.
    """
    tables = measured.tables
    counts = {d: len(tables.known(d)) for d in tables}
    return tables.only([d for d in tables if counts[d] >= share * max(counts.values())])


def measured_everywhere(tables: LatencyTables) -> list[Arch]:
    """Networks that every device of the tables has."""
    whole = ~np.isnan(np.array(list(tables.seconds.values()))).any(0)
    return [a for a, w in zip(tables.archs, whole, strict=True) if w]


def comparable(measured: MeasuredRegimes, roles: Roles) -> int:
    """Networks that all well measured regimes have; 0 where a held-out one is not well measured."""
    tables = well_measured(measured)
    lacking = any(isinstance(d, Regime) and d.name not in tables.seconds for d in roles.test)
    return 0 if lacking else len(measured_everywhere(tables))


@dataclass(frozen=True)
class DevicePool:
    """What is known of a space: tables of all devices, and networks to learn from and to ask.

    Args:
        space: of the networks.
        tables: of all devices, measured and modelled.
        train, valid, test: names of devices.
        learn, ask: networks, none in both.
        measured: this machine.
    """

    space: Space
    tables: LatencyTables
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...]
    learn: tuple[Arch, ...]
    ask: tuple[Arch, ...]
    measured: MeasuredRegimes

    @classmethod
    def parted(
        cls, space: Space, roles: Roles, drawn: Sequence[Arch], measured: MeasuredRegimes, modelled: LatencyTables,
        learned: float = 0.5,
    ) -> DevicePool:  # fmt: skip
        """Networks that all regimes have are parted, ``learned`` of them to learn from; all others drawn are too."""
        tables = well_measured(measured)
        complete = measured_everywhere(tables)
        ask = tuple(complete[round(learned * len(complete)) :])
        left = set(ask)
        both = tables.joined(modelled)
        train, valid, test = (
            tuple(d.name for d in role if d.name in both.seconds) for role in (roles.train, roles.valid, roles.test)
        )
        return cls(space, both, train, valid, test, tuple(a for a in drawn if a not in left), ask, measured)

    def known(self, device: str, archs: Sequence[Arch]) -> dict[Arch, float]:
        """Network -> seconds of those of ``archs`` that the device has."""
        table = self.tables.known(device)
        return {a: table[a] for a in archs if a in table}

    def asked(self, device: str) -> list[Arch]:
        """Networks to ask of a device, without the fastest and the slowest tenth."""
        return middle(self.known(device, self.ask))

    def references(self, count: int, seed: int = 0) -> list[Arch]:
        """Networks that every device has, drawn from those to learn from."""
        ask = set(self.ask)
        free = [a for a in measured_everywhere(self.tables) if a not in ask]
        return random.Random(1000 + seed).sample(free, count)

    def to_learn(self, devices: Sequence[str], references: Sequence[Arch]) -> dict[str, dict[Arch, float]]:
        """Device -> network -> seconds: what a predictor is given."""
        return {d: self.known(d, (*references, *self.learn)) for d in devices}

    def adapted(self, device: str, predictor: LatencyPredictor[Arch]) -> AdaptedLatency[Arch]:
        """A predictor that knows the device's latencies on the references, and nothing else of it."""
        return predictor.adapt(self.known(device, predictor.references))


def meta_trained(
    space: Space, learner: str, episodes: int, seed: int, references: Sequence[Arch],
    train: Mapping[str, Mapping[Arch, float]], valid: Mapping[str, Mapping[Arch, float]],
) -> tuple[dict[str, Tensor], float]:  # fmt: skip
    """One meta-training by `quick_settings`, for a process of its own: the predictor's state, and seconds."""
    begun = time.perf_counter()
    made = latency_predictor(space, references, quick_settings(learner, episodes), seed).fit(train, valid)
    return made.state(), time.perf_counter() - begun


@dataclass(frozen=True)
class Learned:
    """Predictors of one set of references, by learner, and seconds of each one's meta-training."""

    references: tuple[Arch, ...]
    predictors: dict[str, LatencyPredictor[Arch]]
    seconds: dict[str, float]

    @classmethod
    def loaded(
        cls, space: Space, references: Sequence[Arch], episodes: int, seed: int,
        trained: Mapping[str, tuple[dict[str, Tensor], float]],
    ) -> Learned:  # fmt: skip
        """From what `meta_trained` gave each learner with the same arguments."""
        made = {
            learner: latency_predictor(space, references, quick_settings(learner, episodes), seed).load_state(state)
            for learner, (state, _) in trained.items()
        }
        return cls(tuple(references), made, {learner: seconds for learner, (_, seconds) in trained.items()})


def meta_trainings(
    pool: DevicePool, learners: Sequence[str], episodes: int, sets: Mapping[int, Sequence[Arch]]
) -> dict[str, tuple[Any, ...]]:
    """Name -> arguments of `meta_trained`: each learner with each set of references.

    Args:
        pool: devices and networks.
        learners: by name.
        episodes: of a meta-training.
        sets: seed -> references.
    """
    return {
        f"{learner} {seed}": (
            pool.space, learner, episodes, seed, references,
            pool.to_learn(pool.train, references), pool.to_learn(pool.valid, references),
        )
        for seed, references in sets.items()
        for learner in learners
    }  # fmt: skip


def learned_from(
    pool: DevicePool, learners: Sequence[str], episodes: int, sets: Mapping[int, Sequence[Arch]],
    trained: Mapping[str, tuple[dict[str, Tensor], float]],
) -> list[Learned]:  # fmt: skip
    """The predictors of each set of references, of what `meta_trainings` of the same arguments gave."""
    return [
        Learned.loaded(pool.space, references, episodes, seed, {name: trained[f"{name} {seed}"] for name in learners})
        for seed, references in sets.items()
    ]


def held_out_ranks(
    pool: DevicePool, learned: Sequence[Learned], seed: int = 0, *, steps: int = 200
) -> dict[str, dict[str, float]]:
    """Held-out device -> method -> Spearman at as many measurements as there are references, a mean over their sets.

    Of measured devices ``noise ceiling`` is that of two measurements of the same networks.

    Args:
        pool: devices and networks.
        learned: predictors, a set of references each.
        seed, steps: of the baselines that are trained.
    """
    known = [pool.tables.known(d) for d in pool.train]
    found: dict[str, dict[str, list[float]]] = {}
    for device in pool.test:
        asked = pool.asked(device)
        truth = list(pool.known(device, asked).values())
        row = found.setdefault(device, {})
        for i, one in enumerate(learned):
            for learner, predictor in one.predictors.items():
                row.setdefault(learner, []).append(spearman(pool.adapted(device, predictor).scores(asked), truth))
            measured = pool.known(device, one.references)
            for method, values in all_baselines(pool.space, measured, asked, known, seed + i, steps=steps).items():
                row.setdefault(method, []).append(spearman(values, truth))
        if device in pool.measured.halves:
            place = {a: i for i, a in enumerate(pool.measured.archs)}
            halves = pool.measured.halves[device][[place[a] for a in asked]]
            row["noise ceiling"] = [spearman(halves[:, 0], halves[:, 1])]
    return {d: {m: statistics.mean(v) for m, v in row.items()} for d, row in found.items()}


def learning_curves(
    pool: DevicePool, learned: Learned, counts: Sequence[int], seed: int = 0, *, learner: str = "HELP",
    most: int = 50, steps: int = 200, progress: Callable[[str, float], None] = lambda device, share: None,
) -> dict[str, Curve]:  # fmt: skip
    """``measured`` and ``modelled`` held-out devices: rank correlations by measurements, means over the devices.

    Few networks are measured, so that those curves are short; devices of a kind have the same counts.

    Args:
        pool: devices and networks.
        learned: the references come first, then other networks to learn from.
        counts: measurements; those that a device does not have are left out.
        seed: of the trained baselines.
        learner: its curve is beside theirs, up to ``most`` measurements.
        steps: of the trained baselines, up to 400 measurements; in proportion beyond, for as many passes.
        progress: told the device and the share done.
    """
    found: dict[str, dict[str, dict[int, list[float]]]] = {"measured": {}, "modelled": {}}
    for number, device in enumerate(pool.test):
        kind = "measured" if device in pool.measured.halves else "modelled"
        progress(device, number / len(pool.test))
        table = pool.known(device, pool.learn)
        first = set(learned.references)
        order = [*learned.references, *(a for a in table if a not in first)]
        asked = pool.asked(device)
        truth = list(pool.known(device, asked).values())
        for count in (n for n in counts if n <= len(order)):
            used = order[:count]
            long = max(steps, steps * count // 400)
            rows: dict[str, Any] = dict(
                of_one_device(pool.space, used, [table[a] for a in used], asked, seed, steps=long)
            )
            if count <= most:
                rows[learner] = learned.predictors[learner].adapt({a: table[a] for a in used}).scores(asked)
            for method, scores in rows.items():
                found[kind].setdefault(method, {}).setdefault(count, []).append(spearman(scores, truth))
    return {
        kind: {m: {n: statistics.mean(v) for n, v in row.items()} for m, row in methods.items()}
        for kind, methods in found.items()
        if methods
    }


def measurements_needed(curve: Curve, learner: str = "HELP") -> dict[str, int | None]:
    """Method -> measurements with which it reaches the learner's rank correlation at its fewest, or None."""
    own = curve[learner]
    goal = own[min(own)]
    return {m: next((n for n, v in sorted(row.items()) if v >= goal), None) for m, row in curve.items() if m != learner}


def reach(curve: Curve, learner: str = "HELP") -> str:
    """In words: the learner's rank correlation at its fewest measurements, and where each other method reaches it."""
    needed = measurements_needed(curve, learner).items()
    others = ", ".join(f"{m} at {n}" if n else f"{m} not at {max(curve[m])}" for m, n in needed)
    fewest = min(curve[learner])
    return f"{learner} {curve[learner][fewest]:.3f} at {fewest}, reached by {others}"


def reached_from(curves: Mapping[str, Curve], learner: str = "HELP") -> int:
    """Measurements from which any predictor of one device reaches the learner; one more than the most where none does.

    Args:
        curves: kind of device -> `Curve`.
        learner: whose curve is in each.
    """
    needed = [n for curve in curves.values() for n in measurements_needed(curve, learner).values() if n]
    return min(needed, default=1 + max(n for curve in curves.values() for row in curve.values() for n in row))
