"""NASAIC's checks: the mapping heuristic is judged by what it solves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hasten.papers.experiment import Outcome
from hasten.search.codesign import random_assignments
from hasten.search.codesign.assignment import Assignment

LATE, SOON = (Assignment(((0,),), at, 1.0) for at in (float("inf"), 0.0))


@pytest.mark.parametrize(
    ("best", "ours", "verdict"),
    [
        (SOON, LATE, "does not hold"),  # of what is not solved no energy is near the least
        (SOON, SOON, "holds"),
        (LATE, LATE, "not judged: nothing to compare with"),
    ],
)
def test_nothing_solved_is_nothing_seen(
    best: Assignment, ours: Assignment, verdict: str, outcome: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def best_assignment(*given: Any) -> Assignment:
        return best

    def assign(*given: Any, **settings: Any) -> Assignment:
        return ours

    monkeypatch.setattr(random_assignments, "best_assignment", best_assignment)
    monkeypatch.setattr(random_assignments, "assign", assign)
    assert outcome("nasaic", "hap", budget=3600).verdict == verdict


def test_some_solved_near_the_least_is_the_direction(
    outcome: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = iter(range(10**6))
    monkeypatch.setattr(random_assignments, "best_assignment", lambda *given: SOON)
    monkeypatch.setattr(random_assignments, "assign", lambda *given, **settings: SOON if next(tries) % 3 else LATE)
    assert outcome("nasaic", "hap", budget=3600).verdict == "direction holds"
