"""Products of whole numbers: int8 activations by packed weights, against rounding in plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.kernels.packed_linear import packed_linear, quantize, reference, round_rows


def compare(out: int, groups: int, rows: int, bits: int, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, 32 * groups, generator=generator)
    x = torch.randn(rows, 32 * groups, generator=generator) * torch.rand(rows, 1, generator=generator)
    parts = quantize(weight, bits)
    found = packed_linear(x, *parts, bits, 32, int8=True)
    expected = reference(round_rows(x), *parts, bits, 32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 21), st.integers(1, 40), st.integers(1, 20), st.sampled_from([4, 8]), st.integers(0, 99))
def test_compiled_is_the_reference(out: int, groups: int, rows: int, bits: int, seed: int) -> None:
    compare(out, groups, rows, bits, seed)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 3, 16, 18, 48])
def test_every_instruction_set(groups: int, bits: int) -> None:
    for rows in (1, 2, 3, 4, 7):
        compare(19, groups, rows, bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_do_not_depend_on_their_neighbours(bits: int) -> None:
    """A draft is verified exactly: a token's products are the same alone and among others."""
    x, parts = torch.randn(13, 576), quantize(torch.randn(64, 576), bits)
    together = packed_linear(x, *parts, bits, 32, int8=True)
    for row in range(13):
        assert torch.equal(packed_linear(x[row : row + 1], *parts, bits, 32, int8=True)[0], together[row])


def test_rounding_errs_by_half_a_step() -> None:
    x = torch.randn(7, 96)
    step = x.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True) / 127
    assert ((round_rows(x) - x).unflatten(-1, (-1, 32)).abs() <= step / 2 + 1e-6).all()
    assert torch.equal(round_rows(torch.zeros(2, 32)), torch.zeros(2, 32))


def test_half_precision_weights_are_read_as_they_are() -> None:
    weight = torch.randn(24, 64).half()
    x = torch.randn(3, 64)
    found = packed_linear(x, weight, None, None, 16, 32)
    torch.testing.assert_close(found, x @ weight.float().t(), rtol=1e-5, atol=1e-5)
