"""What each method does to the model's output."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.methods import (
    BlockTopK,
    CacheFormat,
    DropLayers,
    HybridWindow,
    LambdaWindow,
    LookupDecoding,
    Method,
    SlidingWindow,
    SnapKV,
    SparseWindow,
    WeightOnly,
    apply_all,
    clash,
)
from hasten.methods.drop_layers import influence, least_important
from hasten.methods.prompt_lookup import acceptance
from hasten.runtime import LanguageModel, PromptLookup
from hasten.workload import trace

from .conftest import small_llama


@pytest.fixture
def model() -> LanguageModel:
    return small_llama(0)


def logits(model: LanguageModel, ids: torch.Tensor) -> torch.Tensor:
    cache = model.new_cache(1, 256)
    with torch.inference_mode():
        model(ids[:, :-8], past_key_values=cache)
        return model(ids[:, -8:], past_key_values=cache).logits


@pytest.mark.parametrize(("bits", "limit"), [(16, 0.01), (8, 0.03), (4, 0.3)])
def test_fewer_bits_cost_little(model: LanguageModel, bits: int, limit: float) -> None:
    ids = torch.randint(0, 211, (1, 100))
    plain = logits(model, ids)
    packed = logits(WeightOnly(bits, bits).apply(model), ids)
    assert (packed - plain).norm() < limit * plain.norm()


@pytest.mark.parametrize(("dtype", "limit"), [("bf16", 0.01), ("int8", 0.02), ("int4", 0.2)])
def test_cache_formats_cost_little(model: LanguageModel, dtype: str, limit: float) -> None:
    ids = torch.randint(0, 211, (1, 200))
    plain = logits(model, ids)
    changed = logits(CacheFormat(dtype).apply(model), ids)
    assert 0 < (changed - plain).norm() < limit * plain.norm()


def test_a_long_window_is_no_window(model: LanguageModel) -> None:
    ids = torch.randint(0, 211, (1, 100))
    plain = logits(model, ids)
    torch.testing.assert_close(logits(SlidingWindow(120, 0).apply(model), ids), plain, rtol=0, atol=1e-5)


def test_a_layer_that_does_nothing_is_found_and_dropped_without_loss(model: LanguageModel) -> None:
    idle = model.layers[2]
    nn.init.zeros_(idle.self_attn.o_proj.weight)
    nn.init.zeros_(idle.mlp.down_proj.weight)
    ids = torch.randint(0, 211, (1, 60))
    values = influence(model, ids)
    assert values[2] == pytest.approx(0, abs=1e-5)
    assert min(values) == values[2]
    plain = logits(model, ids)
    method = least_important(model, ids, 1)
    assert method == DropLayers((2,))
    torch.testing.assert_close(logits(method.apply(model), ids), plain, rtol=0, atol=1e-5)


def test_lookup_is_exact_and_its_acceptance_is_what_happens(model: LanguageModel) -> None:
    prompt = torch.randint(0, 211, (1, 25)).repeat(1, 2)
    plain = model.generate(prompt, max_new_tokens=40, do_sample=False)
    expected = acceptance(prompt[0].tolist(), plain[0, 50:].tolist(), PromptLookup(3, 4))
    LookupDecoding(3, 4).apply(model)
    pieces = list(model.stream(prompt, max_new_tokens=40, do_sample=False))
    assert [t for p in pieces for t in p] == plain[0, 50:].tolist()
    assert len(pieces) - 1 == pytest.approx(39 / (1 + expected))


@pytest.mark.parametrize(
    "other",
    [
        WeightOnly(4, 8, int8=True), CacheFormat("int8"), CacheFormat("int4"), SlidingWindow(40, 4),
        HybridWindow(40, 4), LambdaWindow(40, 4), BlockTopK(1, 2), SnapKV(40, 8), DropLayers((1,)),
    ],
    ids=lambda m: m.title,
)  # fmt: skip
def test_lookup_is_exact_beside_every_other_method(model: LanguageModel, other: Method) -> None:
    assert clash([other, LookupDecoding()]) is None
    other.apply(model)
    prompt = torch.randint(0, 211, (1, 30)).repeat(1, 5)
    plain = model.generate(prompt, max_new_tokens=24, min_new_tokens=24, do_sample=False)
    LookupDecoding(3, 4).apply(model)
    assert torch.equal(model.generate(prompt, max_new_tokens=24, min_new_tokens=24, do_sample=False), plain)


def test_drafts_are_left_where_a_cache_remembers_them(model: LanguageModel) -> None:
    with pytest.raises(HastenError, match="do not go together"):
        apply_all(model, [SparseWindow(0.4), LookupDecoding(3, 4)])
    SparseWindow(0.4).apply(model)
    prompt = torch.randint(0, 211, (1, 30)).repeat(1, 3)
    plain = model.generate(prompt, max_new_tokens=24, min_new_tokens=24, do_sample=False)
    model.lookup = PromptLookup(3, 4)
    assert torch.equal(model.generate(prompt, max_new_tokens=24, min_new_tokens=24, do_sample=False), plain)


def test_weight_only_works_on_any_module() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 32))
    x = torch.randn(5, 64)
    plain = module(x)
    before = trace(module, x)
    method = WeightOnly(8, 0)
    described = method.rewrite(before)
    method.apply(module)
    assert (module(x) - plain).norm() < 0.02 * plain.norm()
    traced = trace(module, x)
    biases = 4 * (96 + 32)
    assert described.weight_bytes == traced.weight_bytes == 64 * 96 + 96 * 32 + 2 * (2 * 96 + 3 * 32) + biases


def test_odd_widths_are_refused_in_words() -> None:
    assert "50 columns" in str(WeightOnly(4).why_not(nn.Linear(50, 8)))
    assert "no linear layers" in str(WeightOnly(4).why_not(nn.ReLU()))
    assert "not a language model" in str(CacheFormat().why_not(nn.Linear(32, 8)))
