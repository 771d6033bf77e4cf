"""FlashKAT's checks run end to end on a small budget."""

from __future__ import annotations

import pytest

from hasten.data import assets
from hasten.kernels import native
from hasten.papers.card import Context
from hasten.papers.flashkat import paper


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
@pytest.mark.parametrize("claim", ["K1", "K2", "K3", "K4", "K5", "K6"])
def test_a_small_budget_does_not_judge(claim: str) -> None:
    if claim in ("K2", "K5") and assets.cached("mnist") is None:
        pytest.skip("needs `hasten assets get mnist`")
    assert "too short to judge" in paper.checks[claim](Context(budget=1)).value


def test_sizes_are_exact() -> None:
    assert paper.checks["K7"](Context()).holds
