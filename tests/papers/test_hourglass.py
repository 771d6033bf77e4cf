"""The checks of the Hourglass paper run end to end on a small budget."""

from __future__ import annotations

import pytest

from hasten.data import assets
from hasten.papers.card import Context
from hasten.papers.hourglass import paper


@pytest.mark.parametrize("claim", ["H1", "H2"])
def test_a_small_budget_does_not_judge(claim: str) -> None:
    pytest.importorskip("PIL")
    if assets.cached("photographs") is None:
        pytest.skip("needs `hasten assets get photographs`")
    assert "too short to judge" in paper.checks[claim](Context(budget=1)).value


def test_the_lift_need_not_be_stored() -> None:
    assert paper.checks["H4"](Context()).holds
