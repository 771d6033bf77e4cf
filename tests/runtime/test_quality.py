"""Quality is measured through the very weights and cache that run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.methods import CacheFormat, SlidingWindow, WeightOnly
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.quality import agreement, choice, losses_by_position, needle, perplexities, perplexity, recall
from hasten.tasks.questions import facts

SHAPE = {"context": 100, "scored": 60, "segments": 3}


@pytest.fixture
def model(llama: Any) -> LanguageModel:
    return LanguageModel(llama)


@pytest.fixture
def text() -> torch.Tensor:
    return torch.randint(0, 211, (700,), generator=torch.Generator().manual_seed(1))


def test_it_is_what_one_pass_over_each_segment_gives(model: LanguageModel, text: torch.Tensor) -> None:
    found = perplexity(model, text, **SHAPE)
    starts = [0, (700 - 161) // 2, 700 - 161]
    rows = torch.stack([text[s : s + 161] for s in starts])
    with torch.inference_mode():
        logits = model.network(rows[:, :159]).logits[:, 99:]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 100:160].flatten(), reduction="none")
    scored = losses.double()
    assert found.tokens == 3 * 60 == scored.numel()
    assert found.value == pytest.approx(math.exp(scored.mean()), rel=1e-4)
    assert found.error == pytest.approx(found.value * float(scored.std()) / math.sqrt(180), rel=1e-3)


def test_it_is_the_same_every_time_and_tells_how_far_it_is(model: LanguageModel, text: torch.Tensor) -> None:
    told: list[float] = []
    first = perplexity(model, text, **SHAPE, progress=told.append)
    assert perplexity(model, text.tolist(), **SHAPE) == first
    assert told == sorted(told)
    assert 0 < told[0] < told[-1] <= 1


@pytest.mark.parametrize("method", [CacheFormat("int4"), CacheFormat("int8"), SlidingWindow(40, 2), WeightOnly(4, 4)])
def test_what_a_method_changes_is_seen(model: LanguageModel, text: torch.Tensor, method: Any) -> None:
    before = perplexity(model, text, **SHAPE).value
    assert perplexity(method.apply(model), text, **SHAPE).value != pytest.approx(before, rel=1e-7)


def test_a_window_longer_than_the_text_changes_nothing(model: LanguageModel, text: torch.Tensor) -> None:
    before = perplexity(model, text, **SHAPE).value
    assert perplexity(SlidingWindow(200, 4).apply(model), text, **SHAPE).value == pytest.approx(before, rel=1e-5)


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary(model: LanguageModel, text: torch.Tensor) -> None:
    torch.nn.init.zeros_(model.network.lm_head.weight)
    found = perplexity(model, text, **SHAPE)
    assert found.value == pytest.approx(211, rel=1e-5)
    assert found.error == pytest.approx(0, abs=1e-4)


def test_a_broken_model_is_infinitely_perplexed(model: LanguageModel, text: torch.Tensor) -> None:
    torch.nn.init.constant_(model.network.lm_head.weight, math.nan)
    assert perplexity(model, text, **SHAPE).value == math.inf


def test_too_short_a_text_and_too_long_a_segment_are_refused(model: LanguageModel, text: torch.Tensor) -> None:
    with pytest.raises(HastenError, match="quality needs 161"):
        perplexity(model, text[:160], **SHAPE)
    with pytest.raises(HastenError, match="512 positions"):
        perplexity(model, text, context=500, scored=60)


def test_agreement_ends_at_the_first_difference() -> None:
    assert agreement([1, 2, 3, 4], [1, 2, 9, 4]) == 0.5
    assert agreement([1, 2], [1, 2, 3, 4]) == 0.5
    assert agreement([5], [5]) == 1
    assert agreement([5], []) == 1


class Words:
    """A tokenizer: a token a word, digit by digit for numbers."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        import re

        return {"input_ids": [sum(map(ord, w)) % 211 for w in re.findall(r"\d|\w+|[^\w\s]", text)]}


def test_long_context_measures_run_through_the_cache(model: LanguageModel, text: torch.Tensor) -> None:
    filler = text.tolist()
    found = needle(model, Words(), filler, length=120, depths=(0.2, 0.8))
    assert set(found) == {0.2, 0.8}
    assert 0 <= recall(model, Words(), filler, length=150, pairs=4, asked=2) <= 1
    share = choice(model, Words(), facts()[:6])
    assert share in {i / 6 for i in range(7)}
    windowed = LanguageModel(model.network, cache=CacheSpec("fp32", 16, 2))
    assert set(needle(windowed, Words(), filler, length=120, depths=(0.5,))) == {0.5}
    with pytest.raises(HastenError, match="needle test of 5000"):
        needle(model, Words(), filler, length=5000)
    with pytest.raises(HastenError, match="recall test of 5000"):
        recall(model, Words(), filler, length=5000)


def test_a_model_that_copies_finds_the_needle() -> None:
    """A network that says what followed the last token the first time answers everything."""

    class Copying(LanguageModel):
        def prefill(self, ids: torch.Tensor, cache: Any) -> torch.Tensor:
            self.seen = ids[0].tolist()
            return self._next()[None]

        def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, **kwargs: Any) -> Any:
            rows = []
            for token in input_ids[0].tolist():
                self.seen.append(token)
                rows.append(self._next())
            return type("Out", (), {"logits": torch.stack(rows)[None]})

        def _next(self) -> torch.Tensor:
            size = next(n for n in range(12, 0, -1) if self._at(n) is not None)
            return torch.nn.functional.one_hot(torch.tensor(self.seen[self._at(size) + size]), 211).float()

        def _at(self, n: int) -> int | None:
            tail = self.seen[-n:]
            return next((i for i in range(len(self.seen) - n) if self.seen[i : i + n] == tail), None)

    import transformers

    config = transformers.LlamaConfig(
        vocab_size=211, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=4096,
    )  # fmt: skip
    model = Copying(transformers.LlamaForCausalLM(config))
    found = needle(model, Words(), [0] * 400, length=200)
    assert all(found.values())
    assert recall(model, Words(), [0] * 400, length=300, pairs=6, asked=3) == 1.0


def test_caches_side_by_side_and_the_model_keeps_its_own() -> None:
    loaded = tiny_model(layers=2)
    model = LanguageModel(loaded.network, cache=CacheSpec("fp32"))
    ids = torch.randint(0, 256, (200,), generator=torch.Generator().manual_seed(0))
    options = {"context": 32, "scored": 16, "segments": 2}
    found = perplexities(model, ids, {"fp32": CacheSpec("fp32"), "int4": CacheSpec("int4")}, **options)
    assert found["fp32"] == perplexity(model, ids, **options).value
    assert found["int4"] != found["fp32"]
    assert model.cache == CacheSpec("fp32")


def test_losses_by_position_are_those_of_the_whole_text() -> None:
    model = LanguageModel(tiny_model(layers=2).network, cache=CacheSpec("fp32"))
    rows = torch.randint(0, 256, (3, 71), generator=torch.Generator().manual_seed(0))
    losses, held = losses_by_position(model, rows)
    with torch.inference_mode():
        logits = model.network(rows[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    torch.testing.assert_close(losses, expected.view(3, -1).mean(0), atol=1e-4, rtol=0)
    assert held > 0
