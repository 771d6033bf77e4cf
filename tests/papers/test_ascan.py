"""AsCAN's checks run end to end in a quick run."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("ascan")
    assert found.keys() == {"A2", "A2.unet", "A3"}
    assert "reversed TT|TC|CC loss" in found["A2.unet"].seen
    assert all(f"{name} " in found["A2"].seen for name in ("asymmetric", "symmetric", "reversed", "convolutions"))


def test_a_small_budget_does_not_judge(needed: Callable[[str], dict[str, float]]) -> None:
    assert needed("ascan") == {"A2": 240, "A2.unet": 240, "A3": 60}
