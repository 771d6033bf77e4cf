"""ALISA: simulations need no budget, measurements are not judged below theirs, and a quick run runs all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.experiment import Outcome


@pytest.mark.slow_except("A6")
@pytest.mark.parametrize("claim", ["A2", "A6"])
def test_simulations_need_no_budget(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("alisa", claim, budget=2).verdict in ("holds", "direction holds")


@pytest.mark.parametrize("claim", ["A1", "A3", "A4", "A5"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("alisa", claim, budget=2).verdict == "not judged: needs 60 s"


@pytest.mark.parametrize("claim", ["A1", "A2", "A4"])
def test_a_quick_run(outcome: Callable[..., Outcome], claim: str) -> None:
    found = outcome("alisa", claim, length="quick")
    assert found.verdict == "not judged: quick run"
    if claim == "A1":
        assert "tokens equal" in found.seen
    if claim == "A2":
        assert "measured here" in found.detail
