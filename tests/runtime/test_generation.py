"""`generate` does what transformers' does, faster."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.runtime import CacheSpec, LanguageModel, PromptLookup
from hasten.runtime.decoding.lookup import Index


def ids(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 211, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["compiled", "plain"])
def model(request: pytest.FixtureRequest, network: Any, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    if request.param == "plain":
        monkeypatch.setattr("hasten.runtime.step.native", lambda: None)
    return LanguageModel(network)


@pytest.mark.parametrize("batch", [1, 3])
def test_greedy_tokens_are_those_of_transformers(model: LanguageModel, batch: int) -> None:
    prompt = ids(17, batch)
    expected = model.network.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, pad_token_id=0
    )
    assert torch.equal(model.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0), expected)


def test_padded_prompts_of_different_length(llama: Any) -> None:
    model = LanguageModel(llama)
    prompt, mask = ids(12, 3), torch.ones(3, 12, dtype=torch.int64)
    mask[1, :5] = 0
    mask[2, :11] = 0
    expected = llama.generate(prompt, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0)
    found = model.generate(prompt, attention_mask=mask, max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert torch.equal(found, expected)


def test_end_of_text_stops_and_pads(llama: Any) -> None:
    model = LanguageModel(llama)
    prompt = ids(10, 2)
    free = model.generate(prompt, max_new_tokens=12, do_sample=False)
    eos = int(free[0, 14])
    expected = llama.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=eos,
        pad_token_id=0,
    )
    found = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=eos, pad_token_id=0)
    assert torch.equal(found, expected)
    longer = model.generate(prompt, max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=eos)
    assert longer.shape == (2, 22)


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
@pytest.mark.parametrize("compiled", [True, False])
def test_lookup_changes_no_token(llama: Any, dtype: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr("hasten.runtime.step.native", lambda: None)
    prompt = torch.cat((ids(30), ids(30)), 1)  # a text that repeats itself: drafts are found
    plain = LanguageModel(llama, cache=CacheSpec(dtype)).generate(prompt, max_new_tokens=60, do_sample=False)
    drafted = LanguageModel(llama, cache=CacheSpec(dtype), lookup=PromptLookup(ngram=3, draft=6))
    assert torch.equal(drafted.generate(prompt, max_new_tokens=60, do_sample=False), plain)


def test_lookup_in_a_batch(llama: Any) -> None:
    prompt = torch.cat((ids(20, 2), ids(20, 2)), 1)
    plain = LanguageModel(llama).generate(prompt, max_new_tokens=30, do_sample=False)
    drafted = LanguageModel(llama, lookup=PromptLookup()).generate(prompt, max_new_tokens=30, do_sample=False)
    assert torch.equal(drafted, plain)


def test_index_finds_the_longest_match_and_never_itself() -> None:
    index = Index(PromptLookup(ngram=2, draft=3), [1, 2, 3, 4, 9, 2, 3, 5, 6, 2, 3])
    assert index.draft(8) == [5, 6, 2]  # after the newest "2 3"
    assert index.draft(1) == [5]
    index.extend([77])
    assert index.draft(8) == []


def test_sampling_follows_the_seed_and_the_settings(llama: Any) -> None:
    model = LanguageModel(llama)
    torch.manual_seed(1)
    a = model.generate(ids(5), max_new_tokens=15, do_sample=True, temperature=1.5, top_k=50)
    torch.manual_seed(1)
    b = model.generate(ids(5), max_new_tokens=15, do_sample=True, temperature=1.5, top_k=50)
    assert torch.equal(a, b)
    greedy = model.generate(ids(5), max_new_tokens=15, do_sample=False)
    only = model.generate(ids(5), max_new_tokens=15, do_sample=True, top_k=1)
    assert torch.equal(greedy, only)


def test_repetition_penalty_as_transformers(llama: Any) -> None:
    prompt = ids(9)
    settings = {"max_new_tokens": 20, "do_sample": False, "repetition_penalty": 1.7}
    expected = llama.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert torch.equal(LanguageModel(llama).generate(prompt, **settings), expected)


def test_beam_search_runs_in_transformers_over_the_same_cache(llama: Any) -> None:
    prompt = ids(9)
    settings = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3}
    expected = llama.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert torch.equal(
        LanguageModel(llama).generate(prompt, attention_mask=torch.ones_like(prompt), **settings), expected
    )


@pytest.mark.parametrize("spec", [CacheSpec(), CacheSpec("bf16"), CacheSpec("int8")])
def test_caches_serve_transformers_own_loop(llama: Any, spec: CacheSpec) -> None:
    prompt = ids(40)
    model = LanguageModel(llama, cache=spec)
    mask = torch.ones_like(prompt)
    own = model.generate(prompt, max_new_tokens=10, do_sample=False)
    theirs = llama.generate(
        prompt,
        attention_mask=mask,
        max_new_tokens=10,
        do_sample=False,
        past_key_values=model.new_cache(1, 64),
    )
    assert torch.equal(own, theirs)


def test_stream_yields_what_generate_returns(llama: Any) -> None:
    model = LanguageModel(llama, lookup=PromptLookup())
    prompt = torch.cat((ids(20), ids(20)), 1)
    whole = model.generate(prompt, max_new_tokens=25, do_sample=False)[0, 40:].tolist()
    pieces = list(model.stream(prompt, max_new_tokens=25, do_sample=False))
    assert [t for piece in pieces for t in piece] == whole


def test_streamer_of_transformers(llama: Any) -> None:
    class Collect:
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.reshape(-1).tolist()

        def end(self) -> None:
            self.ended = True

    streamer = Collect()
    found = LanguageModel(llama).generate(ids(6), max_new_tokens=7, do_sample=False, streamer=streamer)
    assert streamer.ended
    assert streamer.tokens == found[0].tolist()


def test_bad_prompts(llama: Any) -> None:
    model = LanguageModel(llama)
    with pytest.raises(HastenError, match="at least one token"):
        model.generate(torch.zeros(1, 0, dtype=torch.int64))
    with pytest.raises(HastenError, match="512 positions"):
        model.generate(ids(500), max_new_tokens=100)
    with pytest.raises(HastenError, match="all padding"):
        model.generate(ids(4), attention_mask=torch.zeros(1, 4, dtype=torch.int64))


def test_the_workload_is_the_models_own(llama: Any) -> None:
    model = LanguageModel(llama)
    workload = model.workload(32, 8)
    assert [p.name for p in workload.phases] == ["prefill", "decode"]
    assert workload.unknown == ()
    assert workload.phase("decode").repeats == 8
    weights = {p.data_ptr(): p.nbytes for p in llama.parameters()}
    assert workload.weight_bytes >= sum(weights.values())
    cache = model.new_cache(1, 41)
    assert workload.state_bytes == cache.nbytes
    assert workload.canonical() == model.workload(32, 8).canonical()


def test_measure_counts_what_it_says(llama: Any) -> None:
    found = LanguageModel(llama).measure(16, 8, runs=2)
    assert set(found.phases) == {"prefill", "decode"}
    assert found.phases["decode"].runs == 2
    assert found.extra["decode_tokens_per_second"] == pytest.approx(8 / found.phases["decode"].median)


@pytest.mark.parametrize("where", ["weights", "cache"])
def test_damaged_numbers_are_an_error(llama: Any, where: str) -> None:
    model, prompt = LanguageModel(llama), torch.randint(0, 211, (1, 40))
    if where == "weights":
        llama.model.layers[1].mlp.up_proj.weight.data[0, 0] = torch.nan
        with pytest.raises(HastenError, match="not a number"):
            model.generate(prompt, max_new_tokens=4, do_sample=False)
        return
    made = model.stream(prompt, max_new_tokens=20, do_sample=False)
    next(made)
    cache, _ = model._idle[1:]
    cache.layers[1].tensors["values"][0, 0, 3] = torch.nan
    with pytest.raises(HastenError, match="not a number"):
        list(made)
