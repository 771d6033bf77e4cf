"""The checks of inference papers run end to end; a small budget does not judge."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.kernels import native
from hasten.papers.experiment import Outcome

needs_kernels = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")


@pytest.mark.parametrize(
    ("slug", "claim"),
    [
        ("longgen", "G2"),
        ("smallthinker", "S1"), ("smallthinker", "S2"), ("smallthinker", "S3"),
        ("smallthinker", "S6"),
    ],
)  # fmt: skip
def test_models_of_hardware_need_no_budget(outcome: Callable[..., Outcome], slug: str, claim: str) -> None:
    seen = outcome(slug, claim, budget=2)
    assert seen.verdict in ("holds", "direction holds")


@needs_kernels
@pytest.mark.parametrize(
    ("slug", "claim"),
    [

        ("longgen", "G1"), ("longgen", "G3"), ("longgen", "G5"), ("longgen", "G6"),
        ("smallthinker", "S4"), ("smallthinker", "S7"),
    ],
)  # fmt: skip
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], slug: str, claim: str) -> None:
    assert outcome(slug, claim, budget=2).verdict.startswith("not judged: needs ")
