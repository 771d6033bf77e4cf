"""Mamba's checks run end to end in a quick run, and a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.kernels import native
from hasten.papers.experiment import Outcome


@pytest.mark.parametrize("claim", ["M1", "M2", "M3", "M4", "M6", "M7", "M8"])
def test_a_quick_run_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    if claim == "M7" and native() is None:
        pytest.skip("the compiled kernels are not installed")
    seen = outcome("mamba", claim, length="quick")
    assert seen.verdict == "not judged: quick run"
    assert seen.seen


@pytest.mark.parametrize(("claim", "needs"), [("M2", 120), ("M6", 30), ("M3", 1500)])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str, needs: int) -> None:
    assert outcome("mamba", claim, budget=0.5).verdict == f"not judged: needs {needs} s"


def test_counts_are_exact(outcome: Callable[..., Outcome]) -> None:
    assert outcome("mamba", "M8").verdict == "holds"
