"""The checks of S5 in reinforcement learning run end to end in a quick run, and a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.experiment import Outcome

Quick = Callable[[str], dict[str, Outcome]]
Needed = Callable[[str], dict[str, float]]


def test_a_quick_run_runs_everything(quick: Quick) -> None:
    found = quick("s5-rl")
    assert found.keys() == {"S1", "S2", "S3", "S4", "S5", "S6"}
    assert all(seen.seen for seen in found.values())


@pytest.mark.parametrize(
    ("claim", "needs"), [("S1", 30), ("S2", 30), ("S3", 120), ("S5", 120), ("S4", 1500), ("S6", 1500)]
)
def test_a_small_budget_does_not_run(outcome: Callable[..., Outcome], claim: str, needs: int) -> None:
    assert outcome("s5-rl", claim, budget=needs - 1).verdict == f"not judged: needs {needs} s"
