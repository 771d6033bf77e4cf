"""A device that a predictor was adapted to by a few measurements: targets met there, and what knowing it costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hasten.cost.latency.predictor import AdaptedLatency
from hasten.cost.latency.regimes import Regime, time_regimes
from hasten.cost.latency.tables import Arch
from hasten.search.networks.architecture_space import measured_latencies
from hasten.search.networks.unseen_devices import DevicePool, Learned, Space


def largest_within(
    space: Space, adapted: AdaptedLatency[Arch], candidates: Sequence[Arch], limits: Sequence[float]
) -> list[Arch]:
    """For each limit in seconds the candidate with the most products of those predicted within it; the one predicted
    fastest where none is."""
    predicted = adapted.predict(candidates)
    products = [space.products(a) for a in candidates]
    chosen = []
    for limit in limits:
        within = [i for i, s in enumerate(predicted) if s <= limit]
        within = within or [min(range(len(predicted)), key=lambda i: predicted[i])]
        chosen.append(candidates[max(within, key=lambda i: products[i])])
    return chosen


def measured_against(
    pool: DevicePool, regime: Regime, chosen: Sequence[Arch], targets: Sequence[float], references: Sequence[Arch],
    **timing: Any,
) -> tuple[list[float], float]:  # fmt: skip
    """How far chosen networks, measured now, are from their targets, and the machine's time over that of before.

    A machine that others use is faster or slower by now than when the target was read from it: how much, the reference
    networks beside tell, and the targets move with it.

    Args:
        pool: with the measurements of before.
        regime: to measure in.
        chosen, targets: networks, and the seconds that each should take.
        references: measured before.
        timing: options of `measure_regimes`.
    """
    unique = list(dict.fromkeys((*chosen, *references)))
    seen = measured_latencies(pool.space, unique, [regime], **timing).tables.known(regime.name)
    drift = statistics.median(seen[a] / s for a, s in pool.known(regime.name, references).items())
    return [seen[arch] / (drift * t) - 1 for t, arch in zip(targets, chosen, strict=True)], drift


def seconds_to_measure(space: Space, archs: Sequence[Arch], regime: Regime, **timing: Any) -> float:
    """Wall-clock seconds to build and measure networks, with options of `time_regimes`."""
    begun = time.perf_counter()
    for arch in archs:
        time_regimes(*space.example(arch), [regime], **timing)
    return time.perf_counter() - begun


def seconds_of_part_table(space: Space, archs: Sequence[Arch], regime: Regime, **timing: Any) -> tuple[float, int]:
    """Wall-clock seconds to build and measure every different part of networks by itself, and the number of parts."""
    parts = {key: (make, shape) for arch in archs for key, make, shape in space.parts(arch)}
    begun = time.perf_counter()
    for make, shape in parts.values():
        time_regimes(make().eval(), torch.zeros(1, *shape), [regime], **timing)
    return time.perf_counter() - begun, len(parts)


@dataclass(frozen=True)
class TargetsMet:
    """Networks chosen for latency targets on one device, and measured there.

    Args:
        targets: seconds.
        off: how far each network is from its target: 0.1 is a tenth over.
        drift: the machine's time over that of before, which the targets have moved with.
    """

    targets: tuple[float, ...]
    off: tuple[float, ...]
    drift: float

    def hits(self, slack: float = 0.1) -> list[bool]:
        """Whether each is within this share of its target."""
        return [abs(o) <= slack for o in self.off]


def targets_met(
    pool: DevicePool, learned: Learned, candidates: Sequence[Arch], shares: Sequence[float] = (0.3, 0.5, 0.7), *,
    learner: str = "HELP", progress: Callable[[str], None] = lambda regime: None, **timing: Any,
) -> dict[str, TargetsMet]:  # fmt: skip
    """Held-out regime of this machine -> the largest candidates predicted within its targets, measured.

    Args:
        pool: devices and networks.
        learned: predictors, and the references they are adapted by.
        candidates: networks to choose from.
        shares: of the networks known on a regime, in order of latency, at which its targets are.
        learner: whose predictor chooses.
        progress: told the regime whose networks are measured.
        timing: options of `measure_regimes`.
    """
    found: dict[str, TargetsMet] = {}
    for regime in (r for r in pool.measured.regimes if r.name in pool.test):
        known = sorted(pool.known(regime.name, pool.learn).values())
        targets = [known[round(q * (len(known) - 1))] for q in shares]
        adapted = pool.adapted(regime.name, learned.predictors[learner])
        chosen = largest_within(pool.space, adapted, candidates, targets)
        progress(regime.name)
        off, drift = measured_against(pool, regime, chosen, targets, learned.references, **timing)
        found[regime.name] = TargetsMet(tuple(targets), tuple(off), drift)
    return found


@dataclass(frozen=True)
class NewDeviceCost:
    """Wall-clock seconds for a new device.

    Args:
        references: networks that are measured for a predictor.
        measuring: them.
        adapting: the predictor, until all networks that are asked have their scores.
        table: building and measuring every different part by itself instead.
        parts: their number.
    """

    references: int
    measuring: float
    adapting: float
    table: float
    parts: int

    @property
    def predictor(self) -> float:
        """Measuring and adapting."""
        return self.measuring + self.adapting

    @property
    def network(self) -> float:
        """Measuring one network."""
        return self.measuring / self.references


def new_device_cost(
    pool: DevicePool, learned: Learned, regime: Regime, tabled: Iterable[Arch], *, learner: str = "HELP", **timing: Any
) -> NewDeviceCost:
    """What a held-out regime costs a predictor, beside a table of parts.

    Args:
        pool, learned, learner: as of `targets_met`.
        regime: of this machine.
        tabled: networks that have every part of the space.
        timing: options of `time_regimes`.
    """
    measuring = seconds_to_measure(pool.space, learned.references, regime, **timing)
    begun = time.perf_counter()
    pool.adapted(regime.name, learned.predictors[learner]).scores(pool.ask)
    adapting = time.perf_counter() - begun
    table, parts = seconds_of_part_table(pool.space, list(tabled), regime, **timing)
    return NewDeviceCost(len(learned.references), measuring, adapting, table, parts)
