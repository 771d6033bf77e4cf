"""Packed weights: error bounds, the compiled kernel against plain torch, gradients, tracing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.kernels import native
from hasten.kernels import packed_linear as kernel

ISAS = native().isas() if native() is not None else []
shapes = st.tuples(
    st.integers(1, 70),
    st.integers(1, 5).map(lambda n: 32 * n),
    st.integers(1, 40),
    st.sampled_from([4, 8, 16]),
)


def weights(out: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(shapes)
def test_codes_are_within_half_a_step(shape: tuple[int, int, int, int]) -> None:
    out, columns, seed, bits = shape
    weight = weights(out, columns, seed)
    packed, scales, mins = kernel.quantize(weight, bits)
    value = kernel.dequantize_reference(packed, scales, mins, bits, 32)
    if bits == 16:
        assert torch.all((value - weight).abs() <= weight.abs() * 2**-8)
        return
    assert scales is not None
    step = scales.float().repeat_interleave(32, 1)
    # Scales and minimums are rounded to half precision on top.
    slack = weight.abs().amax() * 2**-9
    assert torch.all((value - weight).abs() <= step / 2 + slack)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40, deadline=None)
@given(shape=shapes, rows=st.integers(1, 40))
def test_compiled_kernel_is_the_reference(isa: str, shape: tuple[int, int, int, int], rows: int) -> None:
    out, columns, seed, bits = shape
    module = native()
    assert module is not None
    best = module.isa()
    module.use_isa(isa)
    try:
        packed, scales, mins = kernel.quantize(weights(out, columns, seed), bits)
        x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed + 1))
        fast = kernel.packed_linear(x, packed, scales, mins, bits, 32)
        plain = kernel.reference(x, packed, scales, mins, bits, 32)
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)
        wide = kernel.dequantize(packed, scales, mins, bits, 32)
        torch.testing.assert_close(wide, kernel.dequantize_reference(packed, scales, mins, bits, 32))
    finally:
        module.use_isa(best)


@pytest.mark.skipif(not ISAS, reason="the compiled kernels are not installed")
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_a_row_does_not_depend_on_its_company(bits: int) -> None:
    """Speculative decoding is exact only if a token's numbers are the same alone and among others."""
    packed, scales, mins = kernel.quantize(weights(45, 96), bits)
    x = torch.randn(kernel.FEW_ROWS, 96)
    together = kernel.packed_linear(x, packed, scales, mins, bits, 32)
    for row in range(kernel.FEW_ROWS):
        alone = kernel.packed_linear(x[row : row + 1], packed, scales, mins, bits, 32)
        assert torch.equal(alone[0], together[row])


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("bits", "columns", "group"), [(4, 1120, 32), (4, 640, 64), (8, 1024, 128), (16, 544, 32)])
def test_many_rows_are_as_few_bit_for_bit(bits: int, columns: int, group: int) -> None:
    """A prompt's rows, by whatever path they go, are what they are alone: a resumed text is the same text."""
    module = native()
    assert module is not None
    packed, scales, mins = kernel.quantize(weights(21, columns), bits, group)
    matrix = kernel.native_matrix(packed, scales, mins, bits, group)
    x = torch.randn(70, columns)
    alone = torch.cat([kernel.packed_linear(row[None], packed, scales, mins, bits, group) for row in x])
    torch.testing.assert_close(alone, kernel.reference(x, packed, scales, mins, bits, group), rtol=1e-4, atol=1e-4)
    for rows in (5, 12, 13, 17, 70):
        found = torch.full((rows + 1, 21), 7.0)
        module.linear(matrix, x.data_ptr(), rows, found.data_ptr(), 2)
        assert torch.equal(found[:rows], alone[:rows])
        assert torch.equal(found[rows], torch.full((21,), 7.0))


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_of_codes_is_the_same_in_any_company(
    bits: int, alone_as_beside_others: Callable[[object, torch.Tensor, int], None]
) -> None:
    packed, scales, mins = kernel.quantize(weights(37, 1120), bits)
    matrix = kernel.native_matrix(packed, scales, mins, bits, 32, codes_in=True)
    alone_as_beside_others(matrix, torch.randn(40, 1120), 37)


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_gradient_flows_to_the_input(bits: int) -> None:
    packed, scales, mins = kernel.quantize(weights(7, 64), bits)
    x = torch.randn(3, 64, requires_grad=True)
    y = kernel.packed_linear(x, packed, scales, mins, bits, 32)
    y.backward(torch.ones_like(y))
    expected = kernel.dequantize_reference(packed, scales, mins, bits, 32).sum(0).expand(3, -1)
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", [4, 8])
def test_constant_and_zero_groups_survive(bits: int) -> None:
    weight = torch.zeros(2, 64)
    weight[1] = 0.5
    packed, scales, mins = kernel.quantize(weight, bits)
    value = kernel.dequantize_reference(packed, scales, mins, bits, 32)
    torch.testing.assert_close(value, weight, rtol=2e-3, atol=1e-6)


def test_operators_pass_torch_opcheck() -> None:
    packed, scales, mins = kernel.quantize(weights(8, 64), 4)
    torch.library.opcheck(
        torch.ops.hasten.packed_linear.default, (torch.randn(2, 64), packed, scales, mins, 4, 32),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip
    torch.library.opcheck(
        torch.ops.hasten.packed_embedding.default, (torch.tensor([[1, 3]]), packed, scales, mins, 4, 32),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        kernel.quantize(torch.randn(4, 48), 4)
    with pytest.raises(ValueError, match="4, 8 or 16"):
        kernel.quantize(torch.randn(4, 32), 3)


def test_torch_compile_sees_through() -> None:
    packed, scales, mins = kernel.quantize(weights(8, 64), 8)

    def twice(x: torch.Tensor) -> torch.Tensor:
        return kernel.packed_linear(x, packed, scales, mins, 8, 32) * 2

    x = torch.randn(2, 64)
    compiled = torch.compile(twice, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), twice(x))


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_bf16_products_are_close_and_leave_few_rows_alone(bits: int) -> None:
    packed, scales, mins = kernel.quantize(weights(70, 128), bits)
    x = torch.randn(40, 128)
    plain = kernel.packed_linear(x, packed, scales, mins, bits, 32)
    quick = kernel.packed_linear(x, packed, scales, mins, bits, 32, bf16=True)
    assert (quick - plain).norm() < 6e-3 * plain.norm()
    few = x[: kernel.FEW_ROWS]
    assert torch.equal(
        kernel.packed_linear(few, packed, scales, mins, bits, 32),
        kernel.packed_linear(few, packed, scales, mins, bits, 32, bf16=True),
    )
