"""EAS' checks run end to end in a quick run."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("eas")
    assert found.keys() == {"c1", "c3", "c4", "c5", "c6"}
    assert "sequences of nine moves" in found["c1"].seen
    assert "DenseNet-BC 190-40's 25.62 M" in found["c3"].seen
    assert all(f"{kind} " in found["c4"].seen for kind in ("controller", "random"))
    assert "12,400 epochs beside 640,000: 52x fewer" in found["c6"].seen


def test_a_small_budget_does_not_judge(needed: Callable[[str], dict[str, float]]) -> None:
    assert needed("eas") == {"c4": 240, "c5": 120}
