"""B'MOJO's checks run end to end in a quick run, and a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome

Quick = Callable[[str], dict[str, Outcome]]
Needed = Callable[[str], dict[str, float]]


def test_a_quick_run_runs_everything(quick: Quick) -> None:
    found = quick("bmojo")
    assert found.keys() == {"J1", "J2", "J3", "J4", "J5"}
    assert all(seen.seen for seen in found.values())


def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], needed: Needed) -> None:
    assert needed("bmojo") == {"J1": 120, "J2": 120, "J4": 120}
    assert outcome("bmojo", "J3", budget=29).verdict == "not judged: needs 30 s"


def test_special_cases_are_exact(outcome: Callable[..., Outcome]) -> None:
    assert outcome("bmojo", "J5").verdict == "holds"
