"""The checks of the seven inference papers run end to end; a small budget does not judge."""

from __future__ import annotations

import pytest

from hasten.kernels import native
from hasten.papers import accllm, alisa, cola, kinetics, llm_acceleration, longgen, smallthinker
from hasten.papers.card import Context

QUICK = Context(budget=2)
needs_kernels = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")


@pytest.mark.parametrize(
    ("paper", "claim"),
    [
        (kinetics.paper, "K1"), (alisa.paper, "A2"), (alisa.paper, "A6"), (longgen.paper, "G2"), (accllm.paper, "X1"),
        (accllm.paper, "X2"), (smallthinker.paper, "S1"), (smallthinker.paper, "S2"), (smallthinker.paper, "S3"),
        (smallthinker.paper, "S6"),
    ],
    ids=lambda p: getattr(p, "slug", p),
)  # fmt: skip
def test_models_of_hardware_need_no_budget(paper: object, claim: str) -> None:
    seen = paper.checks[claim](QUICK)  # type: ignore[attr-defined]
    assert "too short" not in seen.value
    assert seen.verdict in ("holds", "direction holds")


@needs_kernels
@pytest.mark.parametrize(
    ("paper", "claim"),
    [
        (kinetics.paper, "K3"), (kinetics.paper, "K4"), (kinetics.paper, "K6"), (alisa.paper, "A1"),
        (longgen.paper, "G1"), (longgen.paper, "G3"), (longgen.paper, "G5"), (longgen.paper, "G6"),
        (accllm.paper, "X4"),
        (smallthinker.paper, "S4"), (smallthinker.paper, "S7"),
    ],
    ids=lambda p: getattr(p, "slug", p),
)  # fmt: skip
def test_a_small_budget_does_not_judge(paper: object, claim: str) -> None:
    assert "too short to judge" in paper.checks[claim](QUICK).value  # type: ignore[attr-defined]


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("claim", ["L1", "L2", "L5"])
def test_the_survey_on_the_real_model(claim: str) -> None:
    assert "too short to judge" in llm_acceleration.paper.checks[claim](QUICK).value


@needs_kernels
@pytest.mark.slow
def test_chains_of_layers_on_the_real_model() -> None:
    for claim in ("C1", "C2", "C4"):
        assert "too short to judge" in cola.paper.checks[claim](QUICK).value


@needs_kernels
@pytest.mark.slow
def test_the_sparse_window_on_the_real_model() -> None:
    assert "too short to judge" in alisa.paper.checks["A4"](QUICK).value
    assert "too short to judge" in accllm.paper.checks["X5"](QUICK).value
