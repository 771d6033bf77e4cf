"""B'MOJO's checks run end to end on a small budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.experiment import Outcome


@pytest.mark.parametrize("claim", ["J1", "J2", "J3", "J4"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("bmojo", claim, budget=1).verdict.startswith("not judged: needs ")


def test_special_cases_are_exact(outcome: Callable[..., Outcome]) -> None:
    assert outcome("bmojo", "J5").verdict == "holds"
