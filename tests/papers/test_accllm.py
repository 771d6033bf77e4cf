"""AccLLM: the engine's model needs no budget, what trains is not judged below its own, and a quick run runs all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.experiment import Outcome


@pytest.mark.parametrize("claim", ["X1", "X2"])
def test_models_of_hardware_need_no_budget(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("accllm", claim, budget=2).verdict in ("holds", "direction holds")


def test_the_rate_is_judged_over_what_the_bandwidth_may_give(outcome: Callable[..., Outcome]) -> None:
    """At 85 % of it the published rate is met, at 80 % it is not: so it is not known to hold."""
    found = outcome("accllm", "X1", budget=2)
    assert found.verdict == "direction holds"
    for part in ("need 80.1% of the bandwidth", "75% 153.6 (NOT met)", "80% 163.8 (NOT met)", "85% 174.1 (met)"):
        assert part in found.seen
    assert "dense fp16 24 (does not fit: memory 15.6 of 8.0 GB)" in found.seen


@pytest.mark.parametrize("claim", ["X4", "X5"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("accllm", claim, budget=2).verdict == "not judged: needs 300 s"


@pytest.mark.parametrize("claim", ["X1", "X4", "X5"])
def test_a_quick_run(outcome: Callable[..., Outcome], claim: str) -> None:
    found = outcome("accllm", claim, length="quick")
    assert found.verdict == "not judged: quick run"
    assert found.seen
    if claim == "X5":
        assert "the whole packed stack with it" in found.seen, "the window is a part of the stack"
