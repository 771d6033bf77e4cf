"""The checks of the MatMul-free model run end to end on a small budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers.experiment import Outcome


@pytest.mark.parametrize("claim", ["B1", "B3", "B5", "B7"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("matmul-free", claim, budget=1).verdict.startswith("not judged: needs ")


def test_memory_of_the_largest_size(outcome: Callable[..., Outcome]) -> None:
    seen = outcome("matmul-free", "B4")
    assert seen.verdict == "holds"
    assert "3.2" in seen.seen
    assert outcome("matmul-free", "B6").verdict == "direction holds"
