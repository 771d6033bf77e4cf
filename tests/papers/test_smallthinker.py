"""SmallThinker: sizes need no budget, what is measured is not judged below its own, and a quick run runs all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.kernels import native
from hasten.papers.experiment import Outcome

needs_kernels = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")


@pytest.mark.slow_except("S3")
@pytest.mark.parametrize("claim", ["S1", "S2", "S3", "S6"])
def test_models_of_hardware_need_no_budget(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("smallthinker", claim, budget=2).verdict in ("holds", "direction holds")


@pytest.mark.parametrize(("claim", "seconds"), [("S4", 60), ("S7", 300)])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str, seconds: int) -> None:
    assert outcome("smallthinker", claim, budget=2).verdict == f"not judged: needs {seconds} s"


@needs_kernels
@pytest.mark.parametrize("claim", ["S1", "S2", "S4", "S7"])
def test_a_quick_run(outcome: Callable[..., Outcome], claim: str) -> None:
    found = outcome("smallthinker", claim, length="quick")
    assert found.verdict == "not judged: quick run"
    if claim == "S4":
        assert "logits equal" in found.seen
        assert "experts of 124416 bytes in Q4_0 (fp32: 884736)" in found.seen


@pytest.mark.slow
def test_little_memory_is_judged_by_published_rates_alone(outcome: Callable[..., Outcome]) -> None:
    """Some kinds of routes give the published rates and some do not: so it is not known to hold."""
    found = outcome("smallthinker", "S2", budget=2)
    assert found.verdict == "direction holds"
    for part in ("(published 20.3;", "(published 15.5;", "(published 8.56;", "within 25 % on all devices for"):
        assert part in found.seen
