"""Kinetics: what needs no budget is judged, what trains is not judged below its own, and a quick run runs all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.kernels import native
from hasten.papers.experiment import Outcome

needs_kernels = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")


def test_models_of_hardware_need_no_budget(outcome: Callable[..., Outcome]) -> None:
    assert outcome("kinetics", "K1", budget=2).verdict in ("holds", "direction holds")


@pytest.mark.parametrize(("claim", "seconds"), [("K3", 300), ("K4", 300), ("K5", 300), ("K6", 30)])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str, seconds: int) -> None:
    assert outcome("kinetics", claim, budget=2).verdict == f"not judged: needs {seconds} s"


@needs_kernels
@pytest.mark.parametrize("claim", ["K3", "K4", "K5", "K6"])
def test_a_quick_run(outcome: Callable[..., Outcome], claim: str) -> None:
    found = outcome("kinetics", claim, length="quick")
    assert found.verdict == "not judged: quick run"
    assert found.seen
    if claim in ("K3", "K4", "K5") and "fewer than three points" not in found.seen:
        assert found.seen.count("at a B200") == found.seen.count("at an H100") == 1, "each device is seen"
    if claim == "K4":
        assert found.seen.count("the law alone up to") == 3
