"""FlashKAT's checks run end to end on a small budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.data import assets
from hasten.kernels import native
from hasten.papers.experiment import Outcome


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
@pytest.mark.parametrize("claim", ["K1", "K2", "K3", "K4", "K5", "K6"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    if claim in ("K2", "K5") and assets.cached("mnist") is None:
        pytest.skip("needs `hasten assets get mnist`")
    assert outcome("flashkat", claim, budget=1).verdict.startswith("not judged: needs ")


def test_sizes_are_exact(outcome: Callable[..., Outcome]) -> None:
    assert outcome("flashkat", "K7").verdict == "holds"
