"""int8 activations times ternary weights of 2 bits each, in whole numbers.

A matrix (out, columns) of -1, 0 and 1 is packed in blocks of 256 columns, 64 bytes each: byte j of a block holds the
codes of its columns j, 64 + j, 128 + j and 192 + j, two bits each from the low end; 1 stands for +1, 2 for -1, 0 for
nothing. Columns that are missing in the last block are nothing.

The compiled kernel turns codes into bytes 0, 1 and 2 in registers, the weight plus 1, and leaves adding x as often as
a byte says to the processor's byte dot products; the sum of x goes out again at the end. Nothing is unpacked to memory
and nothing is a float: sums are exact, for many rows as for few, which are taken `FEW_ROWS` at a time. Without the
compiled kernel the weights are unpacked to fp32 and multiplied by the platform's matrix product, which is exact too:
every partial sum is a whole number below 2^24.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.kernels import gate
from hasten.kernels.compiled import native
from hasten.workload.einsum import Op
from hasten.workload.operators import Call, register

BLOCK = 256
BLOCK_BYTES = BLOCK // 4
# Rows of x that the packed kernel takes at a time.
FEW_ROWS = 16
# 128 times so many columns stay at or below 2^24, up to which fp32 has every whole number.
_EXACT_COLUMNS = 2**24 // 128

torch.library.define("hasten::ternary_linear", "(Tensor x, Tensor packed) -> Tensor")
torch.library.define("hasten::ternary_quantize", "(Tensor x) -> (Tensor codes, Tensor scale)")


def pack(weight: Tensor) -> Tensor:
    """Codes (out, ceil(columns / 256) * 64), uint8, of a matrix (out, columns) of -1, 0 and 1.

    Raises:
        ValueError: another value.
    """
    if not torch.isin(weight, torch.tensor([-1, 0, 1], dtype=weight.dtype, device=weight.device)).all():
        raise ValueError("a ternary matrix has the values -1, 0 and 1 alone")
    out, columns = weight.shape
    codes = torch.where(weight < 0, 2, weight).to(torch.uint8)
    codes = torch.nn.functional.pad(codes, (0, -columns % BLOCK)).reshape(out, -1, 4, BLOCK_BYTES)
    packed = codes[:, :, 0] | codes[:, :, 1] << 2 | codes[:, :, 2] << 4 | codes[:, :, 3] << 6
    return packed.reshape(out, -1).contiguous()


def unpack(packed: Tensor, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (out, columns) that `pack` packed."""
    blocks = packed.reshape(packed.shape[0], -1, 1, BLOCK_BYTES)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)[:, None]
    codes = (blocks >> shifts) & 3
    values = (codes & 1).to(dtype) - (codes >> 1).to(dtype)
    return values.reshape(packed.shape[0], -1)[:, :columns]


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Activations as int8, one scale a token: codes (..., columns) and s (..., 1) with x about codes / s.

    s = 127 / max(max|x|, 1e-5); codes are rounded to nearest.
    """
    x = x.to(gate.wide(x.dtype))
    scale = 127.0 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
    return (x * scale).round().clamp(-127, 127).to(torch.int8), scale


def reference(x: Tensor, packed: Tensor) -> Tensor:
    """`ternary_linear` in plain torch: integer products and sums."""
    weight = unpack(packed, x.shape[-1], torch.int64)
    return (x.to(torch.int64).reshape(-1, x.shape[-1]) @ weight.T).reshape(*x.shape[:-1], packed.shape[0]).float()


def ternary_linear(x: Tensor, packed: Tensor) -> Tensor:
    """``x @ W.T`` in whole numbers.

    Args:
        x: int8 (..., columns); -128 too, though `quantize` never gives it.
        packed: W (out, columns), see `pack`.

    Returns:
        (..., out), fp32, exact whole numbers.

    Raises:
        ValueError: x is not int8, has another width than W, or so many columns that fp32 cannot hold the sum.
    """
    return torch.ops.hasten.ternary_linear(x, packed)


def _check(x: Tensor, packed: Tensor) -> None:
    if x.dtype is not torch.int8:
        raise ValueError(f"activations are int8, not {x.dtype}: see quantize")
    gate.dtypes("ternary_linear", (torch.uint8,), packed=packed)
    gate.sizes("ternary_linear", x=(x, "... k"), packed=(packed, "n p"))
    columns = x.shape[-1]
    if -(-columns // BLOCK) * BLOCK_BYTES != packed.shape[1] or columns > _EXACT_COLUMNS:
        raise ValueError(f"{columns} columns do not fit a packed weight of {tuple(packed.shape)}")


@torch.library.impl("hasten::ternary_linear", ("cpu", "cuda", "mps"))
def _ternary_linear(x: Tensor, packed: Tensor) -> Tensor:
    _check(x, packed)
    columns, out = x.shape[-1], packed.shape[0]
    flat = x.reshape(x.numel() // max(1, columns), columns)
    rows = flat.shape[0]
    module = native() if x.device.type == "cpu" else None
    if module is None or not rows or not out:
        return torch.nn.functional.linear(flat.float(), unpack(packed, columns)).reshape(*x.shape[:-1], out)
    packed, y = packed.contiguous(), gate.buffer(rows, out)
    for start in range(0, rows, FEW_ROWS):
        part = slice(start, start + FEW_ROWS)
        _multiply(module, flat[part], packed, y[part])
    return y.reshape(*x.shape[:-1], out)


def _multiply(module: Any, flat: Tensor, packed: Tensor, y: Tensor) -> None:
    """Writes the product of few rows to y."""
    (rows, columns), out = flat.shape, packed.shape[0]
    blocks = packed.shape[1] // BLOCK_BYTES
    missing = BLOCK * blocks - columns
    flat = torch.nn.functional.pad(flat, (0, missing)) if missing else flat.contiguous()
    module.ternary_multiply(
        gate.address(flat, torch.int8, rows, BLOCK * blocks), rows,
        gate.address(packed, torch.uint8, out, BLOCK_BYTES * blocks), out, blocks,
        gate.address(y, torch.float32, rows, out), torch.get_num_threads(),
    )  # fmt: skip


@gate.register_fake("hasten::ternary_linear")
def _(x: Tensor, packed: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0], dtype=torch.float32)


@register("hasten::ternary_linear")
def _(call: Call) -> None:
    """A contraction whose products are selections: 2 bits a weight are read, and additions done."""
    x, packed, output = call["x"], call["packed"], call.outputs[0]
    k, n = x.shape[-1], packed.shape[0]
    ranks = (("m", int(x.numel() // max(k, 1))), ("n", n), ("k", k))
    inputs = [call.read(x, ["m", "k"]), call.read(packed, ["k", "n"], packed.numel())]
    call.emit(Op.MATMUL, ranks, inputs, output, ["m", "n"], map="select", reduce="sum")


@torch.library.impl("hasten::ternary_quantize", ("cpu", "cuda", "mps"))
def _ternary_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize`, for graphs that are recorded without gradients: one that comes later is refused, not left out."""
    gate.dtypes("ternary_quantize", gate.FLOATS, x=x)
    return quantize(x)


@gate.register_fake("hasten::ternary_quantize")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(*x.shape[:-1], 1, dtype=gate.wide(x.dtype))


@register("hasten::ternary_quantize")
def _(call: Call) -> None:
    x, (codes, scale) = call["x"], call.outputs
    ranks = (("m", int(x.numel() // max(x.shape[-1], 1))), ("k", x.shape[-1]))
    call.emit(Op.REDUCE, ranks, [call.read(x, ["m", "k"])], scale, ["m"], map="abs", reduce="max")
    inputs = [call.read(x, ["m", "k"]), call.read(scale, ["m"])]
    call.emit(Op.ELEMENTWISE, ranks, inputs, codes, ["m", "k"], map="quantize")


gate.without_gradient("hasten::ternary_quantize")
