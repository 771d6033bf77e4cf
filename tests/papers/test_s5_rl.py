"""The checks of S5 in reinforcement learning run end to end in a quick run, and a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.experiment import Outcome


@pytest.mark.parametrize("claim", ["S1", "S2", "S3", "S4", "S5", "S6"])
def test_a_quick_run_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    seen = outcome("s5-rl", claim, length="quick")
    assert seen.verdict == "not judged: quick run"
    assert seen.seen


@pytest.mark.parametrize(
    ("claim", "needs"), [("S1", 30), ("S2", 30), ("S3", 120), ("S5", 120), ("S4", 1500), ("S6", 1500)]
)
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str, needs: int) -> None:
    assert outcome("s5-rl", claim, budget=needs - 1).verdict == f"not judged: needs {needs} s"
