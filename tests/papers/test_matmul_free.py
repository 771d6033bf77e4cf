"""The checks of the MatMul-free model run end to end in a quick run, and a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.experiment import Outcome

Quick = Callable[[str], dict[str, Outcome]]
Needed = Callable[[str], dict[str, float]]


def test_a_quick_run_runs_everything(quick: Quick) -> None:
    found = quick("matmul-free")
    assert found.keys() == {"B1", "B2", "B3", "B4", "B5", "B6", "B7"}
    assert all(seen.seen for seen in found.values())


@pytest.mark.parametrize(("claim", "needs"), [("B2", 1500), ("B3", 30), ("B5", 30)])
def test_a_small_budget_does_not_run(outcome: Callable[..., Outcome], claim: str, needs: int) -> None:
    assert outcome("matmul-free", claim, budget=needs - 1).verdict == f"not judged: needs {needs} s"


def test_a_small_budget_does_not_judge(needed: Needed) -> None:
    assert needed("matmul-free") == {"B1": 120, "B7": 120}


def test_memory_of_the_largest_size(outcome: Callable[..., Outcome]) -> None:
    seen = outcome("matmul-free", "B4")
    assert seen.verdict == "direction holds"  # half of the claim: its latency is not measured
    assert "3.2" in seen.seen
    assert outcome("matmul-free", "B6").verdict == "direction holds"
