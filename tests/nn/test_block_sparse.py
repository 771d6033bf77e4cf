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
    VerticalStride(1, 3, heads=2, offset=2),
    VerticalStride(1, 5, heads=2, dense=(1,)),
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


@pytest.mark.parametrize(
    "pattern",
    [
        SinkWindow(0, 1), SinkWindow(3, 2), SinkWindow(1, 16), VerticalStride(3, 5),
        VerticalStride(1, 7, heads=3, offset=3),
        VerticalStride(2, 4, heads=4, offset=-1, dense=(0, 2)), VerticalStride(4, 3, heads=2, rotate=False, offset=1),
    ],
    ids=repr,
)  # fmt: skip
def test_blocks_are_those_that_are_read(pattern: Pattern) -> None:
    """What a pattern lists and promises is what it answers for each block: built in shortcuts change nothing."""
    for head in range(4):
        for i in range(40):
            assert pattern.blocks(head, i) == Pattern.blocks(pattern, head, i)
    assert pattern.droppable(4)
    assert Pattern.droppable(pattern, 4, 150)


def test_offset_and_dense_heads() -> None:
    """By the definition: blocks j with (j + head * step + offset) % stride == 0 and the newest; dense heads: all."""
    pattern = VerticalStride(2, 8, heads=4, offset=3, dense=(2,))
    for head in range(4):
        for i in range(30):
            wanted = {j for j in range(i + 1) if i - j < 2 or (j + head * 2 + 3) % 8 == 0 or head == 2}
            assert set(pattern.blocks(head, i)) == wanted
    for wrong in ((4,), (-1,)):
        with pytest.raises(HastenError, match="numbers from 0 to 3"):
            VerticalStride(2, 8, heads=4, dense=wrong)


def test_dense_heads_are_computed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dense head among sparse ones does not make these read everything too."""
    read = []
    attend = F.scaled_dot_product_attention

    def counted(q: torch.Tensor, k: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        read.append(q.shape[1] * q.shape[2] * k.shape[2] // (2 if kwargs.get("is_causal") else 1))
        return attend(q, k, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    query, key, value = (t.detach() for t in tensors(1, 8, 4, 400))
    pattern = VerticalStride(1, 100, heads=4, dense=(1,))
    block_sparse_attention(query, key, value, pattern, block=4)
    dense, others = 2 * 400 * 202, 6 * 400 * 8
    assert sum(read) < 1.1 * (dense + others)


def test_a_pattern_that_comes_back_late() -> None:
    """After the 65th block, or the 150th: found out before, when as many are asked for, or when it comes."""

    class Late(Pattern):
        def __init__(self, block: int) -> None:
            self.block = block

        def reads(self, head: int, query: int, key: int) -> bool:
            return key == query or (query == self.block and key == 3)

    for block in (65, 150):
        assert not Late(block).droppable(1, block + 1)
        assert Late(block).droppable(1, block)
        with pytest.raises(HastenError, match="comes back"):
            BlockCache(Late(block), 1, count=block + 1)
        cache = BlockCache(Late(block), 1, block=2)
        cache.append(*torch.zeros(2, 1, 1, 2 * block, 4))
        with pytest.raises(HastenError, match="comes back"):
            cache.append(*torch.zeros(2, 1, 1, 1, 4))


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


MASKS = {
    "left": [[0] * 20 + [1] * 20, [1] * 40],
    "right": [[1] * 13 + [0] * 27, [1] * 30 + [0] * 10],
    "holes": [[1] * 9 + [0] * 5 + [1] * 26, [0] * 3 + [1, 0] * 18 + [1]],
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("side", MASKS)
def test_padding_is_as_if_it_were_not_there(pattern: Pattern, side: str) -> None:
    """Each text has the logits that it has alone, and they do not change with what stands under the mask."""
    model = convert(network(), pattern, (1,), block=8)
    ids, mask = torch.randint(0, 50, (2, 40)), torch.tensor(MASKS[side])
    others = torch.where(mask.bool(), ids, torch.randint(0, 50, (2, 40)))
    # Positions are those of the columns, as transformers counts them where none are given.
    found, again = (model(x, attention_mask=mask, use_cache=False).logits for x in (ids, others))
    assert torch.equal(found[mask.bool()], again[mask.bool()])
    for row in range(2):
        at = mask[row].nonzero()[:, 0]
        alone = model(ids[row : row + 1, at], position_ids=at[None], use_cache=False).logits[0]
        torch.testing.assert_close(found[row, at], alone, atol=1e-5, rtol=0)


def test_no_gradient_comes_from_padding() -> None:
    model = convert(network(), SinkWindow(1, 2), (1,), block=8).train()
    mask = torch.tensor(MASKS["left"])
    states = torch.randn(2, 40, 32, requires_grad=True)
    out = model(inputs_embeds=states, attention_mask=mask, use_cache=False).logits
    out[mask.bool()].square().sum().backward()
    assert states.grad is not None
    assert states.grad[0, :20].abs().max() == 0
    assert states.grad[mask.bool()].abs().min(-1).values.max() > 0


def test_packed_and_padded() -> None:
    """Two documents, padding before, between and behind, with positions as transformers counts them."""
    model = convert(network(), VerticalStride(1, 3, heads=2), (1,), block=8)
    one, other = torch.randint(0, 50, (1, 17)), torch.randint(0, 50, (1, 11))
    fill = torch.zeros(1, 4, dtype=torch.int64)
    ids = torch.cat((fill, one, fill, other, fill), 1)
    mask = torch.cat([t.new_tensor([[int(t is not fill)]]).expand_as(t) for t in (fill, one, fill, other, fill)], 1)
    positions = torch.cat((fill, torch.arange(17)[None], fill, torch.arange(11)[None], fill), 1)
    found = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[mask.bool()]
    alone = torch.cat([model(t, use_cache=False).logits[0] for t in (one, other)])
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


def test_what_the_layers_cannot_do_is_refused() -> None:
    model = convert(network(), SinkWindow(1, 2), (1,), block=8)
    ids = torch.randint(0, 50, (1, 20))
    with pytest.raises(HastenError, match="none of four dimensions"):
        model(ids, attention_mask=torch.ones(1, 1, 20, 20, dtype=torch.bool), use_cache=False)
    import transformers

    windowed = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, sliding_window=8,
        )
    ).eval()  # fmt: skip
    with pytest.raises(HastenError, match="no sliding_window"):
        convert(windowed, SinkWindow(1, 2), (), block=8)(ids, use_cache=False)


def test_dropout_reaches_the_weights() -> None:
    torch.manual_seed(0)
    model = convert(network(attention_dropout=0.5), SinkWindow(1, 2), (1,), block=8)
    ids = torch.randint(0, 50, (1, 40))
    calm = model(ids, use_cache=False).logits
    torch.testing.assert_close(model(ids, use_cache=False).logits, calm)
    model.train()
    assert not torch.allclose(model(ids, use_cache=False).logits, calm, atol=1e-3)
    given_tensors = [t.detach() for t in tensors(64, 2, 2, 24)]
    plain, dropped = (
        block_sparse_attention(*given_tensors, SinkWindow(1, 1), block=8, dropout=d).mean() for d in (0.0, 0.3)
    )
    torch.testing.assert_close(plain, dropped, atol=0.02, rtol=0)


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
