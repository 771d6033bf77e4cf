"""Tokens as transformers' processors and the OpenAI API's penalties would have them chosen."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hasten.errors import HastenError
from hasten.serving.choosing import TokenChooser, _kept, _place, likeliest
from hasten.serving.request import Sampling

WORDS = 1000


def logits(seed: int, scale: float = 3.0) -> Tensor:
    return torch.randn(WORDS, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("scale", [0.05, 3.0, 20.0])
@pytest.mark.parametrize(
    "settings",
    [
        {"top_k": 7},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"min_p": 0.1},
        {"temperature": 0.3, "top_k": 50, "top_p": 0.8},
        {"temperature": 1.7, "top_k": 2000, "top_p": 0.95, "min_p": 0.02},
    ],
)
def test_what_may_be_drawn_is_what_transformers_keeps(settings: dict[str, Any], scale: float) -> None:
    sampling = Sampling(**settings)
    warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    for seed in range(5):
        row = logits(seed, scale)
        expected = LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.int64), row[None].double())[0]
        weights, ids = _kept(row.numpy(), sampling)
        found = torch.zeros(WORDS, dtype=torch.float64)
        found[torch.arange(WORDS) if ids is None else torch.from_numpy(ids)] = torch.from_numpy(weights).double()
        torch.testing.assert_close(found / found.sum(), torch.softmax(expected, 0), rtol=1e-4, atol=1e-7)


def test_draws_follow_the_probabilities() -> None:
    row = torch.tensor([1.0, 2.0, 0.0, -1.0, -math.inf])
    chooser = TokenChooser(Sampling(seed=0, temperature=0.8), (1,), 5)
    drawn = Counter(chooser.draw(row) for _ in range(20_000))
    expected = torch.softmax(row / 0.8, 0)
    assert drawn[4] == 0
    for token in range(4):
        share = float(expected[token])
        assert abs(drawn[token] / 20_000 - share) < 4 * math.sqrt(share / 20_000)


def test_every_share_of_the_weights_is_found_as_by_a_running_sum() -> None:
    weights = np.random.default_rng(0).random(2000, np.float32) ** 8
    weights[-5:] = 0
    weights[500:900] = 0
    until = weights.cumsum(dtype=np.float64)
    for share in (0.0, 1e-9, 0.25, 0.5, 0.999, 1 - 1e-16):
        place = _place(weights, share)
        assert weights[place] > 0
        assert until[place] >= share * until[-1] * (1 - 1e-12)
        assert place == 0 or until[place - 1] <= share * until[-1] * (1 + 1e-12)
    assert _place(np.array([0, 0, 1, 0], np.float32), 1 - 1e-16) == 2


def test_a_seed_is_a_requests_own() -> None:
    def drawn(seed: int | None, others: int) -> list[int]:
        chooser, beside = TokenChooser(Sampling(seed=seed), (1,), WORDS), TokenChooser(Sampling(seed=9), (1,), WORDS)
        found = []
        for i in range(30):
            found.append(chooser.draw(logits(i)))
            for _ in range(others):
                beside.draw(logits(i))
                torch.rand(3)
        return found

    assert drawn(5, 0) == drawn(5, 3) == drawn(5 + (1 << 63), 1)
    assert drawn(5, 0) != drawn(6, 0)
    assert drawn(None, 0) != drawn(None, 0)


def test_openai_penalties_count_the_answers_tokens() -> None:
    sampling = Sampling(temperature=0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias={3: -100.0, 8: 2.0})
    chooser = TokenChooser(sampling, (7, 7, 7), WORDS)
    answer = [5, 5, 6, 5]
    for token in answer:
        chooser.accept(token)
    row = logits(1)
    expected = row.clone()
    expected[3] -= 100
    expected[8] += 2
    for token, count in Counter(answer).items():
        expected[token] -= 0.5 + 0.25 * count
    chooser.change(row)
    torch.testing.assert_close(row, expected)


def test_repetition_is_penalised_as_in_transformers() -> None:
    chooser = TokenChooser(Sampling(temperature=0, repetition_penalty=1.3), (7, 2, 7), WORDS, positions=3)
    text = [7, 2, 7]
    for token in range(100):
        chooser.accept(token)
        text.append(token)
    row = logits(2)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([text]), row[None].clone())[0]
    chooser.change(row)
    assert torch.equal(row, expected)


class OnlyEven:
    """Even tokens may follow, and after token 4 none."""

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def restrict(self, logits: Tensor) -> None:
        logits[1::2] = -math.inf
        if 4 in self.accepted:
            logits.fill_(-math.inf)

    def accept(self, token: int) -> None:
        self.accepted.append(token)


def test_a_constraint_comes_before_the_choice() -> None:
    constraint = OnlyEven()
    chooser = TokenChooser(Sampling(seed=1, logit_bias={3: 50.0}), (1,), WORDS, constraint)
    for i in range(20):
        row = logits(i)
        chooser.change(row)
        token = chooser.draw(row)
        assert token % 2 == 0
        chooser.accept(token if token != 4 else 6)
    assert len(constraint.accepted) == 20
    chooser.accept(4)
    with pytest.raises(HastenError, match="no token may follow"):
        chooser.change(logits(0))


def test_rows_that_are_no_numbers_are_found() -> None:
    rows = torch.stack((logits(0), logits(1), logits(2)))
    rows[1, 500] = math.nan
    tokens, numbers = likeliest(rows)
    assert numbers == [True, False, True]
    assert tokens[0] == int(rows[0].argmax())
    assert tokens[2] == int(rows[2].argmax())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -1}, "min_p"),
        ({"top_k": -1}, "top_k"),
        ({"presence_penalty": math.inf}, "presence_penalty"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"logit_bias": {WORDS: 1.0}}, "logit_bias"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(HastenError, match=told):
        TokenChooser(Sampling(**settings), (1,), WORDS)
