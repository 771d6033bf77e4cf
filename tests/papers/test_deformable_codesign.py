"""The checks of deformable convolution's co-design run end to end in a quick run, and the detector's size is exact."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("deformable-codesign")
    assert found.keys() == {"D1", "D2", "D2.scenes", "D4", "D5", "D5.rounded"}
    assert all(seen.seen for seen in found.values())
    assert "misses 0 reads" in found["D4"].seen
    assert "has 2,009,346 parameters" in found["D5"].seen
