"""Random instances are solvable by trying all, and a solver's energies are counted over the least."""

from __future__ import annotations

import math
import random

from hasten.search.codesign.assignment import assign, best_assignment
from hasten.search.codesign.random_assignments import NearBest, near_best, random_instance


def test_instances_are_small_and_their_own() -> None:
    rng = random.Random(0)
    drawn = [random_instance(rng) for _ in range(20)]
    for one in drawn:
        layers = sum(map(len, one.times))
        assert 6 <= layers <= 10
        assert [len(n) for n in one.times] == [len(n) for n in one.energies]
        assert max(map(len, one.times)) - min(map(len, one.times)) <= 1
        assert one.deadline > 0
    assert len({one.deadline for one in drawn}) == 20


def test_energies_are_counted_over_the_least() -> None:
    found = near_best({"usual": {}, "no restarts": {"restarts": 0, "pairs": False}}, 8, random.Random(3))
    rng = random.Random(3)
    ratios = []
    for one in [random_instance(rng) for _ in range(8)]:
        best = best_assignment(one.times, one.energies, one.deadline)
        ours = assign(one.times, one.energies, one.deadline)
        if ours.makespan <= one.deadline:
            ratios.append(ours.energy / best.energy)
    assert found.ratios["usual"] == ratios
    assert found.solved("no restarts") <= found.feasible <= 8
    assert all(r >= 1 - 1e-12 for row in found.ratios.values() for r in row)


def test_who_solves_none_has_no_mean() -> None:
    assert math.isnan(NearBest(3, {"none": []}).mean("none"))
    assert NearBest(3, {"some": [1.0, 1.5]}).mean("some") == 1.25
