"""TurboViT's checks run end to end in a quick run."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("turbovit")
    assert found.keys() == {"T1", "T2", "T4"}
    kinds = ("generator", "genes only", "random", "optuna", "scaled")
    assert all(f"{kind} " in found["T4"].seen for kind in kinds)


def test_a_small_budget_does_not_judge(needed: Callable[[str], dict[str, float]]) -> None:
    assert needed("turbovit") == {"T4": 240}
