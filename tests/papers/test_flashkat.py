"""FlashKAT's checks run end to end in a quick run, and a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.data import assets
from hasten.kernels import native
from hasten.papers.experiment import Outcome

Quick = Callable[[str], dict[str, Outcome]]
Needed = Callable[[str], dict[str, float]]


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
def test_a_quick_run_runs_everything(quick: Quick) -> None:
    if assets.cached("mnist") is None:
        pytest.skip("needs `hasten assets get mnist`")
    found = quick("flashkat")
    assert found.keys() == {"K1", "K2", "K3", "K4", "K5", "K6", "K7"}
    assert all(seen.seen for seen in found.values())


@pytest.mark.parametrize("claim", ["K1", "K3", "K4", "K6"])
def test_a_small_budget_does_not_run(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("flashkat", claim, budget=29).verdict == "not judged: needs 30 s"


def test_a_small_budget_does_not_judge(needed: Needed) -> None:
    assert needed("flashkat") == {"K2": 120, "K5": 120}


def test_sizes_are_exact(outcome: Callable[..., Outcome]) -> None:
    assert outcome("flashkat", "K7").verdict == "holds"
