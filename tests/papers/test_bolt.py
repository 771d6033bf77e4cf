"""BOLT's checks run end to end in a quick run; those of its bounds need no extra."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("bolt")
    assert found.keys() == {"B3", "B3.embedding", "B4", "B5", "B6", "B7", "leak", "rate"}
    assert all(found[claim].seen for claim in ("B4", "B5", "B6"))
    assert "with one choice" in found["B4"].seen
