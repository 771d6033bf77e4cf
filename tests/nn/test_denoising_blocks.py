"""Blocks of denoising networks: each beside its formula, written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.nn import MapCrossTransformer, TimedConv
from hasten.nn.denoising_blocks import sinusoids


def scattered(module: nn.Module) -> Any:
    """In double, with random parameters: a norm's at their start would not be seen."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.double().parameters():
            nn.init.normal_(parameter, std=0.4)
    return module


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def centred(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Of mean 0 and variance 1 over some dimensions."""
    mean = x.mean(dims, keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean(dims, keepdim=True) + 1e-5).sqrt()


def test_sinusoids_are_cosines_then_sines_at_falling_rates() -> None:
    made = sinusoids(torch.tensor([0, 1, 3]), 4, longest=100.0)
    rates = (1.0, 0.1)  # 100 ** (-k / 2)
    wanted = [[f(t * r) for f in (math.cos, math.sin) for r in rates] for t in (0, 1, 3)]
    torch.testing.assert_close(made, torch.tensor(wanted))
    assert made.dtype is torch.float32
    # By default the slowest of 4 has a rate of 10,000 ** (-3 / 4), a thousandth.
    slowest = sinusoids(torch.tensor([500.0]), 8)[0, [3, 7]]
    torch.testing.assert_close(slowest, torch.tensor([math.cos(0.5), math.sin(0.5)]))


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(6, 6, 4), (8, 12, 32)])
def test_a_timed_convolution_is_its_formula(inputs: int, outputs: int, groups: int) -> None:
    block = scattered(TimedConv(inputs, outputs, 5, groups))
    x, time = torch.randn(2, inputs, 6, 5).double(), torch.randn(2, 5).double()

    def group_norm(y: Tensor, norm: Any) -> Tensor:
        count = math.gcd(groups, y.shape[1])
        made = centred(y.unflatten(1, (count, -1)), (2, 3, 4)).flatten(1, 2)
        return made * norm.weight[:, None, None] + norm.bias[:, None, None]

    y = F.conv2d(silu(group_norm(x, block.first_norm)), block.first.weight, block.first.bias, padding=1)
    told = silu(time) @ block.time.weight.T + block.time.bias
    scale, shift = told[:, :outputs, None, None], told[:, outputs:, None, None]
    y = silu(group_norm(y, block.second_norm) * (1 + scale) + shift)
    y = F.conv2d(y, block.second.weight, block.second.bias, padding=1)
    skip = x if inputs == outputs else F.conv2d(x, block.skip.weight, block.skip.bias)
    torch.testing.assert_close(block(x, time), skip + y, rtol=1e-9, atol=1e-9)


def attended(part: Any, x: Tensor, read: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Softmax attention of tokens (batch, n, width) to others, a head at a time, queries and keys of length 1."""
    size, heads = part.head_size, []
    width = x.shape[2]
    q, (k, v) = x @ part.query.weight.T, (read @ part.key_value.weight.T).split(width, 2)

    def normed(y: Tensor, norm: Any) -> Tensor:
        return y / ((y**2).mean(2, keepdim=True) + 1e-6).sqrt() * norm.weight

    for first in range(0, width, size):
        of_head = slice(first, first + size)
        one, other = normed(q[..., of_head], part.query_norm), normed(k[..., of_head], part.key_norm)
        scores = one @ other.transpose(1, 2) / math.sqrt(size)
        if allowed is not None:
            scores = scores.masked_fill(~allowed[:, None], -math.inf)
        heads.append(torch.softmax(scores, 2) @ v[..., of_head])
    return torch.cat(heads, 2) @ part.project.weight.T + part.project.bias


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    return centred(x, (2,)) * norm.weight + norm.bias


def transformed(block: Any, x: Tensor, text: Tensor | None, allowed: Tensor | None = None) -> Tensor:
    """What `MapCrossTransformer` says of itself; ``text`` None for a block that reads none."""
    tokens = x.flatten(2).transpose(1, 2)
    normed = layer_norm(tokens, block.self_norm)
    tokens = tokens + attended(block.self_attention, normed, normed)
    if text is not None:
        tokens = tokens + attended(block.text_attention, layer_norm(tokens, block.text_norm), text, allowed)
    norm, up, _, down = block.feed_forward
    inner = gelu(layer_norm(tokens, norm) @ up.weight.T + up.bias)
    return (tokens + inner @ down.weight.T + down.bias).transpose(1, 2).reshape(x.shape)


def test_self_attention_and_the_feed_forward_layer_are_their_formulas() -> None:
    block = scattered(MapCrossTransformer(12, head_size=4, ratio=3))
    assert block.text_attention is None
    assert block.feed_forward[1].out_features == 36
    x = torch.randn(2, 12, 3, 4).double()
    torch.testing.assert_close(block(x), transformed(block, x, None), rtol=1e-9, atol=1e-9)


def test_a_text_is_read_by_queries_of_the_map() -> None:
    block = scattered(MapCrossTransformer(8, 6, head_size=4))
    x, text = torch.randn(2, 8, 3, 4).double(), torch.randn(2, 5, 6).double()
    torch.testing.assert_close(block(x, text), transformed(block, x, text), rtol=1e-9, atol=1e-9)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1]]).bool()
    torch.testing.assert_close(block(x, text, mask), transformed(block, x, text, mask), rtol=1e-9, atol=1e-9)


def test_no_text_is_a_text_of_zeros() -> None:
    block = scattered(MapCrossTransformer(8, 6, head_size=4))
    x = torch.randn(2, 8, 3, 4).double()
    without = block(x)
    torch.testing.assert_close(without, block(x, torch.zeros(2, 5, 6).double()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(without, transformed(block, x, torch.zeros(2, 1, 6).double()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", ["query", "key"])
def test_the_length_of_queries_and_keys_does_not_count(which: str) -> None:
    block = scattered(MapCrossTransformer(8, 6, head_size=4))
    x, text = torch.randn(2, 8, 3, 4).double(), torch.randn(2, 5, 6).double()
    before = block(x, text)
    with torch.no_grad():
        for part in (block.self_attention, block.text_attention):
            if which == "query":
                part.query.weight.mul_(10)
            else:
                part.key_value.weight[:8].mul_(10)
    torch.testing.assert_close(block(x, text), before, rtol=1e-4, atol=1e-4)


def test_heads_divide_the_channels() -> None:
    with pytest.raises(HastenError, match="heads of 32 channels do not divide 48"):
        MapCrossTransformer(48)
