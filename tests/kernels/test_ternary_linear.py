"""Ternary products: packing, exact sums on every instruction set, tracing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.kernels import ternary_linear as kernel
from hasten.workload import trace


def inputs(rows: int, out: int, columns: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-127, 128, (rows, columns), generator=generator, dtype=torch.int8)
    return x, torch.randint(-1, 2, (out, columns), generator=generator)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 40), out=st.integers(1, 30), columns=st.integers(1, 600), seed=st.integers(0, 99))
def test_sums_are_exact(rows: int, out: int, columns: int, seed: int) -> None:
    x, weight = inputs(rows, out, columns, seed)
    packed = kernel.pack(weight)
    assert torch.equal(kernel.unpack(packed, columns), weight.float())
    wanted = (x.long() @ weight.T).float()
    assert torch.equal(kernel.ternary_linear(x, packed), wanted)
    assert torch.equal(kernel.reference(x, packed), wanted)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 255), (16, 256), (2, 1030), (7, 512), (4, 8192)])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_instruction_set_is_exact(rows: int, columns: int, threads: int) -> None:
    x, weight = inputs(rows, 13, columns)
    x[0] = 127
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(kernel.ternary_linear(x, kernel.pack(weight)), (x.long() @ weight.T).float())
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("value", [-128, 127])
def test_the_largest_sums_are_exact(value: int) -> None:
    """All x and all weights at their ends, in the widest matrix that is taken: sums of up to 2^24."""
    columns = 131072
    x, weight = torch.full((2, columns), value, dtype=torch.int8), torch.ones(3, columns, dtype=torch.long)
    weight[1] = -1
    weight[2, ::2] = -1
    x[1, ::2] = 127
    assert torch.equal(kernel.ternary_linear(x, kernel.pack(weight)), (x.long() @ weight.T).float())


@pytest.mark.usefixtures("isa")
def test_every_byte_of_codes_is_read_as_the_reference_reads_it() -> None:
    """The code 3, which nothing packs, stands for nothing."""
    packed = torch.arange(256, dtype=torch.uint8).repeat(2, 1)
    x = torch.randint(-128, 128, (5, 1024), dtype=torch.int8)
    assert torch.equal(kernel.ternary_linear(x, packed), kernel.reference(x, packed))


def test_rows_and_weights_that_are_parts_of_others() -> None:
    x, weight = inputs(6, 8, 512)
    packed = kernel.pack(weight)
    assert torch.equal(kernel.ternary_linear(x[::2], packed[::3]), (x[::2].long() @ weight[::3].T).float())
    assert torch.equal(kernel.ternary_linear(x.T.contiguous().T, packed), (x.long() @ weight.T).float())


@pytest.mark.usefixtures("isa")
def test_a_single_row_and_column() -> None:
    x, weight = inputs(1, 1, 1)
    assert torch.equal(kernel.ternary_linear(x, kernel.pack(weight)), (x.long() @ weight.T).float())


def test_an_eighth_of_bf16() -> None:
    _, weight = inputs(1, 16, 2048)
    assert kernel.pack(weight).nbytes * 8 == weight.bfloat16().nbytes


def test_quantization_is_within_half_a_step() -> None:
    x = torch.randn(5, 100) * torch.tensor([1e-7, 1.0, 1e4, 3.0, 0.0])[:, None]
    codes, scale = kernel.quantize(x)
    assert torch.all((codes / scale - x).abs() <= 0.5001 / scale)
    assert int(codes[1].abs().max()) == 127


def test_bad_input_is_named() -> None:
    x, weight = inputs(1, 4, 64)
    with pytest.raises(ValueError, match="-1, 0 and 1 alone"):
        kernel.pack(weight * 2)
    with pytest.raises(ValueError, match="int8"):
        kernel.ternary_linear(x.float(), kernel.pack(weight))
    with pytest.raises(ValueError, match="do not fit"):
        kernel.ternary_linear(torch.zeros(1, 300, dtype=torch.int8), kernel.pack(weight))


def test_operator_keeps_its_contract_and_is_traced() -> None:
    x, weight = inputs(2, 8, 256)
    packed = kernel.pack(weight)
    torch.library.opcheck(torch.ops.hasten.ternary_linear.default, (x, packed))

    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("packed", packed)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return kernel.ternary_linear(x, self.packed)

    workload = trace(Layer(), x)
    assert workload.weight_bytes == 8 * 64
    assert workload.flops == 2 * 2 * 8 * 256
