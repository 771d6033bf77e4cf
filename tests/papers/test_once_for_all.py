"""The checks of Once-for-All: the exact ones, a quick run of all, and a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.checks import once_for_all
from hasten.papers.experiment import DIRECTION, FAILS, HOLDS, Length, Outcome, Runner, shared
from hasten.spaces.once_for_all import Corners


def test_the_count_is_exact(outcome: Callable[..., Outcome]) -> None:
    seen = outcome("once-for-all", "c3")
    assert seen.verdict == "holds"
    assert "2.176e+19" in seen.seen


@pytest.mark.slow
def test_hours(outcome: Callable[..., Outcome]) -> None:
    assert outcome("once-for-all", "c6").verdict != "does not hold"


@pytest.mark.parametrize("claim", ["c1", "c2", "c7", "c8"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("once-for-all", claim, budget=2).verdict == "not judged: needs 300 s"


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("once-for-all")
    assert {o.verdict for o in found.values()} == {"not judged: quick run"}
    assert "Kendall's tau" in found["c7"].seen


@pytest.mark.parametrize(
    ("length", "gain", "verdict"),
    [("long", 1.5, HOLDS), ("long", 0.4, DIRECTION), ("normal", 1.5, DIRECTION), ("long", -0.5, FAILS)],
)
def test_one_seed_says_the_direction_at_most(
    monkeypatch: pytest.MonkeyPatch, length: Length, gain: float, verdict: str
) -> None:
    kinds = {"shrinking": [80.0 + gain] * 8, "joint": [80.0] * 8, "small": [80.0] * 4, "large": [80.0] * 4}
    arms = {kind: [Corners(row, None)] for kind, row in kinds.items()}
    monkeypatch.setattr(once_for_all, "_arms", shared()(lambda experiment: arms))
    assert Runner("once-for-all", vars(once_for_all), length=length).run("c2").verdict == verdict
