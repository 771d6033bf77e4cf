"""Heads learn from the model's own text; what they are worth is measured on what they have not seen."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.kernels import native
from hasten.methods import WeightOnly
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.decoding.medusa import MedusaHeads, Tree, chain_tree, decode
from hasten.runtime.decoding.medusa_training import (
    best_size,
    fit,
    own_text,
    rank_accuracy,
    states_of,
    step_seconds,
    trained_heads,
    tree_speed,
    try_sizes,
    written,
)

needs_kernels = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")


@needs_kernels
def test_trained_heads_save_steps(llama: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel(llama)
    ids, states = own_text(model, torch.randint(0, 211, (8, 8)), 60)
    heads = MedusaHeads(128, 2)
    before = rank_accuracy(heads, model, ids, states, 4)
    fit(heads, model, ids, states, seconds=3)
    after = rank_accuracy(heads, model, ids, states, 4)
    assert after[0][0] > before[0][0]
    tree = Tree.best(after, 6)
    prompt = ids[:1, :8]
    found = decode(model, heads, tree, prompt, 50)
    assert torch.equal(found.ids, ids[:1, :58])
    assert found.made > found.steps
    heads.save(tmp_path / "heads.safetensors")
    again = MedusaHeads.load(tmp_path / "heads.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(heads.parameters(), again.parameters(), strict=True))
    (tmp_path / "other").write_text("no")
    with pytest.raises(HastenError, match="Medusa heads"):
        MedusaHeads.load(tmp_path / "other")


@needs_kernels
def test_speed_is_told_with_what_was_kept(llama: Any) -> None:
    torch.manual_seed(0)
    model, ids = LanguageModel(llama), torch.randint(0, 211, (1, 12))
    greedy = model.generate(ids, max_new_tokens=12, eos_token_id=None, do_sample=False)
    found = tree_speed(model, MedusaHeads(128, 2), chain_tree(2), [ids, ids], [greedy, greedy])
    assert found.exact
    assert found.seconds > 0
    assert found.tokens_a_step >= 1
    assert not tree_speed(model, MedusaHeads(128, 2), chain_tree(2), [ids], [greedy + 1]).exact


def test_own_text_is_greedy_and_an_eighth_is_held_out(llama: Any) -> None:
    model, tokens = LanguageModel(llama), torch.arange(400) * 7 % 211
    text = written(model, tokens, prompts=20, prompt=6, made=9)
    assert text.ids.shape == (20, 15)
    assert (len(text.training), len(text.judging)) == (18, 2)
    first = model.generate(tokens[None, :6], max_new_tokens=9, eos_token_id=None, do_sample=False)
    assert torch.equal(text.ids[:1], first)
    assert torch.equal(text.ids[-1, :6], tokens[394:])


def test_heads_are_the_same_for_a_seed_s_steps_and_know_something(llama: Any) -> None:
    model = LanguageModel(llama)
    text = written(model, torch.arange(400) * 7 % 211, prompts=12, prompt=6, made=30)
    heads, accuracy = trained_heads(model, text, 2, seconds=1.5)
    assert (len(heads.layers), len(accuracy), len(accuracy[0])) == (2, 2, 10)
    states = states_of(model, text.training)
    fresh = rank_accuracy(MedusaHeads(128, 2), model, text.training, states)
    assert rank_accuracy(heads, model, text.training, states)[0][0] > fresh[0][0]


@needs_kernels
def test_steps_of_several_rows_are_timed(llama: Any) -> None:
    found = step_seconds(LanguageModel(llama), [1, 33, 65])
    assert set(found) == {1, 33, 65}
    assert 0 < found[1] < found[65] < 1
    with pytest.raises(HastenError, match="no step of several rows can be timed"):
        step_seconds(LanguageModel(llama, cache=CacheSpec(window=16, sinks=4, capped=True)), [1])


@needs_kernels
def test_sizes_are_tried_on_the_same_prompts(llama: Any) -> None:
    model, prompts = LanguageModel(llama), [torch.arange(12)[None], torch.arange(20)[None]]
    found = try_sizes(model, MedusaHeads(128, 2), [[0.5, 0.2, 0.1], [0.4, 0.1, 0.05]], prompts, 10, (2, 5))
    assert found.exact
    assert set(found.speeds) == {2, 5} == set(found.rates)
    assert found.chosen in (2, 5)
    assert found.rates[5] == found.plain / found.speeds[5].seconds


def test_the_size_with_the_most_tokens_a_second_is_taken() -> None:
    assert best_size([(2, 1.5), (8, 2.0)], lambda n: {2: 1.0, 8: 2.0}[n]) == 2
    assert best_size([(2, 1.5), (8, 2.0)], lambda n: 1.0) == 8


@needs_kernels
def test_heads_of_packed_and_bf16_weights_guess(llama: Any) -> None:
    """The head's own format is asked in, whatever it is."""
    ids = torch.randint(0, 211, (1, 9))
    packed = WeightOnly(8).apply(LanguageModel(copy.deepcopy(llama)))
    assert rank_accuracy(MedusaHeads(128, 2), packed, ids, states_of(packed, ids))[0][0] >= 0
    half = LanguageModel(llama.to(torch.bfloat16))
    expected = half.generate(ids, max_new_tokens=10, eos_token_id=None, do_sample=False)
    assert torch.equal(decode(half, MedusaHeads(128, 2), chain_tree(2), ids, 10).ids, expected)
