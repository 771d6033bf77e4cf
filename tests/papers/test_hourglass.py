"""The checks of the Hourglass paper run end to end on a small budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.data import assets
from hasten.papers.experiment import Outcome


@pytest.mark.parametrize("claim", ["H1", "H2"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    pytest.importorskip("PIL")
    if assets.cached("photographs") is None:
        pytest.skip("needs `hasten assets get photographs`")
    assert outcome("hourglass", claim, budget=1).verdict.startswith("not judged: needs ")


def test_the_lift_need_not_be_stored(outcome: Callable[..., Outcome]) -> None:
    assert outcome("hourglass", "H4").verdict == "holds"
