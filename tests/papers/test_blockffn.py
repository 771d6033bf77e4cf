"""BlockFFN's checks run end to end on a small budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.kernels import native
from hasten.papers.experiment import Outcome


@pytest.mark.parametrize("claim", ["F1", "F2", "F3", "F4", "F6"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("blockffn", claim, budget=1).verdict.startswith("not judged: needs ")


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
def test_the_kernel_check_compares_with_the_dense_layer(outcome: Callable[..., Outcome]) -> None:
    assert "x the dense layer" in outcome("blockffn", "F5", budget=1).seen
