"""BlockFFN's checks run end to end on a small budget."""

from __future__ import annotations

import pytest

from hasten.kernels import native
from hasten.papers.blockffn import paper
from hasten.papers.card import Context


@pytest.mark.parametrize("claim", ["F1", "F2", "F3", "F4", "F6"])
def test_a_small_budget_does_not_judge(claim: str) -> None:
    assert "too short to judge" in paper.checks[claim](Context(budget=1)).value


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
def test_the_kernel_check_compares_with_the_dense_layer() -> None:
    assert "x the dense layer" in paper.checks["F5"](Context(budget=1)).value
