"""Convolutions on small accelerators of three published dataflows: cycles, energy and area of a chip made of several.

The templates are those NASAIC (arXiv 2002.04116) combines: NVDLA's weight-stationary, ShiDianNao's output-stationary
and Eyeriss's row-stationary array. The paper asks MAESTRO for their costs, which cannot be had as a library; these
equations are our own, from what each array keeps still and what it broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from hasten.errors import HastenError

DATAFLOWS = ("dla", "shi", "rs")
# Channels that one row of an NVDLA-like array sums in its adder tree.
ATOMIC_CHANNELS = 16
# 45 nm, 8 bits: energy of a multiply-accumulate in pJ, and of a byte from a buffer and from outside relative to it.
MAC_ENERGY = 0.25
BUFFER_RATIO, OUTSIDE_RATIO = 6.0, 200.0
# um^2 of a processing element with its registers, of a byte of buffer, and of a GB/s of interconnect; bytes of buffer
# for each element.
PE_AREA, BYTE_AREA, BANDWIDTH_AREA = 1000.0, 5.0, 20000.0
BUFFER_PER_PE = 256
CLOCK = 1e9


@dataclass(frozen=True)
class ConvShape:
    """A convolution of one image: K output and C input channels, an R x S kernel, Y x X outputs.

    A fully connected layer is one with R = S = Y = X = 1.
    """

    out_channels: int
    in_channels: int
    kernel_rows: int
    kernel_columns: int
    height: int
    width: int
    stride: int = 1

    def __post_init__(self) -> None:
        if min(self.out_channels, self.in_channels, self.kernel_rows, self.kernel_columns) < 1 or (
            min(self.height, self.width, self.stride) < 1
        ):
            raise HastenError(f"every size of a convolution must be at least 1: {self}")

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.weights * self.height * self.width

    @property
    def weights(self) -> int:
        """Bytes of 8-bit weights."""
        return self.out_channels * self.in_channels * self.kernel_rows * self.kernel_columns

    @property
    def inputs(self) -> int:
        """Bytes of 8-bit inputs, the border of padding not counted."""
        return self.in_channels * self.height * self.width * self.stride**2

    @property
    def outputs(self) -> int:
        """Bytes of 8-bit outputs."""
        return self.out_channels * self.height * self.width


@dataclass(frozen=True)
class SubAccelerator:
    """One array of a chip.

    Args:
        dataflow: ``dla`` (NVDLA-like: weights stay, PEs over input and output channels), ``shi`` (ShiDianNao-like:
            outputs stay, PEs over rows and columns of the output) or ``rs`` (Eyeriss-like: rows of kernels and
            outputs meet in a PE).
        pes: processing elements, a multiply-accumulate a cycle each.
        bandwidth: to it, in GB/s (bytes a cycle at 1 GHz).

    Raises:
        HastenError: an unknown dataflow, or no PEs or bandwidth.
    """

    dataflow: str
    pes: int
    bandwidth: float

    def __post_init__(self) -> None:
        if self.dataflow not in DATAFLOWS:
            raise HastenError(f"no dataflow {self.dataflow!r}: take one of {', '.join(DATAFLOWS)}")
        if self.pes < 1 or self.bandwidth <= 0:
            raise HastenError("a sub-accelerator needs at least one PE and some bandwidth: leave it out otherwise")

    @property
    def buffer(self) -> int:
        """Bytes, in proportion to the elements."""
        return self.pes * BUFFER_PER_PE

    @property
    def area(self) -> float:
        """um^2."""
        return self.pes * PE_AREA + self.buffer * BYTE_AREA + self.bandwidth * BANDWIDTH_AREA


@dataclass(frozen=True)
class LayerCost:
    """A layer on a sub-accelerator: cycles it takes, cycles it computes, bytes moved to and from it, energy in pJ."""

    cycles: float
    compute: int
    bytes: float
    energy: float


def _fetched(size: int, times: int, unit: SubAccelerator) -> int:
    """Bytes fetched from outside of what is used ``times`` times: once if half of the buffer keeps it."""
    return size if size <= unit.buffer // 2 else size * times


def _cost(layer: ConvShape, unit: SubAccelerator, compute: int, moved: float, accesses: float) -> LayerCost:
    energy = MAC_ENERGY * (layer.macs + BUFFER_RATIO * accesses + OUTSIDE_RATIO * moved)
    return LayerCost(max(float(compute), moved / unit.bandwidth), compute, moved, energy)


def _dla(layer: ConvShape, unit: SubAccelerator) -> LayerCost:
    across = min(ATOMIC_CHANNELS, unit.pes)
    filters = unit.pes // across
    rounds_in = math.ceil(layer.in_channels / across)
    rounds_out = math.ceil(layer.out_channels / filters)
    compute = layer.kernel_rows * layer.kernel_columns * layer.height * layer.width * rounds_in * rounds_out
    # Inputs are broadcast to all filters; sums of a round of channels are stored and read again by the next.
    accesses = layer.macs / min(filters, layer.out_channels) + layer.weights + layer.outputs * (2 * rounds_in - 1)
    moved = layer.weights + _fetched(layer.inputs, rounds_out, unit) + layer.outputs
    return _cost(layer, unit, compute, moved, accesses)


def _shi(layer: ConvShape, unit: SubAccelerator) -> LayerCost:
    found: LayerCost | None = None
    for rows in range(1, min(layer.height, unit.pes) + 1):
        columns = min(layer.width, unit.pes // rows)
        tiles = math.ceil(layer.height / rows) * math.ceil(layer.width / columns)
        compute = layer.weights * tiles
        # A weight is broadcast to all outputs; inputs go from neighbour to neighbour, so that each is read once for a
        # filter and a column of the kernel, and sums never leave their PE.
        accesses = layer.weights * tiles + layer.inputs * layer.out_channels + layer.outputs
        moved = _fetched(layer.weights, tiles, unit) + layer.inputs + layer.outputs
        cost = _cost(layer, unit, compute, moved, accesses)
        if found is None or (cost.cycles, cost.energy) < (found.cycles, found.energy):
            found = cost
    assert found is not None
    return found


def _rs(layer: ConvShape, unit: SubAccelerator) -> LayerCost:
    rows = layer.kernel_rows
    used = unit.pes // rows * rows if unit.pes >= rows else unit.pes
    pairs = layer.out_channels * rows * layer.height
    passes = math.ceil(pairs / used)
    compute = layer.width * layer.kernel_columns * layer.in_channels * passes
    together = max(1, used // (rows * layer.height))  # filters in the array at once
    strips = math.ceil(rows * layer.height / used)  # parts of the picture where not even one filter fits
    rounds = math.ceil(layer.out_channels / together)
    # A row of inputs serves a diagonal of PEs, a row of weights a row of them, and sums go up a column.
    accesses = layer.inputs * rounds + layer.weights * strips + 2 * layer.outputs * max(1, layer.in_channels // 4)
    moved = _fetched(layer.weights, strips, unit) + _fetched(layer.inputs, rounds, unit) + layer.outputs
    return _cost(layer, unit, compute, moved, accesses)


@lru_cache(maxsize=200_000)
def layer_cost(layer: ConvShape, unit: SubAccelerator) -> LayerCost:
    """What a layer costs on a sub-accelerator: the longer of computing and moving, as both overlap.

    Weights, inputs and outputs cross its interface; what half of its buffer holds crosses once, what does not crosses
    as often as the dataflow needs it again. NASAIC, section II; the equations of each template are ours.
    """
    return {"dla": _dla, "shi": _shi, "rs": _rs}[unit.dataflow](layer, unit)


def area(units: Iterable[SubAccelerator]) -> float:
    """um^2 of a chip of these sub-accelerators."""
    return sum(unit.area for unit in units)


def conv_shapes(module: nn.Module, inputs: Sequence[int]) -> tuple[ConvShape, ...]:
    """The convolutions and fully connected layers of a module, in the order they run on an input of shape ``inputs``.

    Raises:
        HastenError: one with groups, or a kernel that is not two-dimensional.
    """
    found: list[ConvShape] = []

    def seen(layer: nn.Module, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        if isinstance(layer, nn.Linear):
            found.append(ConvShape(layer.out_features, layer.in_features, 1, 1, 1, 1))
            return
        assert isinstance(layer, nn.Conv2d)
        if layer.groups != 1:
            raise HastenError("a convolution with groups has no mapping to these dataflows")
        rows, columns = layer.kernel_size
        found.append(
            ConvShape(
                layer.out_channels, layer.in_channels, rows, columns, made.shape[-2], made.shape[-1],
                int(layer.stride[0]),
            )
        )  # fmt: skip

    hooks = [m.register_forward_hook(seen) for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    was = module.training
    try:
        with torch.no_grad():
            device = next(module.parameters()).device
            module.eval()(torch.zeros(tuple(inputs), device=device))
    finally:
        module.train(was)
        for hook in hooks:
            hook.remove()
    return tuple(found)
