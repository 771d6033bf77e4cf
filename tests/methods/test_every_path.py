"""A method means the same on every path: after a change, in transformers' loop, in batches, drafts and pieces, without
a cache, beside a model's own window, in bf16, and on any module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.methods import (
    BlockTopK,
    CacheFormat,
    HybridWindow,
    LambdaWindow,
    LookupDecoding,
    Method,
    SlidingWindow,
    SnapKV,
    SparseWindow,
    WeightOnly,
    apply_all,
)
from hasten.nn import PackedLinear
from hasten.runtime import LanguageModel, language_model
from hasten.runtime.decoding import early_exit
from hasten.runtime.quality import perplexity

READING = [
    SlidingWindow(40, 4), HybridWindow(40, 4), LambdaWindow(40, 4), BlockTopK(1, 2), SnapKV(40, 8), SparseWindow(0.4),
]  # fmt: skip


def tiny(seed: int = 3, kind: str = "Llama", **more: Any) -> LanguageModel:
    import transformers

    torch.manual_seed(seed)
    settings = {
        "vocab_size": 211, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "eos_token_id": None,
        **more,
    }  # fmt: skip
    network = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4)  # so that tokens differ
    return LanguageModel(network)


def some(length: int, batch: int = 1, seed: int = 3) -> torch.Tensor:
    return torch.randint(2, 211, (batch, length), generator=torch.Generator().manual_seed(seed))


def said(model: LanguageModel, ids: torch.Tensor, new: int = 16, **more: Any) -> torch.Tensor:
    found = model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False, **more)
    assert isinstance(found, torch.Tensor)
    return found[:, ids.shape[1] :]


@torch.no_grad()
def halve(model: LanguageModel) -> None:
    for layer in model.layers:
        weight = layer.mlp.down_proj.weight
        layer.mlp.down_proj.weight = nn.Parameter(weight * torch.arange(weight.shape[1]).remainder(2))


@torch.no_grad()
def scale(model: LanguageModel) -> None:
    for layer in model.layers:
        layer.mlp.down_proj.weight.mul_(-1)


def load(model: LanguageModel) -> None:
    model.network.load_state_dict(tiny(seed=9).network.state_dict())


@torch.no_grad()
def norms(model: LanguageModel) -> None:
    for layer in model.layers:
        layer.input_layernorm.weight.copy_(torch.linspace(-1, 1, 128))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [halve, scale, load, norms])
def test_whoever_changes_weights_is_followed(change: Any, dtype: torch.dtype) -> None:
    model, ids = tiny(), some(20)
    model.network.to(dtype)
    before = said(model, ids)
    change(model)
    after = said(model, ids)
    assert torch.equal(after, said(LanguageModel(model.network), ids))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("method", [WeightOnly(8, 8), CacheFormat("int8"), *READING], ids=lambda m: m.title)
def test_settings_of_transformers_own_loop_change_nothing(method: Method) -> None:
    model, ids = method.apply(tiny()), some(200)
    plain = said(model, ids, new=20)
    # A setting that hasten's loop does not have, and that can never matter here.
    assert torch.equal(said(model, ids, new=20, no_repeat_ngram_size=300), plain)
    assert torch.equal(said(model, ids, new=20), plain)
    assert "forward" not in vars(model.network)


@pytest.mark.parametrize("method", READING, ids=lambda m: m.title)
def test_beams_read_as_the_method_says(method: Method) -> None:
    model, ids = method.apply(tiny()), some(120)
    found = said(model, ids, new=8, num_beams=3)
    assert found.shape == (1, 8)
    # At this seed three blocks are enough to say the same as all of them.
    assert not torch.equal(said(tiny(), ids, new=8, num_beams=3), found) or method == BlockTopK(1, 2)


def test_what_transformers_loop_cannot_do_with_a_method_is_refused() -> None:
    model, ids = SlidingWindow(40, 4).apply(tiny()), some(30, batch=2)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with pytest.raises(HastenError, match="one length"):
        model.generate(ids, attention_mask=mask, max_new_tokens=4, num_beams=2)
    with pytest.raises(HastenError, match="drafts"):
        model.generate(ids[:1], max_new_tokens=4, prompt_lookup_num_tokens=3)
    with pytest.raises(HastenError, match="past_key_values"):
        model.generate(ids, max_new_tokens=4, past_key_values=model.new_cache(2, 60))


@pytest.mark.parametrize(
    "method",
    [BlockTopK(50, 4), SlidingWindow(500, 0), HybridWindow(500, 0), LambdaWindow(500, 0), CacheFormat("fp16")],
    ids=lambda m: m.title,
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_models_own_window_stays(method: Method, batch: int) -> None:
    ids = some(200, batch)
    expected = said(tiny(kind="Mistral", sliding_window=48), ids, new=30)
    assert torch.equal(said(method.apply(tiny(kind="Mistral", sliding_window=48)), ids, new=30), expected)
    assert not torch.equal(said(tiny(kind="Mistral", sliding_window=None), ids, new=30), expected)


def test_two_windows_intersect() -> None:
    """The narrower one is what counts, whoever has it."""
    ids = some(200)
    narrow = said(SlidingWindow(20, 0).apply(tiny(kind="Mistral", sliding_window=48)), ids)
    assert torch.equal(narrow, said(tiny(kind="Mistral", sliding_window=20), ids))
    chosen = BlockTopK(1, 2).apply(tiny(kind="Mistral", sliding_window=20))
    # The newest blocks hold all of the last 20 tokens.
    assert torch.equal(said(chosen, ids), narrow)
    drafted = SlidingWindow(500, 0).apply(tiny(kind="Mistral", sliding_window=48))
    plain = said(drafted, ids.repeat(1, 2))
    assert torch.equal(said(LookupDecoding().apply(drafted), ids.repeat(1, 2)), plain)


def test_what_does_not_go_with_a_models_own_window_says_so() -> None:
    model = tiny(kind="Mistral", sliding_window=48)
    for method in (SnapKV(512, 16), SparseWindow(1.0)):
        assert "window of their own" in str(method.why_not(model))
    with pytest.raises(HastenError, match="window of their own"):
        early_exit.generate(model, some(60), 4, threshold=2.0)


def test_drafts_in_a_batch_are_taken_back_row_by_row() -> None:
    rows = torch.stack([some(10, seed=s)[0].repeat(5) for s in range(4)])
    model = LambdaWindow(256, 4).apply(tiny())
    assert model.why_not_compiled
    plain = said(model, rows, new=40)
    assert torch.equal(said(LookupDecoding().apply(model), rows, new=40), plain)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_drafts_change_nothing_over_a_rounded_cache(dtype: str) -> None:
    for seed in range(6):
        ids = some(17, seed=seed).repeat(1, 3)
        plain = said(CacheFormat(dtype).apply(tiny(seed)), ids, new=90)
        assert torch.equal(said(apply_all(tiny(seed), [CacheFormat(dtype), LookupDecoding()]), ids, new=90), plain)


@pytest.mark.parametrize("method", READING, ids=lambda m: m.title)
def test_a_row_that_ends_leaves_the_others_as_they_were(method: Method) -> None:
    model, ids = method.apply(tiny()), some(60, batch=3)
    free = said(model, ids, new=14)
    stop = int(free[0, 3])
    got = model.generate(ids, max_new_tokens=14, do_sample=False, eos_token_id=stop)[:, 60:]
    for row, whole in zip(got, free, strict=True):
        ends = (whole == stop).nonzero()
        length = int(ends[0]) + 1 if len(ends) else 14
        assert torch.equal(row[:length], whole[:length])


@pytest.mark.parametrize("method", READING, ids=lambda m: m.title)
def test_pieces_of_a_prompt_change_nothing(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for chunk in (4096, 100, 77):
        monkeypatch.setattr(language_model, "CHUNK", chunk)
        found.append(said(method.apply(tiny()), some(302)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("method", READING[:3], ids=lambda m: m.title)
def test_without_a_cache_a_window_is_the_same(method: Method) -> None:
    model, ids = method.apply(tiny()), some(200, batch=2)
    with torch.inference_mode():
        expected = model.prefill(ids, model.new_cache(2, 256))
        torch.testing.assert_close(model(ids).logits[:, -1], expected, atol=1e-4, rtol=0)
    model(ids[:, :50]).logits.sum().backward()
    assert all(p.grad is not None for p in model.network.parameters())


def test_a_capped_window_reads_beyond_the_trained_positions() -> None:
    model = LambdaWindow(40, 4).apply(tiny(max_position_embeddings=128))
    assert said(model, some(100), new=60).shape == (1, 60)
    assert said(model, some(200), new=5).shape == (1, 5)
    assert perplexity(model, some(400)[0], context=100, scored=60, segments=1).value > 1
    with pytest.raises(HastenError, match="128 positions"):
        said(SlidingWindow(40, 4).apply(tiny(max_position_embeddings=128)), some(200))
    with pytest.raises(HastenError, match="128 positions"):
        said(LambdaWindow(200, 4).apply(tiny(max_position_embeddings=128)), some(300))


@pytest.mark.parametrize("method", [WeightOnly(8, 8), CacheFormat("int8"), *READING], ids=lambda m: m.title)
def test_a_bf16_network_runs(method: Method) -> None:
    model = tiny()
    model.network.to(torch.bfloat16)
    assert said(method.apply(model), some(60), new=4).shape == (1, 4)


def test_weights_are_packed_in_any_module() -> None:
    x = torch.randn(2, 5, 64)
    torch.manual_seed(0)
    for module, inputs in (
        (nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval(), (x,)),
        (nn.MultiheadAttention(64, 4, batch_first=True).eval(), (x, x, x)),
    ):
        with torch.inference_mode():
            before = module(*inputs)
            after = WeightOnly(8).apply(module)(*inputs)
        a, b = (y[0] if isinstance(y, tuple) else y for y in (before, after))
        assert 0 < (a - b).norm() < 0.02 * a.norm()
    shared = nn.Linear(64, 64)
    both = WeightOnly(8).apply(nn.Sequential(shared, nn.ReLU(), shared))
    assert isinstance(both[0], PackedLinear)
    assert both[0] is both[2]
    assert "by itself" in str(WeightOnly(4).why_not(nn.Linear(64, 8)))


def test_a_t5_runs_packed() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=64, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4, decoder_start_token_id=0
    )  # fmt: skip
    model = WeightOnly(8).apply(T5ForConditionalGeneration(config).eval())
    ids = torch.ones(1, 4, dtype=torch.long)
    assert model(input_ids=ids, decoder_input_ids=ids).logits.shape == (1, 4, 64)


def test_a_scaled_embedding_keeps_its_scale() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(0)
    config = Gemma3TextConfig(
        vocab_size=211, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    network = Gemma3ForCausalLM(config).eval()
    with torch.inference_mode():
        before, logits = network.model.embed_tokens(some(30)), network(some(30)).logits
        WeightOnly(8, 8).apply(network)
        after = network.model.embed_tokens(some(30))
        assert (network(some(30)).logits - logits).norm() < 0.1 * logits.norm()
    assert (after - before).norm() < 0.02 * before.norm()
