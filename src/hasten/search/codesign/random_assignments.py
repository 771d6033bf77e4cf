"""Random assignments small enough for the best one to be known: how near to it a solver with some settings gets."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hasten.search.codesign.assignment import Table, assign, best_assignment, makespan


@dataclass(frozen=True)
class AssignmentInstance:
    """Times and energies of layers on units, network -> layer -> unit, and the time all shall be done by."""

    times: Table
    energies: Table
    deadline: float


def random_instance(rng: random.Random) -> AssignmentInstance:
    """Six to ten layers of one to three networks on two or three units, each of 1 to 10 in time and in energy.

    The deadline is 0.6 to 1.1 of the time that is taken with every layer where it is fastest.
    """
    units, networks = rng.choice((2, 3)), rng.choice((1, 2, 3))
    count = rng.randint(6, 8 if units == 3 else 10)
    lengths = [count // networks + (n < count % networks) for n in range(networks)]
    times, energies = ([[[rng.uniform(1, 10) for _ in range(units)] for _ in range(n)] for n in lengths] for _ in "te")
    fastest = [[row.index(min(row)) for row in network] for network in times]
    return AssignmentInstance(times, energies, rng.uniform(0.6, 1.1) * makespan(times, fastest))


@dataclass(frozen=True)
class NearBest:
    """What a solver makes of instances.

    Args:
        feasible: instances that some assignment solves, by trying all in all orders.
        ratios: settings -> its energy over the least, of each feasible instance that it solves.
    """

    feasible: int
    ratios: dict[str, list[float]]

    def solved(self, name: str) -> int:
        """Instances that the settings of that name solve."""
        return len(self.ratios[name])

    def mean(self, name: str) -> float:
        """Its mean ratio of energies; NaN where it solves none."""
        return statistics.mean(self.ratios[name]) if self.ratios[name] else math.nan


def near_best(settings: Mapping[str, Mapping[str, Any]], count: int, rng: random.Random) -> NearBest:
    """`assign` with each of some settings beside the best of all placements in all orders, on random instances.

    Args:
        settings: name -> options of `assign`.
        count: instances, feasible or not.
        rng: of the instances.
    """
    ratios: dict[str, list[float]] = {name: [] for name in settings}
    feasible = 0
    for _ in range(count):
        one = random_instance(rng)
        best = best_assignment(one.times, one.energies, one.deadline)
        if best.makespan > one.deadline:
            continue
        feasible += 1
        for name, options in settings.items():
            ours = assign(one.times, one.energies, one.deadline, **options)
            if ours.makespan <= one.deadline:
                ratios[name].append(ours.energy / best.energy)
    return NearBest(feasible, ratios)
