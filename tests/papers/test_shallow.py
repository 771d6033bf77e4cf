"""The checks of deep networks made shallow run end to end in a quick run."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("shallow")
    assert found.keys() == {"H1", "H3", "H4"}
    assert "Q 1 to 3 (depth 8, width 8, 1.21)" in found["H1"].seen
    assert "kernel 5" in found["H3"].seen
    assert "every two" in found["H4"].seen
