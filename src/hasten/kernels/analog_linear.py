"""Products by the conductances of crossbars: pairs of cells, tiles, converters, the noise of each read.

A weight is the difference of two cells' conductances, times a gain that makes it a weight again. A row of x becomes
voltages, its largest number 1, in codes of ``input_bits``. A tile has ``rows`` pairs along a column; Kirchhoff's law
sums their currents, a converter of ``adc_bits`` reads the sum, and tiles are added as numbers:

    y_j = s g_j sum_t C(sum_i v_i (P_ji - N_ji) + r e_tj sqrt(sum_i v_i^2 (P_ji^2 + N_ji^2)))

with s the row's largest number, i over a tile's rows and e standard normal. Independent Gaussian errors of every cell
at a read, of relative deviation r, have a sum that is distributed so.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.kernels import gate
from hasten.workload.einsum import Op
from hasten.workload.operators import Call, register


def tiles_of(columns: int, rows: int) -> int:
    """Tiles of ``rows`` pairs that ``columns`` inputs take."""
    return -(-columns // rows)


def _steps(bits: int) -> int:
    """Codes on each side of 0."""
    return (1 << (bits - 1)) - 1


def reference(
    x: Tensor, positive: Tensor, negative: Tensor, gain: Tensor, noise: Tensor | None, rows: int, input_bits: int,
    adc_bits: int, adc_range: float, read_noise: float,
) -> Tensor:  # fmt: skip
    """As `analog_linear`, of x (rows, in): in fp32, or in fp64 for fp64."""
    wide = gate.wide(x.dtype)
    x = x.to(wide)
    scale = x.abs().amax(-1, keepdim=True)
    v = x / torch.where(scale == 0, 1, scale)
    if input_bits:
        v = torch.round(v * _steps(input_bits)) / _steps(input_bits)
    positive, negative = positive.to(wide), negative.to(wide)
    total = x.new_zeros(len(x), len(positive))
    for tile, first in enumerate(range(0, x.shape[1], rows)):
        part = slice(first, first + rows)
        given = v[:, part]
        current = F.linear(given, positive[:, part] - negative[:, part])
        if noise is not None:
            squares = positive[:, part].square() + negative[:, part].square()
            deviation = F.linear(given.square(), squares).clamp_min(0).sqrt()
            current = current + read_noise * noise[:, tile].to(wide) * deviation
        if adc_bits:
            step = adc_range * math.sqrt(given.shape[1]) / _steps(adc_bits)
            current = torch.round(current / step).clamp(-_steps(adc_bits), _steps(adc_bits)) * step
        total = total + current
    return total * scale * gain.to(wide)


def analog_linear(
    x: Tensor, positive: Tensor, negative: Tensor, gain: Tensor, *, noise: Tensor | None = None, rows: int = 512,
    input_bits: int = 0, adc_bits: int = 0, adc_range: float = 1.0, read_noise: float = 0.0,
) -> Tensor:  # fmt: skip
    """``x @ (gain (positive - negative)).T`` as crossbars read it: x (..., in) to (..., out), in x's dtype.

    Its gradient passes converters and noise unchanged.

    Args:
        positive, negative: (out, in) conductances of the two cells of a pair.
        gain: (out,) a weight for each unit of conductance.
        noise: (..., tiles, out) standard normal numbers, one a converted sum; None where reads have no noise.
        rows: pairs along a column of a tile.
        input_bits, adc_bits: of codes of voltages and of currents, 2 to 24; 0 for none.
        adc_range: the largest current that is told apart, for each square root of a tile's rows that are used, of
            voltages of 1.
        read_noise: deviation of a cell at a read, of its conductance.
    """
    gate.no_tangents("analog_linear", x, positive, negative, gain, noise)
    return torch.ops.hasten.analog_linear(
        x, positive, negative, gain, noise, rows, input_bits, adc_bits, adc_range, read_noise
    )


torch.library.define(
    "hasten::analog_linear",
    "(Tensor x, Tensor positive, Tensor negative, Tensor gain, Tensor? noise, int rows, int input_bits, int adc_bits,"
    " float adc_range, float read_noise) -> Tensor",
)


def _check(
    x: Tensor, positive: Tensor, negative: Tensor, gain: Tensor, noise: Tensor | None, rows: int, input_bits: int,
    adc_bits: int, adc_range: float, read_noise: float,
) -> None:  # fmt: skip
    name = "analog_linear"
    gate.dtypes(name, gate.FLOATS, x=x, positive=positive, negative=negative, gain=gain, noise=noise)
    found = gate.sizes(
        name, positive=(positive, "n k"), negative=(negative, "n k"), gain=(gain, "n"), x=(x, "... k")
    )  # fmt: skip
    if not found["k"] or not found["n"] or not x.dim():
        raise ValueError(f"{name}: x is {tuple(x.shape)}, conductances are {tuple(positive.shape)}: none may be empty")
    if rows < 1 or not (adc_range > 0 and math.isfinite(adc_range)) or not (0 <= read_noise < math.inf):
        raise ValueError(f"{name}: tiles of {rows} rows, a range of {adc_range}, noise of {read_noise} are impossible")
    for bits in (input_bits, adc_bits):
        if bits != 0 and not 2 <= bits <= 24:
            raise ValueError(f"{name}: converters have 2 to 24 bits, or 0 for none, not {bits}")
    if noise is not None:
        wanted = (*x.shape[:-1], tiles_of(found["k"], rows), found["n"])
        if tuple(noise.shape) != wanted or noise.device != x.device:
            raise ValueError(f"{name}: noise is {tuple(noise.shape)}, not {wanted} on {x.device}")


@torch.library.impl("hasten::analog_linear", ("cpu", "cuda", "mps"))
def _analog_linear(
    x: Tensor, positive: Tensor, negative: Tensor, gain: Tensor, noise: Tensor | None, *how: Any
) -> Tensor:
    _check(x, positive, negative, gain, noise, *how)
    out, columns = positive.shape
    flat = x.reshape(x.numel() // columns, columns)
    drawn = None if noise is None else noise.reshape(len(flat), *noise.shape[-2:])
    return reference(flat, positive, negative, gain, drawn, *how).to(x.dtype).reshape(*x.shape[:-1], out)


@gate.register_fake("hasten::analog_linear")
def _(x: Tensor, positive: Tensor, negative: Tensor, gain: Tensor, noise: Tensor | None, *how: Any) -> Tensor:
    return x.new_empty(*x.shape[:-1], positive.shape[0])


@register("hasten::analog_linear")
def _(call: Call) -> None:
    x, positive, gain, output = call["x"], call["positive"], call["gain"], call.outputs[0]
    n, k = positive.shape
    ranks = (("m", int(x.numel() // max(k, 1))), ("n", n), ("k", k))
    parts = [call.read(t, ["k", "n"]) for t in (positive, call["negative"])]
    inputs = [call.read(x, ["m", "k"]), *parts, call.read(gain, ["n"])]
    call.emit(Op.MATMUL, ranks, inputs, output, ["m", "n"], map="mul", reduce="sum")


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _gradient(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, positive, negative, gain = ctx.saved_tensors  # type: ignore[attr-defined]
    wide = gate.wide(grad.dtype)
    scaled = grad.to(wide) * gain.to(wide)
    difference = positive.to(wide) - negative.to(wide)
    flat = x.to(wide).reshape(-1, x.shape[-1])
    cells = scaled.reshape(-1, scaled.shape[-1]).t() @ flat
    gains = (grad.to(wide).reshape(-1, grad.shape[-1]) * (flat @ difference.t())).sum(0)
    found = ((scaled @ difference).to(x.dtype), cells.to(positive.dtype), -cells.to(negative.dtype))
    return *found, gains.to(gain.dtype), *[None] * 6


torch.library.register_autograd("hasten::analog_linear", _gradient, setup_context=_keep)
