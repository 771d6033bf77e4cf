"""PC-DARTS' checks run end to end in a quick run, and its sizes are exact."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("pc-darts")
    assert found.keys() == {"c1", "c2", "c3", "c4", "c5", "c6", "c7"}
    assert "300.3 M and 56.6 M: 5.3x" in found["c2"].seen
    assert "PC and EN" in found["c5"].seen
    assert "K=8" in found["c6"].seen


def test_sizes_are_exact(outcome: Callable[..., Outcome]) -> None:
    assert outcome("pc-darts", "c1").verdict == "holds"
    assert outcome("pc-darts", "c3").verdict == "holds"
