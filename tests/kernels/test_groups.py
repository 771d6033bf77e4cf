"""Codes in groups at their ends: what fp16 scales reach, what is not finite, groups of zeros and of tiny numbers."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.errors import HastenError
from hasten.kernels import packed_linear as kernel
from hasten.kernels import sparse_linear
from hasten.kernels.groups import LARGEST, check_range, decode, encode, half_scales
from hasten.runtime.cache import CacheSpec, KVCache

WIDTHS = (4, 8, 16)


def weight_with(value: float) -> torch.Tensor:
    weight = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    weight[1, 40] = value
    return weight


def read(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return kernel.dequantize_reference(*kernel.quantize(weight, bits), bits, 32)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bits: int, value: float) -> None:
    with pytest.raises(HastenError, match="not finite"):
        kernel.quantize(weight_with(value), bits)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_weight_fits_and_a_larger_one_is_refused(bits: int, sign: int) -> None:
    largest = LARGEST[bits]
    found = read(weight_with(sign * largest), bits)
    assert found.isfinite().all()
    assert float(found[1, 40]) == pytest.approx(sign * largest, rel=1e-3)
    # Other groups are as they were.
    torch.testing.assert_close(found[0], weight_with(0)[0], rtol=0, atol=0.2 if bits == 4 else 0.02)
    beyond = 1.01 * largest if bits < 16 else torch.finfo(torch.float32).max
    with pytest.raises(HastenError, match=f"{bits} bits reach"):
        kernel.quantize(weight_with(sign * beyond), bits)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("int8", [False, True])
def test_compiled_products_at_both_ends(bits: int, int8: bool) -> None:
    largest = LARGEST[bits] if bits < 16 else 1e30
    for scale in (largest, 1e-7, 3e-9, 0.0):
        weight = torch.rand(9, 96, generator=torch.Generator().manual_seed(1)) * scale
        weight[2] = 0
        parts = kernel.quantize(weight, bits)
        x = torch.randn(3, 96, generator=torch.Generator().manual_seed(2))
        fast = kernel.packed_linear(x, *parts, bits, 32, int8=int8)
        rounded = kernel.round_rows(x) if int8 and bits < 16 else x
        plain = kernel.reference(rounded, *parts, bits, 32)
        assert fast.isfinite().all()
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4 * scale + 1e-12)
        assert torch.equal(fast[:, 2], torch.zeros(3))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("scale", [1e-4, 1e-6, 1e-7, 1e-8, 1e-20])
def test_small_weights_err_by_half_a_step(bits: int, scale: float) -> None:
    """No scale is rounded to 0: a step is 2^-24 where fp16 has nothing smaller."""
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(3)) * scale
    _, scales, mins = kernel.quantize(weight, bits)
    assert scales is not None
    assert (scales != 0).all()
    step = scales.float().abs().repeat_interleave(32, 1)
    slack = 0 if mins is None else 2.0**-25  # of a minimum
    edge = 127 if bits == 8 else 15  # a scale that was rounded down reaches that much less
    assert ((read(weight, bits) - weight).abs() <= step / 2 + slack + edge * 2.0**-25).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_zeros_are_zeros(bits: int) -> None:
    weight = torch.zeros(2, 64)
    weight[0, 40] = 3.0
    found = read(weight, bits)
    assert torch.equal(found[1], torch.zeros(64))
    assert torch.equal(found[0, :32], torch.zeros(32))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_cache_cuts_off_what_is_too_large_and_shows_what_is_not_finite(bits: int) -> None:
    values = torch.randn(4, 32)
    values[1, 3], values[1, 4] = 1e30, -1e30
    values[2, 5], values[3, 6] = math.inf, math.nan
    found = decode(*encode(values, bits))
    assert found[:2].isfinite().all()
    assert float(found[1, 3]) > (8e6 if bits == 8 else 9e5)
    assert float(found[1, 4]) < 0
    assert found[2:].isnan().any(-1).all()


def test_fp16_caches_cut_off_too() -> None:
    cache = KVCache(CacheSpec("fp16"), layers=1, batch=1, heads=1, head_dim=32, capacity=8)
    cache.update(torch.full((1, 1, 2, 32), 1e9), torch.full((1, 1, 2, 32), -1e9), 0)
    keys, values = cache.update(torch.zeros(1, 1, 1, 32), torch.zeros(1, 1, 1, 32), 0)
    assert float(keys.max()) == 65504
    assert float(values.min()) == -65504


def test_sparse_weights_have_the_same_ends() -> None:
    weight, zeros = torch.zeros(2, 64), torch.zeros(2, 1)
    weight[0, ::4] = 1e5
    for scales in (torch.full((2, 1), 1e5), torch.full((2, 1), math.nan)):
        with pytest.raises(HastenError):
            sparse_linear.pack(weight, scales, zeros)
    weight[0, ::4] = 1.2e-7
    packed, scales, small = sparse_linear.pack(weight, torch.full((2, 1), 1e-8), zeros)
    assert torch.equal(scales, torch.full((2, 1), 2.0**-24, dtype=torch.float16))
    assert ((sparse_linear.dequantize(packed, scales, small) - weight).abs() <= 2.0**-24).all()


def test_scales_of_half_precision() -> None:
    given = torch.tensor([0.0, 1e-30, 1e-7, 1.0, 1e6, math.inf, math.nan])
    found = half_scales(given)
    assert found[0] == 0
    assert float(found[1]) == 2.0**-24
    assert float(found[4]) == 65504
    assert found[5:].isnan().all()
    check_range(torch.empty(0, 32), 8)
