"""`LanguageModel.generate` beside transformers' own: the same tokens for one seed and settings, or a clear error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MistralConfig,
    MistralForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
    pipeline,
    set_seed,
)

from hasten.errors import HastenError
from hasten.methods import SlidingWindow, WeightOnly
from hasten.runtime import CacheSpec, LanguageModel, PromptLookup

LENGTH = 20
SIZES: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.15, "eos_token_id": None,
    "pad_token_id": 0, "bos_token_id": 1,
}  # fmt: skip


@cache
def network(kind: str = "llama") -> Any:
    torch.manual_seed(3)
    llama = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
    if kind == "llama":
        return llama
    # A window of Mistral's own, over the same weights.
    mistral = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=12, head_dim=32)).eval()
    mistral.load_state_dict(llama.state_dict())
    return mistral


@cache
def pair(kind: str) -> tuple[Any, LanguageModel]:
    """What transformers runs, and hasten's model that is to say the same."""
    if kind == "plain":
        return network(), LanguageModel(network())
    if kind == "windowed":
        return network("mistral"), SlidingWindow(12, 0).apply(LanguageModel(network()))
    torch.manual_seed(3)
    packed = WeightOnly(4, 8).apply(LanguageModel(LlamaForCausalLM(LlamaConfig(**SIZES)).eval()))
    return packed.network, packed


def ids(rows: int = 1) -> Tensor:
    return torch.randint(2, 256, (rows, LENGTH), generator=torch.Generator().manual_seed(rows))


def padded() -> tuple[Tensor, Tensor]:
    """Three prompts of which two are padded on the left."""
    prompts, mask = ids(3), torch.ones(3, LENGTH, dtype=torch.int64)
    mask[0, :7], mask[2, :1] = 0, 0
    return prompts * mask, mask


class NoOdd(LogitsProcessor):
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores[:, 1::2] = -torch.inf
        return scores


class AtTwentySix(StoppingCriteria):
    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= 26)


@cache
def greedy_token(kind: str, at: int) -> int:
    reference, _ = pair(kind)
    found = reference.generate(ids(), attention_mask=torch.ones_like(ids()), max_new_tokens=at + 1, do_sample=False)
    return int(found[0, LENGTH + at])


Settings = dict[str, Any] | Callable[[str], dict[str, Any]]
SETTINGS: dict[str, tuple[int, Settings]] = {
    "greedy": (1, {"do_sample": False}),
    "default length": (1, {}),
    "max_length": (1, {"max_length": 31}),
    "max_length of a config": (1, {"generation_config": GenerationConfig(max_length=33, pad_token_id=0)}),
    "end token": (3, lambda k: {"max_new_tokens": 20, "eos_token_id": greedy_token(k, 4)}),
    "end tokens": (1, lambda k: {"max_new_tokens": 20, "eos_token_id": [greedy_token(k, 9), greedy_token(k, 5)]}),
    "end tokens as a tensor": (1, lambda k: {"max_new_tokens": 9, "eos_token_id": torch.tensor([greedy_token(k, 3)])}),
    "no end token": (1, {"max_new_tokens": 9, "eos_token_id": None}),
    "min_new_tokens": (1, lambda k: {"max_new_tokens": 14, "min_new_tokens": 8, "eos_token_id": greedy_token(k, 4)}),
    "min_length": (1, lambda k: {"max_new_tokens": 14, "min_length": 27, "eos_token_id": greedy_token(k, 4)}),
    "sampling": (1, {"do_sample": True}),
    "sampling a batch": (4, {"do_sample": True, "temperature": 0.7}),
    "sampling, rows end": (4, lambda k: {"do_sample": True, "max_new_tokens": 30, "eos_token_id": list(range(2, 40))}),
    "top_k": (2, {"do_sample": True, "top_k": 5}),
    "no top_k": (2, {"do_sample": True, "top_k": 0}),
    "top_p": (2, {"do_sample": True, "top_p": 0.6}),
    "min_p": (2, {"do_sample": True, "min_p": 0.1}),
    "typical_p": (2, {"do_sample": True, "typical_p": 0.5}),
    "epsilon and eta": (1, {"do_sample": True, "epsilon_cutoff": 3e-3, "eta_cutoff": 3e-3}),
    "renormalized": (1, {"do_sample": True, "top_k": 9, "renormalize_logits": True}),
    "repetition_penalty": (2, {"repetition_penalty": 1.6}),
    "no_repeat_ngram_size": (2, {"no_repeat_ngram_size": 2}),
    "bad words": (1, lambda k: {"bad_words_ids": [[greedy_token(k, 2)]]}),
    "suppressed": (1, lambda k: {"suppress_tokens": [greedy_token(k, 1)]}),
    "forced end": (1, {"forced_eos_token_id": 7, "max_new_tokens": 6}),
    "bias": (1, {"sequence_bias": [[[9], 8.0]]}),
    "decay of length": (1, {"exponential_decay_length_penalty": (3, 1.5), "eos_token_id": 7}),
    "allowed tokens": (1, {"prefix_allowed_tokens_fn": lambda row, text: [3, 4, 5, len(text) % 200]}),
    "own processor": (2, {"logits_processor": LogitsProcessorList([NoOdd()])}),
    "own rule": (2, {"stopping_criteria": StoppingCriteriaList([AtTwentySix()]), "max_new_tokens": 20}),
    "several sequences": (2, {"do_sample": True, "num_return_sequences": 3}),
    "beams": (2, {"num_beams": 3}),
    "beams, several": (1, {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True}),
    "sampled beams": (1, {"num_beams": 2, "do_sample": True}),
    "prompt lookup": (1, {"prompt_lookup_num_tokens": 3}),
    "no cache": (1, {"use_cache": False}),
    "a static cache": (1, {"cache_implementation": "static"}),
    "prompt in pieces": (1, {"prefill_chunk_size": 7}),
}  # fmt: skip
# Settings that a window refuses, in a line that names it.
REFUSED = {("windowed", "prompt lookup"): "drafts"}


def both(kind: str, rows: int, settings: Settings) -> tuple[Any, Any]:
    found = []
    for model in pair(kind):
        given = dict(settings(kind) if callable(settings) else settings)
        set_seed(11)
        prompts = ids(rows)
        found.append(model.generate(prompts, attention_mask=torch.ones_like(prompts), **given))
    return found[0], found[1]


@pytest.mark.slow_except("*-plain", "beams*", "prompt lookup-*", "sampling*")
@pytest.mark.parametrize("kind", ["plain", "int4", "windowed"])
@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_those_of_transformers(kind: str, name: str) -> None:
    rows, settings = SETTINGS[name]
    if (kind, name) in REFUSED:
        with pytest.raises(HastenError, match=REFUSED[kind, name]):
            both(kind, rows, settings)
        return
    expected, found = both(kind, rows, settings)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", ["plain", "int4", "windowed"])
@pytest.mark.parametrize("sample", [False, True])
def test_prompts_padded_on_the_left(kind: str, sample: bool) -> None:
    prompts, mask = padded()
    found = []
    for model in pair(kind):
        set_seed(5)
        found.append(model.generate(prompts, attention_mask=mask, max_new_tokens=12, do_sample=sample).tolist())
    assert found[1] == found[0]


def test_padding_is_seen_where_no_mask_is_given() -> None:
    prompts, _ = padded()
    reference, model = pair("plain")
    assert torch.equal(model.generate(prompts, max_new_tokens=5), reference.generate(prompts, max_new_tokens=5))


@pytest.mark.parametrize("given", ["kwargs", "config", "model"])
def test_the_models_own_generation_config_counts(given: str) -> None:
    import copy

    own = copy.deepcopy(network())
    settings = {"max_length": 29, "do_sample": False, "repetition_penalty": 1.5}
    more: dict[str, Any] = {}
    if given == "kwargs":
        more = settings
    elif given == "config":
        more = {"generation_config": GenerationConfig(**settings, pad_token_id=0)}
    else:
        own.generation_config = GenerationConfig(**settings, pad_token_id=0)
    mask = torch.ones_like(ids())
    expected = own.generate(ids(), attention_mask=mask, **more)
    assert torch.equal(LanguageModel(own).generate(ids(), attention_mask=mask, **more), expected)


def test_what_the_output_holds() -> None:
    reference, model = pair("plain")
    prompts = ids(2)
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "max_new_tokens": 4}
    for more in ({"do_sample": False, "eos_token_id": greedy_token("plain", 1)}, {"do_sample": True, "top_k": 4}):
        found = []
        for one in (reference, model):
            set_seed(2)
            found.append(one.generate(prompts, attention_mask=torch.ones_like(prompts), **asked, **more))
        assert type(found[1]) is type(found[0])
        assert torch.equal(found[1].sequences, found[0].sequences)
        assert len(found[1].scores) == len(found[0].scores) == len(found[1].logits)
        for name in ("scores", "logits"):
            for a, b in zip(found[0][name], found[1][name], strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    # The cache is the caller's: what comes after does not write into it.
    held = found[1].past_key_values
    before = held.layers[0].tensors["keys"].clone()
    model.generate(prompts, max_new_tokens=3)
    assert torch.equal(held.layers[0].tensors["keys"], before)


def test_hidden_states_are_shown() -> None:
    reference, model = pair("plain")
    asked = {"return_dict_in_generate": True, "output_hidden_states": True, "max_new_tokens": 3, "do_sample": False}
    expected, found = (m.generate(ids(), attention_mask=torch.ones_like(ids()), **asked) for m in (reference, model))
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.hidden_states[2][1], expected.hidden_states[2][1], atol=1e-5, rtol=1e-4)


def test_an_assistant_drafts() -> None:
    reference, model = pair("plain")
    torch.manual_seed(8)
    assistant = LlamaForCausalLM(LlamaConfig(**{**SIZES, "num_hidden_layers": 1})).eval()
    mask = torch.ones_like(ids())
    settings = {"max_new_tokens": 18, "do_sample": False, "attention_mask": mask, "assistant_model": assistant}
    assert torch.equal(model.generate(ids(), **settings), reference.generate(ids(), **settings))
    with pytest.raises(HastenError, match="cannot give drafted tokens back"):
        LanguageModel(network(), cache=CacheSpec("int8")).generate(ids(), **settings)


def test_stop_strings(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference, model = network(), LanguageModel(network(), tokenizer)
    letters = tokenizer.convert_tokens_to_ids([chr(c) for c in range(97, 123)])
    settings: dict[str, Any] = {"max_new_tokens": 12, "prefix_allowed_tokens_fn": lambda row, text: letters}
    free = tokenizer.decode(reference.generate(ids(), **settings)[0, LENGTH:])
    settings["stop_strings"] = [free[4:6]]  # over two tokens
    expected = reference.generate(ids(), tokenizer=tokenizer, **settings)
    assert expected.shape[1] < LENGTH + 12
    assert torch.equal(model.generate(ids(), **settings), expected)
    assert torch.equal(LanguageModel(network()).generate(ids(), tokenizer=tokenizer, **settings), expected)
    with pytest.raises(HastenError, match="tokenizer"):
        LanguageModel(network()).generate(ids(), **settings)


def test_forward_with_caches_of_transformers() -> None:
    model = LanguageModel(network())
    whole = network()(ids()).logits[:, -1]
    cache = DynamicCache(config=network().config)
    model(ids()[:, :-1], past_key_values=cache)
    torch.testing.assert_close(model(ids()[:, -1:], past_key_values=cache).logits[:, -1], whole)
    kept = model(ids()[:, :-1], use_cache=True).past_key_values
    torch.testing.assert_close(model(ids()[:, -1:], past_key_values=kept).logits[:, -1], whole)
    windowed = SlidingWindow(12, 0).apply(LanguageModel(network()))
    with pytest.raises(HastenError, match="new_cache"):
        windowed(ids(), past_key_values=DynamicCache())


def test_embeddings_as_a_prompt() -> None:
    reference, model = pair("plain")
    embedded = reference.get_input_embeddings()(ids())
    mask = torch.ones_like(ids())
    settings = {"inputs_embeds": embedded, "attention_mask": mask, "max_new_tokens": 6, "do_sample": False}
    assert torch.equal(model.generate(**settings), reference.generate(**settings))


def test_a_pipeline_takes_it(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for model in (network(), LanguageModel(network(), tokenizer)):
        run = pipeline("text-generation", model=model, tokenizer=tokenizer)
        texts.append(run("to be or not", max_new_tokens=8, do_sample=False)[0]["generated_text"])
    assert texts[0] == texts[1]


def test_what_users_ask_of_a_model() -> None:
    reference, model = pair("plain")
    assert (model.dtype, model.device.type, model.main_input_name) == (torch.float32, "cpu", "input_ids")
    assert model.num_parameters() == reference.num_parameters()
    assert model.get_input_embeddings() is reference.get_input_embeddings()
    assert model.get_output_embeddings() is reference.get_output_embeddings()
    assert model.base_model is reference.base_model
    assert model.can_generate()
    assert model.name_or_path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, "at least one token"),
        ({"input_ids": torch.arange(5)}, "at least one token"),
        ({"input_ids": [[1, 2]]}, "at least one token"),
        ({}, "at least one token"),
        ({"input_ids": torch.tensor([[3, 999]])}, "0 to 255"),
        ({"input_ids": torch.tensor([[3, -1]])}, "0 to 255"),
        ({"input_ids": torch.ones(1, 3)}, "0 to 255"),
        ({"input_ids": ids(), "attention_mask": torch.ones(1, 3)}, "attention mask"),
        ({"input_ids": ids(2), "attention_mask": 1 - torch.eye(2, LENGTH).flip(1)}, "padded on the right"),
        ({"input_ids": ids(), "max_new_tokens": 0}, "max_new_tokens"),
        ({"input_ids": ids(), "max_length": 3}, "max_length"),
        ({"input_ids": ids(), "do_sample": True, "temperature": -1.0}, "temperature"),
        ({"input_ids": ids(), "top_k": -1, "do_sample": True}, "top_k"),
        ({"input_ids": ids(), "repetition_penalty": 0.0}, "penalty"),
        ({"input_ids": ids(), "temprature": 1.0}, "temprature"),
        ({"input_ids": ids(), "cache_implementation": "quantized"}, "cache_implementation"),
        ({"input_ids": ids(), "max_new_tokens": 400}, "256 positions"),
    ],
)
def test_what_cannot_be_is_said(given: dict[str, Any], message: str) -> None:
    _, model = pair("plain")
    with pytest.raises((HastenError, ValueError), match=message):
        model.generate(**given)


def test_a_streamer_follows_each_token_of_a_batch() -> None:
    seen: list[list[Any]] = []

    class Streamer:
        def __init__(self) -> None:
            self.values: list[Any] = []
            seen.append(self.values)

        def put(self, value: Tensor) -> None:
            self.values.append(value.tolist())

        def end(self) -> None:
            self.values.append("end")

    for model in pair("plain"):
        with contextlib.suppress(ValueError):
            model.generate(ids(2), max_new_tokens=4, do_sample=False, streamer=Streamer())
    assert seen[0] == seen[1]


@pytest.mark.parametrize("compiled", [True, False])
def test_drafts_go_with_a_least_length(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr("hasten.runtime.step.native", lambda: None)
    repeating = torch.cat((ids(), ids()), 1)
    eos = greedy_token("plain", 2)
    settings = {"max_new_tokens": 40, "min_new_tokens": 25, "do_sample": False, "eos_token_id": eos}
    expected = network().generate(repeating, attention_mask=torch.ones_like(repeating), **settings)
    drafted = LanguageModel(network(), lookup=PromptLookup(2, 4))
    assert torch.equal(drafted.generate(repeating, **settings), expected)


def test_drafts_of_an_end_that_may_not_come_yet_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.runtime.step.native", lambda: None)
    torch.manual_seed(18)
    begun = torch.randint(2, 256, (1, 6)).repeat(1, 5)
    text = network().generate(begun, attention_mask=torch.ones_like(begun), max_new_tokens=40, do_sample=False)
    mask = torch.ones_like(text)
    drafted = LanguageModel(network(), lookup=PromptLookup(2, 4))
    for eos in {*text[0, 30:].tolist()}:  # what the text says itself is drafted
        settings = {"max_new_tokens": 30, "min_new_tokens": 20, "do_sample": False, "eos_token_id": eos}
        expected = network().generate(text, attention_mask=mask, **settings)
        assert torch.equal(drafted.generate(text, attention_mask=mask, **settings), expected)
