"""The checks of S5 in reinforcement learning run end to end on a small budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.experiment import Outcome


@pytest.mark.parametrize("claim", ["S1", "S2", "S3", "S5"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("s5-rl", claim, budget=1).verdict.startswith("not judged: needs ")


@pytest.mark.parametrize("claim", ["S4", "S6"])
def test_long_checks_ask_for_their_budget(outcome: Callable[..., Outcome], claim: str) -> None:
    assert "--budget 1500" in outcome("s5-rl", claim, budget=300).verdict
