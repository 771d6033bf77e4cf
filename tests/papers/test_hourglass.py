"""The checks of the Hourglass paper run end to end in a quick run, and a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.data import assets
from hasten.papers.experiment import Outcome

Quick = Callable[[str], dict[str, Outcome]]
Needed = Callable[[str], dict[str, float]]


def test_a_quick_run_runs_everything(quick: Quick) -> None:
    pytest.importorskip("PIL")
    if assets.cached("photographs") is None:
        pytest.skip("needs `hasten assets get photographs`")
    found = quick("hourglass")
    assert found.keys() == {"H1", "H2", "H3", "H4"}
    assert all(seen.seen for seen in found.values())


def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], needed: Needed) -> None:
    assert needed("hourglass") == {"H1": 120, "H2": 120}
    assert outcome("hourglass", "H3", budget=1499).verdict == "not judged: needs 1500 s"


def test_the_lift_need_not_be_stored(outcome: Callable[..., Outcome]) -> None:
    assert outcome("hourglass", "H4").verdict == "holds"
