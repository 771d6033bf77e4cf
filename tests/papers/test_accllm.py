"""AccLLM: the engine's model needs no budget, what trains is not judged below its own, and a quick run runs all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.experiment import Outcome


@pytest.mark.parametrize("claim", ["X1", "X2"])
def test_models_of_hardware_need_no_budget(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("accllm", claim, budget=2).verdict in ("holds", "direction holds")


@pytest.mark.parametrize("claim", ["X4", "X5"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("accllm", claim, budget=2).verdict == "not judged: needs 300 s"


@pytest.mark.parametrize("claim", ["X1", "X4", "X5"])
def test_a_quick_run(outcome: Callable[..., Outcome], claim: str) -> None:
    found = outcome("accllm", claim, length="quick")
    assert found.verdict == "not judged: quick run"
    assert found.seen
