"""LongGen: sizes need no budget, what is measured is not judged below its own, and a quick run runs all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.kernels import native
from hasten.papers.experiment import Outcome

needs_kernels = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")


def test_models_of_hardware_need_no_budget(outcome: Callable[..., Outcome]) -> None:
    assert outcome("longgen", "G2", budget=2).verdict in ("holds", "direction holds")


@needs_kernels
@pytest.mark.parametrize("claim", ["G1", "G3", "G5", "G6"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("longgen", claim, budget=2).verdict.startswith("not judged: needs ")


@needs_kernels
@pytest.mark.parametrize("claim", ["G1", "G3", "G4", "G5"])
def test_a_quick_run(outcome: Callable[..., Outcome], claim: str) -> None:
    found = outcome("longgen", claim, length="quick")
    assert found.verdict == "not judged: quick run"
    assert found.seen
