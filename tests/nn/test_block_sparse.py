"""Block-sparse attention: against dense attention under the expanded mask, and its cache against itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.nn.block_sparse import (
    BlockCache,
    Pattern,
    SinkWindow,
    VerticalStride,
    block_sparse_attention,
    convert,
    patterned,
)

PATTERNS = [
    SinkWindow(1, 2),
    SinkWindow(0, 1),
    VerticalStride(1, 3, heads=2),
    VerticalStride(2, 4, heads=2, rotate=False),
]


def tensors(batch: int, heads: int, kv: int, length: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, heads, length, 8), (batch, kv, length, 8), (batch, kv, length, 8)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pattern: Pattern, block: int) -> torch.Tensor:
    length, kv = query.shape[2], key.shape[1]
    count = -(-length // block)
    wide = pattern.mask(kv, count).repeat_interleave(block, 1).repeat_interleave(block, 2)[:, :length, :length]
    wide = (wide & torch.ones(length, length, dtype=torch.bool).tril()).repeat_interleave(query.shape[1] // kv, 0)
    return F.scaled_dot_product_attention(query, key, value, wide, enable_gqa=True)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PATTERNS), st.integers(1, 50), st.sampled_from([4, 7, 16]), st.sampled_from([(2, 2), (4, 2)]))
def test_values_and_gradients(pattern: Pattern, length: int, block: int, heads: tuple[int, int]) -> None:
    given_tensors = tensors(2, *heads, length)
    found = block_sparse_attention(*given_tensors, pattern, block=block)
    expected = dense(*given_tensors, pattern, block)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), given_tensors),
        torch.autograd.grad((expected * weight).sum(), given_tensors),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_cache_drops_what_is_not_read(pattern: Pattern) -> None:
    query, key, value = (t.detach() for t in tensors(1, 4, 2, 60))
    expected = block_sparse_attention(query, key, value, pattern, block=8)
    cache = BlockCache(pattern, 2, block=8)
    cache.append(key[:, :, :20], value[:, :, :20])
    for t in range(20, 60):
        cache.append(key[:, :, t : t + 1], value[:, :, t : t + 1])
        torch.testing.assert_close(cache.attend(query[:, :, t : t + 1]), expected[:, :, t : t + 1])
    kept = sum(len(pattern.blocks(h, 7)) for h in range(2))
    assert cache.nbytes == (kept * 8 - 2 * 4) * 8 * 8 * 2


def test_counts_and_unions() -> None:
    stride = VerticalStride(3, 5)
    for i in range(40):
        assert len(stride.blocks(0, i)) == min(i + 1, 3) + sum(j % 5 == 0 for j in range(max(0, i - 2)))
    turned = VerticalStride(1, 4, heads=4)
    assert torch.equal(turned.mask(4, 20).any(0), torch.ones(20, 20, dtype=torch.bool).tril())
    assert len(SinkWindow(1, 16).blocks(0, 100)) == 17


def test_a_pattern_that_comes_back_cannot_drop() -> None:
    class Back(Pattern):
        def reads(self, head: int, query: int, key: int) -> bool:
            return key == query or (query % 2 == 0 and key == 0)

    with pytest.raises(HastenError, match="comes back"):
        BlockCache(Back(), 1)


def network(**changes: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, **changes,
        )
    ).eval()  # fmt: skip


def test_conversion() -> None:
    plain, ids = network(), torch.randint(0, 50, (1, 40))
    before = plain(ids).logits
    wide = convert(copy.deepcopy(plain), SinkWindow(0, 5), (), block=8)
    torch.testing.assert_close(wide(ids, use_cache=False).logits, before, atol=1e-5, rtol=0)
    everywhere = convert(copy.deepcopy(plain), SinkWindow(0, 1), (0, 1, 2), block=8)
    torch.testing.assert_close(everywhere(ids, use_cache=False).logits, before, atol=1e-5, rtol=0)
    narrow = convert(copy.deepcopy(plain), SinkWindow(0, 1), (1,), block=8)
    assert not torch.allclose(narrow(ids, use_cache=False).logits, before, atol=1e-3)
    with patterned(plain, SinkWindow(0, 1), (1,), block=8):
        torch.testing.assert_close(plain(ids, use_cache=False).logits, narrow(ids, use_cache=False).logits)
    torch.testing.assert_close(plain(ids).logits, before)
    longer = convert(copy.deepcopy(plain), None, (), rope_scale=50.0)
    assert longer.config.rope_parameters["rope_theta"] == 50 * plain.config.rope_parameters["rope_theta"]
    with pytest.raises(HastenError, match="full layers"):
        convert(plain, None, (3,))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_packed_documents_do_not_see_each_other(pattern: Pattern) -> None:
    model = convert(network(), pattern, (1,), block=8)
    lengths = [[13, 20, 7], [30, 10]]
    documents = [[torch.randint(0, 50, (1, n)) for n in row] for row in lengths]
    packed = torch.cat([torch.cat(row, 1) for row in documents])
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])
    found = model(packed, position_ids=positions, use_cache=False).logits
    alone = [torch.cat([model(d, use_cache=False).logits for d in row], 1) for row in documents]
    torch.testing.assert_close(found, torch.cat(alone), atol=1e-5, rtol=0)


def test_training_with_checkpoints_has_the_same_gradients() -> None:
    ids, grads = torch.randint(0, 50, (2, 40)), []
    for checkpoints in (False, True):
        model = convert(network(), VerticalStride(1, 2, heads=2), (1,), block=8, rope_scale=50.0).train()
        if checkpoints:
            model.activation_checkpointing_enable()
        model(ids, labels=ids, use_cache=False).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(g is not None and g.abs().sum() > 0 for g in grads[0])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
