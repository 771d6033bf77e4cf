"""The compiled step against transformers, for every family, cache and weight format."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.kernels import native
from hasten.nn import PackedEmbedding, PackedLinear
from hasten.runtime import CacheSpec, KVCache, LanguageModel
from hasten.runtime.step import CompiledStep, why_not

from .conftest import tiny

pytestmark = pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")


def packed(network: Any, bits: int) -> Any:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and name != "lm_head":
                setattr(parent, name, PackedLinear.from_linear(child, bits))
    head = PackedLinear.from_linear(network.lm_head, bits)
    network.model.embed_tokens = PackedEmbedding.from_embedding(network.model.embed_tokens, bits)
    network.lm_head = head
    return network


def steps_against_forward(model: LanguageModel, tolerance: float, prompt: int = 40, length: int = 70) -> None:
    """Token by token and in groups: the step's logits are the network's own over the same cache."""
    ids = torch.randint(0, model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(3))
    plain = model.new_cache(1, length)
    cache = model.new_cache(1, length)
    step = CompiledStep(model.network, cache)
    with torch.inference_mode():
        model(ids[:, :prompt], past_key_values=plain)
        model(ids[:, :prompt], past_key_values=cache)
        at = prompt
        for count in (1, 1, 3, 1, 7, 1, 1, 9, 1):
            part = ids[:, at : at + count]
            expected = model(part, past_key_values=plain).logits[0]
            found = step(part[0].tolist(), [0] * count, list(range(at, at + count)))
            cache.advance([count])
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
            at += count


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "int8", "int4"])
def test_every_family_and_cache(network: Any, dtype: str) -> None:
    model = LanguageModel(network, cache=CacheSpec(dtype))
    # Plain formats differ by rounding of sums alone; codes may fall on either side of a rounding edge.
    steps_against_forward(model, {"fp32": 1e-3, "fp16": 5e-3, "bf16": 0.02, "int8": 0.05, "int4": 0.3}[dtype])


@pytest.mark.parametrize("dtype", ["fp32", "int8", "int4"])
@pytest.mark.parametrize(("window", "sinks"), [(16, 0), (33, 4), (200, 2)])
def test_windows(llama: Any, dtype: str, window: int, sinks: int) -> None:
    model = LanguageModel(llama, cache=CacheSpec(dtype, window, sinks))
    steps_against_forward(model, {"fp32": 1e-3, "int8": 0.05, "int4": 0.3}[dtype], prompt=150, length=180)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_packed_weights(network: Any, bits: int) -> None:
    steps_against_forward(LanguageModel(packed(network, bits)), 1e-3)


def test_a_window_longer_than_the_text_changes_nothing(llama: Any) -> None:
    ids = torch.randint(0, 211, (1, 60))
    plain = LanguageModel(llama).generate(ids, max_new_tokens=20, do_sample=False)
    windowed = LanguageModel(llama, cache=CacheSpec("fp32", 400, 4))
    assert torch.equal(plain, windowed.generate(ids, max_new_tokens=20, do_sample=False))


def test_a_window_forgets_what_lies_behind_it(llama: Any) -> None:
    """Tokens outside window and sinks have no influence at all; inside they have."""
    model = LanguageModel(llama, cache=CacheSpec("fp32", 8, 2))
    ids = torch.randint(0, 211, (1, 64))
    layers = len(model.layers)
    other = ids.clone()
    # What a token saw, its successors inherit layer by layer: so far back nothing reaches the last one.
    other[0, 2 : 64 - layers * 8] = (other[0, 2 : 64 - layers * 8] + 1) % 211
    # Sinks carry no later text: they see only what is before them.
    with torch.inference_mode():
        a = model(ids, past_key_values=model.new_cache(1, 64)).logits[0, -1]
        b = model(other, past_key_values=model.new_cache(1, 64)).logits[0, -1]
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    changed = ids.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 211
    with torch.inference_mode():
        c = model(changed, past_key_values=model.new_cache(1, 64)).logits[0, -1]
    assert (a - c).abs().max() > 1e-4


def test_tokens_out_of_range_are_refused(llama: Any) -> None:
    model = LanguageModel(llama)
    step = CompiledStep(llama, cache := model.new_cache(1, 32))
    with pytest.raises(IndexError, match="vocabulary"):
        step([100000], [0], [0])
    with pytest.raises(IndexError, match="position"):
        step([1], [0], [cache.capacity + 300])
    with pytest.raises(IndexError, match="batch"):
        step([1], [3], [0])


def test_what_cannot_run_compiled_says_why(llama: Any) -> None:
    assert why_not(llama) is None
    llama.model.layers[0].mlp.up_proj = nn.Bilinear(2, 2, 2)
    assert "Bilinear" in str(why_not(llama))
    with pytest.raises(HastenError, match="no compiled step"):
        CompiledStep(llama, KVCache(CacheSpec(), layers=3, batch=1, heads=2, head_dim=32, capacity=8))


@pytest.mark.parametrize("isa", native().isas() if native() is not None else [])
def test_every_instruction_set(llama: Any, isa: str) -> None:
    module = native()
    assert module is not None
    best = module.isa()
    module.use_isa(isa)
    try:
        steps_against_forward(LanguageModel(packed(llama, 4), cache=CacheSpec("int4")), 0.3)
    finally:
        module.use_isa(best)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("scale", [1e18, 1e-12])
def test_values_at_the_ends_of_scales_are_kept_alike(llama: Any, dtype: str, scale: float) -> None:
    """What no scale reaches is cut off with its sign, what is tiny has steps of 2^-24: compiled as in plain torch."""
    for layer in llama.model.layers:
        layer.self_attn.v_proj.weight.data *= scale
    model = LanguageModel(llama, cache=CacheSpec(dtype))
    ids = torch.randint(0, model.config.vocab_size, (1, 70), generator=torch.Generator().manual_seed(3))
    plain, cache = model.new_cache(1, 80), model.new_cache(1, 80)
    step = CompiledStep(model.network, cache)
    with torch.inference_mode():
        for one in (plain, cache):
            model(ids[:, :20], past_key_values=one)
        for at in range(20, 70):
            model(ids[:, at : at + 1], past_key_values=plain)
            step(ids[0, at : at + 1].tolist(), [0], [at])
            cache.advance([1])
        heads = llama.config.num_key_value_heads
        nothing = torch.zeros(1, heads, 1, llama.config.hidden_size // llama.config.num_attention_heads)
        expected, found = (one.update(nothing, nothing, 0)[1][:, :, :64] for one in (plain, cache))
    assert found.isfinite().all()
    assert found.any() == (scale > 1 or expected.any())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("dtype", "window", "sinks", "changes"),
    [
        ("fp32", None, 0, {}),
        ("fp16", None, 0, {"head_dim": 80}),
        ("bf16", None, 0, {"head_dim": 24, "num_key_value_heads": 1}),
        ("fp32", 40, 3, {"head_dim": 64}),
        ("fp16", 33, 0, {}),
        ("bf16", 90, 70, {"num_key_value_heads": 4}),
    ],
)
def test_a_row_is_the_same_however_its_prompt_was_cut(
    dtype: str, window: int | None, sinks: int, changes: dict[str, Any], read_in_pieces: Callable[..., torch.Tensor]
) -> None:
    """Bit for bit: alone, in short pieces and in long ones, which read and write the cache in other ways."""
    model = LanguageModel(tiny("qwen3", **changes), cache=CacheSpec(dtype, window, sinks))
    ids = torch.randint(0, 211, (220,), generator=torch.Generator().manual_seed(4)).tolist()
    expected = read_in_pieces(model, ids, [*[1] * 20, *[10] * 20])
    assert torch.equal(read_in_pieces(model, ids, [220]), expected)
    assert torch.equal(read_in_pieces(model, ids, [41, 1, 128, 15, 16, 19]), expected)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
@pytest.mark.parametrize("window", [None, 50])
def test_a_long_piece_of_a_quantized_cache(llama: Any, dtype: str, window: int | None) -> None:
    """Rows beside each other give what few at a time give; long pieces what plain torch makes of them."""
    model = LanguageModel(llama, cache=CacheSpec(dtype, window))
    ids = torch.randint(0, 211, (1, 230), generator=torch.Generator().manual_seed(4))
    text = ids[0].tolist()
    plain, cache = model.new_cache(1, 230), model.new_cache(1, 230)
    step = CompiledStep(llama, cache)
    at = 0
    for count in (70, 100, 33, 27):
        with torch.inference_mode():
            expected = model(ids[:, at : at + count], past_key_values=plain).logits[0]
        rows = list(range(at, at + count))
        found = step(text[at : at + count], [0] * count, rows).clone()
        torch.testing.assert_close(found, expected, rtol=0, atol={"int8": 0.05, "int4": 0.3}[dtype])
        if count == 27:
            few = [step(text[i : i + 9], [0] * 9, list(range(i, i + 9))).clone() for i in range(at, at + count, 9)]
            assert torch.equal(torch.cat(few), found)
        cache.advance([count])
        at += count
        assert cache.quantized == plain.quantized
    for one, other in zip(cache.layers, plain.layers, strict=True):
        torch.testing.assert_close(
            one._read("key", 0, 200, 230, 6), other._read("key", 0, 200, 230, 6), rtol=0, atol=0.3
        )


def test_a_long_piece_begins_at_what_is_committed(llama: Any) -> None:
    cache = LanguageModel(llama, cache=CacheSpec("int8")).new_cache(1, 128)
    step = CompiledStep(llama, cache)
    with pytest.raises(IndexError, match="behind what is committed"):
        step([1] * 40, [0] * 40, list(range(3, 43)))
    with pytest.raises(IndexError, match="too many tokens"):
        step([1] * 20, [0] * 20, list(range(30, 50)))


def test_weights_of_a_layer_stand_side_by_side_as_they_are_read(llama: Any) -> None:
    network = packed(llama, 4)
    linears = [m for m in network.modules() if isinstance(m, PackedLinear)]
    for linear in linears:
        linear.int8 = True
    expected = [linear.dequantize() for linear in linears]
    LanguageModel(network).session(1, 32)
    for layer in network.model.layers:
        own = layer.self_attn, layer.mlp
        names = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
        weights = [getattr(part, name) for part, of in zip(own, names, strict=True) for name in of]
        place = weights[0].packed.data_ptr()
        for weight in weights:
            for tensor in (weight.packed, weight.scales, weight.mins):
                assert tensor.data_ptr() == place
                place += tensor.nbytes
    assert all(torch.equal(linear.dequantize(), was) for linear, was in zip(linears, expected, strict=True))
