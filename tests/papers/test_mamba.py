"""Mamba's checks run end to end in a quick run, and a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.kernels import native
from hasten.papers.experiment import Outcome

Quick = Callable[[str], dict[str, Outcome]]
Needed = Callable[[str], dict[str, float]]


def test_a_quick_run_runs_everything(quick: Quick) -> None:
    found = quick("mamba")
    assert found.keys() == {"M1", "M2", "M3", "M4", "M6", "M7", "M8"}
    assert all(seen.seen for claim, seen in found.items() if claim != "M7" or native() is not None)


@pytest.mark.parametrize(("claim", "needs"), [("M6", 30), ("M3", 1500)])
def test_a_small_budget_does_not_run(outcome: Callable[..., Outcome], claim: str, needs: int) -> None:
    assert outcome("mamba", claim, budget=needs - 1).verdict == f"not judged: needs {needs} s"


def test_a_small_budget_does_not_judge(needed: Needed) -> None:
    assert needed("mamba") == {"M1": 120, "M2": 120, "M4": 120}


def test_counts_are_exact(outcome: Callable[..., Outcome]) -> None:
    assert outcome("mamba", "M8").verdict == "holds"
