"""Products of whole numbers: int8 activations by packed weights, against rounding in plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hasten.kernels.compiled import native
from hasten.kernels.packed_linear import packed_linear, quantize, reference, round_rows

ISAS = native().isas() if native() is not None else []


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
@example(11, 34, 12, 4, 83)  # a code that lies between two whole numbers
def test_compiled_is_the_reference(out: int, groups: int, rows: int, bits: int, seed: int) -> None:
    compare(out, groups, rows, bits, seed)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("groups", [1, 3, 16, 18, 48])
def test_every_instruction_set(groups: int, bits: int) -> None:
    for rows in (1, 2, 3, 4, 7):
        compare(19, groups, rows, bits)


@pytest.mark.skipif(not ISAS, reason="the compiled kernels are not installed")
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [32, 96, 576, 1120])
def test_rows_do_not_depend_on_their_neighbours(columns: int, bits: int) -> None:
    """A draft is verified exactly: a token's products are the same alone and among others, few or many."""
    x, parts = torch.randn(70, columns), quantize(torch.randn(45, columns), bits)
    alone = torch.cat([packed_linear(row[None], *parts, bits, 32, int8=True) for row in x])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for rows in (2, 5, 7, 13, *((33, 70) if native().isa() != "generic" else ())):
            assert torch.equal(packed_linear(x[:rows], *parts, bits, 32, int8=True), alone[:rows])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bits", [4, 8])
def test_many_rows_of_every_instruction_set(bits: int) -> None:
    for rows, groups in ((17, 1), (29, 19), (70, 5)):
        compare(35, groups, rows, bits)


@pytest.mark.usefixtures("isa")
def test_every_code_is_multiplied_as_it_is() -> None:
    """Codes of int8 are -128 too, in files that others wrote, and activations reach both ends of their range."""
    codes = torch.arange(-128, 128).to(torch.int8).repeat(3, 1)
    scales = torch.ones(3, 8).half()
    x = torch.where(torch.arange(256) % 3 == 0, 127.0, -127.0).repeat(9, 1)
    for rows in (1, 3, 9):
        found = packed_linear(x[:rows], codes, scales, None, 8, 32, int8=True)
        assert torch.equal(found, x[:rows] @ codes.float().t())


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_number_that_is_not_finite_spoils_its_own_row(bits: int) -> None:
    x, parts = torch.randn(9, 64), quantize(torch.randn(19, 64), bits)
    whole = packed_linear(x, *parts, bits, 32, int8=True)
    x[3, 40], x[5, 1] = torch.inf, torch.nan
    x[7] = 1e-40
    found = packed_linear(x, *parts, bits, 32, int8=True)
    assert found[[3, 5]].isnan().all()
    assert found[7].abs().max() < 1e-35
    kept = [0, 1, 2, 4, 6, 8]
    assert torch.equal(found[kept], whole[kept])


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
