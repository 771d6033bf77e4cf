"""Attention on a smaller map: heads, sizes, and equality with what it is made of."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hasten.cost.preserving import check_same, difference
from hasten.errors import HastenError
from hasten.nn import Lowtention, MapAttention
from hasten.nn.lowtention import head_sizes


def test_heads_are_the_published_ones() -> None:
    sizes = {128: (2, 32), 160: (2, 40), 256: (4, 32), 320: (5, 32), 512: (8, 32)}
    assert {c: head_sizes(c) for c in sizes} == sizes


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 5), (3, 3)])
@pytest.mark.parametrize("side", [13, 14])
def test_any_size_comes_back(stride: int, kernel: int, side: int) -> None:
    x = torch.randn(1, 32, side, side + 1)
    assert Lowtention(32, stride, kernel)(x).shape == x.shape


@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 5)])
def test_one_dense_convolution_is_a_projection_and_a_depthwise_one(stride: int, kernel: int) -> None:
    torch.manual_seed(0)
    apart, whole = Lowtention(160, stride, kernel, fused=False), Lowtention(160, stride, kernel)
    made: Any = Lowtention(160, stride, kernel, fused=False)
    made.load_state_dict(apart.state_dict())
    made.fuse()
    x = torch.randn(2, 160, 7, 7)
    check_same(apart, made, (x,))
    assert made.restore.weight.shape == whole.restore.weight.shape
    whole.load_state_dict(made.state_dict())
    before = whole.restore
    whole.fuse()
    assert whole.restore is before
    check_same(apart, whole, (x,))


def test_its_core_is_softmax_attention_of_each_head() -> None:
    torch.manual_seed(0)
    block = Lowtention(64, 2, 3).double().eval()
    x = torch.randn(1, 64, 6, 6, dtype=torch.float64)
    qkv = block.qkv(block.reduce(x)).flatten(2)[0]
    size, heads = block.head_size, []
    for head in qkv.split(3 * size):
        q, k, v = head.split(size)
        heads.append(v @ torch.softmax(q.t() @ k / math.sqrt(size), 1).t())
    wanted = block.restore(torch.cat(heads).reshape(1, -1, 3, 3))
    torch.testing.assert_close(block(x), wanted, rtol=1e-9, atol=1e-9)


def test_at_full_size_and_width_it_is_plain_attention() -> None:
    """A depthwise identity, no reduction, all channels, and a restoring convolution of its centre alone."""
    torch.manual_seed(0)
    block = Lowtention(64, 1, 1, ratio=1.0).eval()
    assert (block.heads, block.head_size) == (2, 32)
    with torch.no_grad():
        block.reduce[0].weight.fill_(1)  # type: ignore[index, union-attr, operator]
        centre = block.restore.weight[:, :, 1, 1].clone()
        block.restore.weight.zero_()
        block.restore.weight[:, :, 1, 1] = centre
    x = torch.randn(2, 64, 5, 5)
    tokens = (x / math.sqrt(1 + 1e-5)).flatten(2).transpose(1, 2)
    qkv = F.linear(tokens, block.qkv.weight[:, :, 0, 0]).view(2, 25, 2, 3, 32).permute(3, 0, 2, 1, 4)
    y = F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(2, 25, 64)
    wanted = F.linear(y, centre.t(), block.restore.bias).transpose(1, 2).reshape(2, 64, 5, 5)
    torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-5)


def test_plain_attention_is_that_of_a_transformer_layer() -> None:
    torch.manual_seed(0)
    plain = MapAttention(32, 16).double()
    x = torch.randn(2, 32, 3, 4, dtype=torch.float64)
    tokens = x.flatten(2).transpose(1, 2)
    qkv = F.linear(tokens, plain.qkv.weight[:, :, 0, 0]).view(2, 12, 3, 2, 16).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(2, 12, 32)
    wanted = F.linear(y, plain.project.weight[:, :, 0, 0], plain.project.bias).transpose(1, 2).reshape(x.shape)
    torch.testing.assert_close(plain(x), wanted, rtol=1e-9, atol=1e-9)
    with pytest.raises(HastenError, match="do not divide 48"):
        MapAttention(48)


def test_what_it_cannot_be_is_told() -> None:
    for given in ((32, 0, 3), (32, 2, 4), (1, 2, 3)):
        with pytest.raises(HastenError, match="an odd kernel"):
            Lowtention(*given)


def test_fusing_is_seen_by_the_check() -> None:
    apart = Lowtention(32, fused=False)
    assert difference(apart, Lowtention(32, fused=False), (torch.randn(1, 32, 6, 6),)) > 0.01
