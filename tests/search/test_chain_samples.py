"""Inputs and their chains: a predictor is asked about others, and what the best chains are made of is counted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hasten.models.loading.tiny import tiny_model
from hasten.runtime import LanguageModel
from hasten.search.chain_samples import (
    ChainSample,
    chain_samples,
    made_of,
    one_for_all,
    predicted_chains,
    usual_rules,
)
from hasten.search.layer_chains import ChainResult, Comparison, Path

WHOLE = tuple(range(6))
SHORT, OTHER = (0, 1, 2, 3, 4), (0, 2, 3, 4, 5)


def found(*right: Path) -> ChainResult:
    return ChainResult(WHOLE, {p: float(p in right) for p in (WHOLE, SHORT, OTHER)})


def sample(*right: Path, state: torch.Tensor | None = None) -> ChainSample:
    says: Callable[[Path], bool] = lambda path: path in right  # noqa: E731
    tree = found(*right)
    return ChainSample(True, says, torch.zeros(4) if state is None else state, Comparison(*[tree] * 6), 4)


def test_the_predictor_is_asked_about_other_questions() -> None:
    torch.manual_seed(0)
    samples = []
    for i in range(40):
        sign = 1.0 if i // 2 % 2 else -1.0
        state = torch.tensor([sign * 3, *torch.randn(3).tolist()])
        samples.append(sample(SHORT if sign > 0 else OTHER, state=state))
    made = predicted_chains(samples)
    assert made is not None
    assert (made.known, made.asked, made.right, made.before, made.layers) == (20, 20, 20, 0, 5.0)
    assert "20 of 20 others right with 5.0 layers, the whole model 0" in str(made)
    assert predicted_chains([sample()] * 4) is None


def test_what_the_best_chains_are_made_of() -> None:
    text = made_of([sample(SHORT), sample(OTHER)])
    assert "skipped by 25%, 0%, 25%" in text
    assert "5: 50%" in text


def test_chains_are_as_long_as_in_the_paper() -> None:
    rules = usual_rules(30)
    assert (rules.layers, rules.shortest, rules.longest) == (30, 18, 34)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    made = tiny_model(layers=8)
    return LanguageModel(made.network, made.tokenizer)


def test_every_input_is_searched(model: LanguageModel) -> None:
    told: list[int] = []
    samples = chain_samples(model, 2, 1, trials=2, progress=told.append)
    assert [s.fact for s in samples] == [True, True, False]
    assert told == [1, 2, 3]
    assert all(1 <= s.options <= len(s.found.tree.seen) + 20 for s in samples)
    assert all(s.found.tree.whole == tuple(range(8)) for s in samples)
    text = one_for_all(samples, model, 2)
    assert text.startswith("of 3 answers the whole model has ")
    assert "the best of 2 static chains" in text
    assert "static chains" not in one_for_all(samples, model, 0)
