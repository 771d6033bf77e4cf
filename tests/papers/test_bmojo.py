"""B'MOJO's checks run end to end on a small budget."""

from __future__ import annotations

import pytest

from hasten.papers.bmojo import paper
from hasten.papers.card import Context


@pytest.mark.parametrize("claim", ["J1", "J2", "J3", "J4"])
def test_a_small_budget_does_not_judge(claim: str) -> None:
    assert "too short to judge" in paper.checks[claim](Context(budget=1)).value


def test_special_cases_are_exact() -> None:
    assert paper.checks["J5"](Context()).holds
