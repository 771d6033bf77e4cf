"""Mamba's checks run end to end on a small budget, and say so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.experiment import Outcome


@pytest.mark.parametrize("claim", ["M1", "M2", "M4", "M6"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("mamba", claim, budget=0.5).verdict == f"not judged: needs {30 if claim == 'M6' else 100} s"


def test_counts_are_exact(outcome: Callable[..., Outcome]) -> None:
    assert outcome("mamba", "M8").verdict == "holds"


def test_the_long_check_asks_for_its_budget(outcome: Callable[..., Outcome]) -> None:
    assert "give --budget 1500" in outcome("mamba", "M3", budget=300).verdict
