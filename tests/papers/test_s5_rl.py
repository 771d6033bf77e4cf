"""The checks of S5 in reinforcement learning run end to end on a small budget."""

from __future__ import annotations

import pytest

from hasten.errors import HastenError
from hasten.papers.card import Context
from hasten.papers.s5_rl import paper


@pytest.mark.parametrize("claim", ["S1", "S2", "S3", "S5"])
def test_a_small_budget_does_not_judge(claim: str) -> None:
    assert "too short to judge" in paper.checks[claim](Context(budget=1)).value


@pytest.mark.parametrize("claim", ["S4", "S6"])
def test_long_checks_ask_for_their_budget(claim: str) -> None:
    with pytest.raises(HastenError, match="--budget 1500"):
        paper.checks[claim](Context(budget=300))
