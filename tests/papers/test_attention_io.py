"""Attention-io's checks run end to end in a quick run; counts of random heads are judged at once."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome

Quick = Callable[[str], dict[str, Outcome]]


def test_a_quick_run_runs_everything(quick: Quick) -> None:
    found = quick("attention-io")
    assert found.keys() == {"A1", "A2", "A3", "A4", "A5"}
    assert all(seen.seen for seen in found.values())
    assert "0 are outside" in found["A1"].seen


def test_fast_products_move_no_fewer_words(outcome: Callable[..., Outcome]) -> None:
    assert outcome("attention-io", "A4").verdict == "direction holds"
