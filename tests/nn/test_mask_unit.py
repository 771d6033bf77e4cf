"""Mask units: the order of tokens, pooling, and attention against plain attention under a mask."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.errors import HastenError
from hasten.nn import MaskUnitAttention, MaskUnitBlock
from hasten.nn.mask_unit import pooled, reroll, unroll

SIZES = [(8, 8, 3), (16, 8, 3), (16, 8, 2), (12, 4, 2), (8, 4, 1), (6, 3, 0), (24, 12, 2)]


@pytest.mark.parametrize(("side", "unit", "pools"), SIZES)
def test_the_order_comes_back_and_pools_as_a_map(side: int, unit: int, pools: int) -> None:
    x = torch.randn(2, side * side, 3)
    tokens = unroll(x, side, unit, pools)
    assert torch.equal(reroll(tokens, side, unit, pools), x)
    # A unit's tokens are the leading axis: each of them is a square of the map.
    places = unroll(torch.arange(side * side)[None, :, None].float(), side, unit, pools)[0, :, 0].view(unit**2, -1)
    for column in places.T.long():
        rows, columns = column // side // unit, column % side // unit
        assert len({*rows.tolist()}) == len({*columns.tolist()}) == 1
        assert len({*column.tolist()}) == unit**2
    as_map = x.transpose(1, 2).unflatten(2, (side, side))
    for left in reversed(range(pools)):
        tokens, as_map = pooled(tokens), F.max_pool2d(as_map, 2)
        side, unit = side // 2, unit // 2
        assert torch.equal(reroll(tokens, side, unit, left), as_map.flatten(2).transpose(1, 2))


def test_what_does_not_divide_is_refused() -> None:
    for wrong in ((10, 8, 3), (8, 6, 2), (8, 0, 0)):
        with pytest.raises(HastenError, match="does not divide into mask units"):
            unroll(torch.zeros(1, wrong[0] ** 2, 2), *wrong)
    with pytest.raises(HastenError, match="heads do not divide"):
        MaskUnitAttention(8, 8, 3)
    with pytest.raises(HastenError, match="are not pooled"):
        MaskUnitAttention(8, 8, 1, unit=6, pool=True)


def attended(block: MaskUnitAttention, x: Tensor, allowed: Tensor) -> Tensor:
    """Plain attention by a block's weights over tokens in any order, where ``allowed`` says who reads whom."""
    q, k, v = block.qkv(x).view(*x.shape[:2], 3, block.heads, -1).permute(2, 0, 3, 1, 4)
    scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
    return block.project((weights @ v).transpose(1, 2).flatten(2))


def test_units_are_attention_under_a_block_diagonal_mask() -> None:
    side, unit = 8, 4
    block, x = MaskUnitAttention(6, 8, 2, unit**2).double(), torch.randn(2, side * side, 6, dtype=torch.float64)
    at = torch.arange(side * side)
    of = at // side // unit * (side // unit) + at % side // unit
    wanted = attended(block, x, of[:, None] == of)
    made = reroll(block(unroll(x, side, unit, 2)), side, unit, 2)
    torch.testing.assert_close(made, wanted, rtol=1e-9, atol=1e-9)


def test_one_unit_of_all_tokens_is_global_attention() -> None:
    block, everything = MaskUnitAttention(6, 8, 2, 64), MaskUnitAttention(6, 8, 2)
    everything.load_state_dict(block.state_dict())
    x = torch.randn(2, 64, 6)
    torch.testing.assert_close(block(x), everything(x), rtol=0, atol=1e-6)
    torch.testing.assert_close(block(x), attended(block, x, torch.ones(64, 64, dtype=torch.bool)), rtol=0, atol=1e-6)


def test_a_unit_of_one_token_gives_its_value() -> None:
    block, x = MaskUnitAttention(6, 8, 2, 1), torch.randn(2, 16, 6)
    value = block.qkv(x)[..., 16:]
    torch.testing.assert_close(block(x), block.project(value), rtol=0, atol=1e-6)


def test_pooled_queries_read_keys_at_the_old_resolution() -> None:
    block, x = MaskUnitAttention(6, 8, 2, 16, pool=True).double(), torch.randn(1, 64, 6, dtype=torch.float64)
    made = block(x)
    assert made.shape == (1, 16, 8)
    for unit in range(4):
        tokens = x[:, unit::4]  # the units are the trailing axis
        q, k, v = block.qkv(tokens).view(1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4)
        q = q.view(1, 2, 4, 4, 4).amax(2)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        torch.testing.assert_close(made[:, unit::4], block.project(y), rtol=1e-9, atol=1e-9)


def test_a_block_pools_what_it_adds_to() -> None:
    block, x = MaskUnitBlock(6, 8, 2, 16, pool=True), torch.randn(2, 64, 6)
    y = block.norm(x)
    assert block.change is not None
    added = pooled(block.change(y)) + block.attention(y)
    torch.testing.assert_close(block(x), added + block.feed_forward(added))
    assert MaskUnitBlock(8, 8, 2, 16).change is None
    assert MaskUnitBlock(8, 8, 2, 16, pool=True)(torch.randn(1, 16, 8)).shape == (1, 4, 8)
