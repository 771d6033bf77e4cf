"""2:4 sparse 2-bit weights on a small model: what is packed, what is described, what does not apply."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.kernels import sparse_linear as kernel
from hasten.methods import CacheFormat, LambdaWindow, SparseLowBit, TwoOfFour, WeightOnly, apply_all, from_dict
from hasten.methods.editing import outline
from hasten.methods.recovery import LowBitLinear, last_states, recover
from hasten.methods.solvers import Rounding
from hasten.methods.sparse_low_bit import (
    Int8Activations,
    SparseLinear,
    calibration,
    compress,
    int8_activations,
    pack,
    solver,
    trainable,
)
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import CacheSpec, LanguageModel


class Letters:
    """A tokenizer: a token a letter."""

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 211 for c in text]}


def tiny(inner: int = 192) -> LanguageModel:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=211, hidden_size=128, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return LanguageModel(transformers.LlamaForCausalLM(config), Letters())


METHOD = SparseLowBit(2, 32)


def test_the_whole_stack_of_the_paper_goes_together() -> None:
    """2:4 weights of two bits with int8 activations, a cache of four bits, and a capped window of it."""
    model = apply_all(tiny(), [METHOD, CacheFormat("int4"), LambdaWindow(60, 4)])
    spec = model.cache
    assert (spec.dtype, spec.window, spec.sinks, spec.capped) == ("int4", 60, 4, True)
    ids = torch.randint(0, 211, (1, 200), generator=torch.Generator().manual_seed(1))
    cache = model.new_cache(1, 300)
    whole = METHOD.apply(tiny())
    whole.cache = CacheSpec("int4")
    all_of_it = whole.new_cache(1, 300)
    with torch.inference_mode():
        for at in range(0, 200, 25):
            found = model(ids[:, at : at + 25], past_key_values=cache).logits
            expected = whole(ids[:, at : at + 25], past_key_values=all_of_it).logits
            if at < 50:
                torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, expected, atol=1e-3), "what has left the window is not seen"
    assert model.new_cache(1, 2000).nbytes == model.new_cache(1, 500).nbytes, "however long the text"


def test_weights_are_really_packed() -> None:
    model = METHOD.apply(tiny())
    layers = [m for m in model.layers.modules() if isinstance(m, SparseLinear)]
    assert len(layers) == 14
    before = tiny()
    dense = sum(p.numel() for p in before.layers.parameters() if p.ndim == 2)
    assert sum(b.nbytes for m in layers for b in m.buffers()) * 8 / dense < 2.6
    out = model.generate(torch.randint(0, 211, (1, 9)), max_new_tokens=5, do_sample=False)
    assert out.shape == (1, 14)


def test_packed_is_what_was_trained() -> None:
    """Integer sums over the packed bytes against the rounded weights under int8 activations."""
    model, ids = tiny(), torch.randint(0, 211, (2, 32))
    trainable(model, ids)
    layers = {n: m for n, m in model.layers.named_modules() if isinstance(m, LowBitLinear)}
    assert len(layers) == 14
    weights = {n: m.weight.detach() for n, m in layers.items()}
    for weight in weights.values():
        assert int((weight.reshape(weight.shape[0], -1, 4) != 0).sum(-1).max()) <= 2
    pack(model)
    for name, weight in weights.items():
        packed = model.layers.get_submodule(name)
        assert isinstance(packed, SparseLinear)
        x = torch.randn(5, weight.shape[1])
        codes, scale = kernel.encode(x)
        expected = (codes.double() * scale[:, None]) @ weight.double().t()
        torch.testing.assert_close(packed(x).double(), expected, atol=1e-4, rtol=1e-4)


def test_recovery_comes_closer_and_stays_sparse() -> None:
    model, ids = tiny(), torch.randint(0, 211, (80, 32))
    twin = LanguageModel(copy.deepcopy(model.network, {id(p): p for p in model.network.parameters()}), Letters())
    norm = model.layers[0].input_layernorm.weight.clone()
    states = last_states(model, ids)
    torch.testing.assert_close(model.network.lm_head(states), model.network(ids).logits)
    trainable(model, ids)
    places = [m.kept.clone() for m in model.layers.modules() if isinstance(m, LowBitLinear)]
    before, after = recover(model, ids, states, steps=150)
    assert after < before
    for m, kept in zip((m for m in model.layers.modules() if isinstance(m, LowBitLinear)), places, strict=True):
        assert (m.weight[~kept] == 0).all()
        assert (kept.reshape(kept.shape[0], -1, 4).sum(-1) <= 2).all()
    # What a copy shares with it is not touched.
    assert torch.equal(twin.layers[0].input_layernorm.weight, norm)
    assert not torch.equal(model.layers[0].input_layernorm.weight, norm)
    assert all(p.grad is None for p in model.network.parameters())
    with pytest.raises(HastenError, match="states for the same text"):
        recover(model, ids[:, :9], states)
    with pytest.raises(HastenError, match="nothing to recover"):
        recover(tiny(), ids, states)
    with pytest.raises(HastenError, match="0 for none"):
        SparseLowBit(recovery=-1)


def test_recovery_that_does_not_help_changes_nothing() -> None:
    model, ids = tiny(), torch.randint(0, 211, (6, 32))
    states = last_states(model, ids)
    trainable(model, ids)
    kept = [m.weight.detach().clone() for m in model.layers.modules() if isinstance(m, LowBitLinear)]
    before, after = recover(model, ids, states, steps=3, rate=1e3)
    assert after == before
    now = [m.weight.detach() for m in model.layers.modules() if isinstance(m, LowBitLinear)]
    assert all(torch.equal(a, b) for a, b in zip(now, kept, strict=True))


def test_traced_equals_rewritten() -> None:
    assert outline(METHOD.rewrite(tiny().workload(70, 12))) == outline(METHOD.apply(tiny()).workload(70, 12))


@pytest.mark.parametrize("by", ["sparsegpt", "wanda", "magnitude"])
def test_two_of_four(by: str) -> None:
    method = TwoOfFour(by, 2, 32)
    assert from_dict(method.to_dict()) == method
    model = method.apply(tiny(160))
    for m in model.layers.modules():
        if isinstance(m, nn.Linear):
            assert ((m.weight.reshape(m.out_features, -1, 4) != 0).sum(-1) == 2).all()
    assert outline(method.rewrite(tiny(160).workload(70, 12))) == outline(model.workload(70, 12))
    with pytest.raises(HastenError, match="sparse already"):
        method.apply(model)
    assert model.generate(torch.randint(0, 211, (1, 9)), max_new_tokens=5, do_sample=False).shape == (1, 14)


def test_calibration_is_not_the_text_that_is_scored() -> None:
    from hasten.data.text import default_text

    class Kept(Letters):
        text = ""

        def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
            Kept.text = text
            return super().__call__(text, **options)

    model = tiny()
    model.tokenizer = Kept()
    calibration(model, 10, 512)
    scored = default_text()[:20000]
    assert not any(scored[at : at + 200] in Kept.text for at in range(0, 19800, 100))


def test_what_does_not_apply() -> None:
    with pytest.raises(HastenError, match="160 columns"):
        METHOD.apply(tiny(160))
    untold = tiny()
    untold.tokenizer = None
    with pytest.raises(HastenError, match="no tokenizer"):
        METHOD.apply(untold)
    with pytest.raises(HastenError, match="packed already"):
        METHOD.apply(WeightOnly(4).apply(tiny()))
    with pytest.raises(HastenError, match="goes by one of"):
        TwoOfFour("chance")
    with pytest.raises(HastenError, match="unknown solver"):
        solver("magic")
    with pytest.raises(HastenError, match="give it a rounding"):
        solver("round")(torch.ones(4, 64), torch.eye(64))


def test_copies_keep_their_weights() -> None:
    model = tiny()
    kept = {n: p.clone() for n, p in model.network.named_parameters()}
    twin = LanguageModel(copy.deepcopy(model.network, {id(p): p for p in model.network.parameters()}), Letters())
    compress(twin, calibration(twin, 2, 32), solver("joint", Rounding(2, 64)))
    assert all(torch.equal(p, kept[n]) for n, p in model.network.named_parameters())


def test_one_input_is_solved_once_and_as_each_alone_would_be() -> None:
    model, ids = tiny(), torch.randint(0, 211, (3, 32))
    first = model.layers[0]
    before = {n: first.get_submodule(f"self_attn.{n}_proj").weight.clone() for n in "qkv"}
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    solve = solver("joint", Rounding(2, 64))

    def change(weight: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
        seen.append((weight, hessian))
        return solve(weight, hessian)

    compress(model, ids, change)
    # q with k with v, o, gate with up, down: of two layers.
    assert [w.shape[0] for w, _ in seen] == 2 * [256, 128, 384, 128]
    for name, weight in before.items():
        torch.testing.assert_close(first.get_submodule(f"self_attn.{name}_proj").weight, solve(weight, seen[0][1]))


def test_int8_activations_err_by_half_a_step() -> None:
    linear, x = nn.Linear(64, 8, bias=False), torch.randn(5, 64)
    seen = []
    linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    Int8Activations(linear)(x)
    assert ((seen[0] - x).abs() <= x.abs().amax(-1, keepdim=True) / 254 + 1e-6).all()


def test_int8_activations_stand_before_the_layers_alone() -> None:
    model = LanguageModel(tiny_model(layers=2).network)
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        before = model(ids).logits
        after = int8_activations(model)(ids).logits
    rounded = [name for name, m in model.named_modules() if isinstance(m, Int8Activations)]
    assert len(rounded) == 2 * 7
    assert all(".layers." in name for name in rounded)
    assert 0 < float((after - before).abs().max()) < 0.1 * float(before.abs().max())


@pytest.mark.parametrize(
    "method",
    [
        *(TwoOfFour(by, 1, 32) for by in ("sparsegpt", "wanda", "magnitude")),
        SparseLowBit(1, 32),
        SparseLowBit(1, 32, recovery=0.5),
    ],
    ids=repr,
)
def test_a_bf16_network_is_compressed(method: TwoOfFour | SparseLowBit) -> None:
    model, ids = tiny(), torch.randint(0, 211, (1, 40))
    model.network.to(torch.bfloat16)
    changed = method.apply(copy.deepcopy(model))
    whole = {n: m for n, m in model.layers.named_modules() if isinstance(m, nn.Linear)}
    for name, linear in whole.items():
        known = changed.layers.get_submodule(name)
        if isinstance(method, TwoOfFour):
            assert known.weight.dtype is torch.bfloat16
            assert int((known.weight.unflatten(1, (-1, 4)) != 0).sum(-1).max()) <= 2
        else:
            assert isinstance(known, SparseLinear)
        inputs = torch.randn(3, linear.in_features, dtype=torch.bfloat16)
        assert known(inputs).dtype is torch.bfloat16
    said = changed.generate(ids, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    with torch.inference_mode():
        assert int(changed(ids).logits[0, -1].argmax()) == int(said[0, 40])


def test_recovery_of_a_bf16_network_brings_it_nearer() -> None:
    torch.manual_seed(0)
    model, ids = tiny(), torch.randint(0, 211, (4, 64))
    model.network.to(torch.bfloat16)
    states = last_states(model, ids)
    trainable(model, ids)
    before, after = recover(model, ids, states, steps=12)
    assert after < before
    pack(model)
    assert model.generate(ids[:1], max_new_tokens=4, do_sample=False).shape == (1, 68)
