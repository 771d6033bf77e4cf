"""Mamba's checks run end to end on a small budget, and say so."""

from __future__ import annotations

import pytest

from hasten.errors import HastenError
from hasten.papers.card import Context
from hasten.papers.mamba import paper


@pytest.mark.parametrize("claim", ["M1", "M2", "M4", "M6"])
def test_a_small_budget_does_not_judge(claim: str) -> None:
    seen = paper.checks[claim](Context(budget=0.5))
    assert "too short to judge" in seen.value
    assert seen.verdict == "does not hold"


def test_counts_are_exact() -> None:
    assert paper.checks["M8"](Context()).holds


def test_the_long_check_asks_for_its_budget() -> None:
    with pytest.raises(HastenError, match="give --budget 1500"):
        paper.checks["M3"](Context(budget=300))
