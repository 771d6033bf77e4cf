"""The checks of the MatMul-free model run end to end on a small budget."""

from __future__ import annotations

import pytest

from hasten.papers.card import Context
from hasten.papers.matmul_free import paper


@pytest.mark.parametrize("claim", ["B1", "B3", "B5", "B7"])
def test_a_small_budget_does_not_judge(claim: str) -> None:
    assert "too short to judge" in paper.checks[claim](Context(budget=1)).value


def test_memory_of_the_largest_size() -> None:
    seen = paper.checks["B4"](Context())
    assert seen.holds
    assert "3.2" in seen.value
    assert paper.checks["B6"](Context()).verdict == "direction holds"
