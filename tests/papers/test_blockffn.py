"""BlockFFN's checks run end to end in a quick run, and a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.kernels import native
from hasten.papers.experiment import Outcome

Quick = Callable[[str], dict[str, Outcome]]
Needed = Callable[[str], dict[str, float]]


def test_a_quick_run_runs_everything(quick: Quick) -> None:
    found = quick("blockffn")
    assert found.keys() == {"F1", "F2", "F3", "F4", "F5", "F6", "F7"}
    assert all(seen.seen for claim, seen in found.items() if claim != "F5" or native() is not None)


def test_a_small_budget_does_not_judge(needed: Needed) -> None:
    assert needed("blockffn") == {"F1": 120, "F2": 120, "F3": 120, "F4": 120, "F6": 120, "F7": 120}


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
def test_the_kernel_check_compares_with_the_dense_layer(outcome: Callable[..., Outcome]) -> None:
    assert "x the dense layer" in outcome("blockffn", "F5", budget=1).seen
