"""2:4 sparse 2-bit weights: packing loses nothing, the compiled sums are the whole numbers' own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.kernels import sparse_linear as kernel


def packed(out: int, columns: int, seed: int = 0) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(out, columns // 4, 4, generator=generator).argsort(-1)[..., :2]
    mask = torch.zeros(out, columns // 4, 4).scatter_(2, kept, 1.0).flatten(1)
    groups = columns // 64
    scales = (torch.rand(out, groups, generator=generator) + 0.1).half().float()
    zeros = torch.randint(0, 4, (out, groups), generator=generator)
    codes = torch.randint(0, 4, (out, columns), generator=generator)
    wide = [t.repeat_interleave(64, 1) for t in (scales, zeros)]
    weight = wide[0] * (codes - wide[1]) * mask
    return weight, kernel.pack(weight, scales, zeros)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 99))
def test_packing_loses_nothing(out: int, groups: int, seed: int) -> None:
    weight, parts = packed(out, 64 * groups, seed)
    assert torch.equal(kernel.dequantize(*parts), weight)
    assert parts[0].nbytes == out * groups * 16
    assert parts[1].nbytes == out * groups * 2
    assert parts[2].nbytes == out * -(-groups // 4)
    bits = 8 * sum(p.nbytes for p in parts) / weight.numel()
    assert bits <= 2 + 24 / 64
    codes, kept = kernel.unpack_codes(parts[0])
    assert (kept.reshape(out, -1, 4).sum(-1) == 2).all()
    assert (codes[kept == 0] == 0).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 33), st.integers(1, 6), st.integers(1, 40), st.integers(0, 99))
def test_compiled_is_the_reference(out: int, groups: int, rows: int, seed: int) -> None:
    weight, parts = packed(out, 64 * groups, seed)
    x = torch.randn(rows, 64 * groups, generator=torch.Generator().manual_seed(seed))
    found = kernel.sparse_linear(x, *parts)
    expected = kernel.reference(x, *parts)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    codes, scale = kernel.encode(x)
    faked = (codes.double() * scale.double()[:, None]) @ weight.double().t()
    torch.testing.assert_close(expected.double(), faked, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [1, 3, 16])
def test_every_instruction_set(rows: int) -> None:
    _, parts = packed(37, 320)
    x = torch.randn(rows, 320)
    torch.testing.assert_close(kernel.sparse_linear(x, *parts), kernel.reference(x, *parts), rtol=1e-4, atol=1e-4)


def test_gradients_and_shapes() -> None:
    weight, parts = packed(8, 64)
    x = torch.randn(2, 3, 64, requires_grad=True)
    kernel.sparse_linear(x, *parts).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, 3, 64))
    assert kernel.sparse_linear(x.bfloat16(), *parts).dtype is torch.bfloat16
    with torch.device("meta"):
        shapes = [torch.empty(p.shape, dtype=p.dtype) for p in parts]
        assert torch.ops.hasten.sparse_linear(torch.empty(5, 64), *shapes).shape == (5, 8)


def test_what_cannot_be_packed() -> None:
    with pytest.raises(ValueError, match="more than two"):
        kernel.pack(torch.ones(2, 64), torch.ones(2, 1), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="do not divide"):
        kernel.pack(torch.zeros(2, 60), torch.ones(2, 1), torch.zeros(2, 1))
