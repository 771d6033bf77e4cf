"""LowFormer's checks run end to end in a quick run, and its sizes are exact."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("lowformer")
    assert found.keys() == {"L1", "L2", "L3", "L4", "L5", "L6", "L6.task"}
    assert all(seen.seen for seen in found.values())
    assert "the paper's rule 16, 32, 64, 128" in found["L5"].seen


def test_sizes_are_exact(outcome: Callable[..., Outcome]) -> None:
    assert outcome("lowformer", "L1").verdict == "holds"
