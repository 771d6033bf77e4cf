"""The checks of the resistive liquid state machine run end to end in a quick run."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("resistive-lsm")
    assert found.keys() == {"R1", "R2", "R3", "R4", "R6"}
    assert "trained through time" in found["R1"].seen
    for part in ("instance pairs", "class pairs", "prototypes", "shuffled pairs", "trained through time, contrastive"):
        assert part in found["R3"].seen
    assert "published 152.83x and 393.07x" in found["R4"].seen
    assert "5 % noise" in found["R6"].seen


def test_a_small_budget_does_not_judge(needed: Callable[[str], dict[str, float]]) -> None:
    assert needed("resistive-lsm") == {"R1": 120, "R2": 120, "R3": 240, "R6": 120}
