"""Convolutions on small accelerators of three published dataflows: cycles, energy and area of a chip made of several.

The templates are those NASAIC (arXiv 2002.04116) combines: NVDLA's weight-stationary, ShiDianNao's output-stationary
and Eyeriss's row-stationary array. The paper asks MAESTRO for their costs, which cannot be had as a library; these
equations are our own, from what each array keeps still and what it broadcasts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from hasten.cost.chips.chip_cost import ChipCost
from hasten.errors import HastenError

DATAFLOWS = ("dla", "shi", "rs")
# Channels that one row of an NVDLA-like array sums in its adder tree.
ATOMIC_CHANNELS = 16
# 45 nm, 8 bits: joules of a multiply-accumulate (0.25 pJ), and of a byte from a buffer and from outside relative to it.
MAC_ENERGY = 0.25e-12
BUFFER_RATIO, OUTSIDE_RATIO = 6.0, 200.0
# Square metres of a processing element with its registers (1000 um^2), of a byte of buffer (5 um^2), and of a GB/s of
# interconnect (20,000 um^2); bytes of buffer for each element.
PE_AREA, BYTE_AREA, BANDWIDTH_AREA = 1000e-12, 5e-12, 20000e-12
BUFFER_PER_PE = 256
CLOCK = 1e9
"""Hz of all templates: a bandwidth of 1 GB/s is a byte a cycle."""


@dataclass(frozen=True)
class ConvShape:
    """A convolution of one image: K output and C input channels, an R x S kernel, Y x X outputs.

    A fully connected layer is one with R = S = X = 1 and a row for each token. ``stride`` is that along rows, and along
    columns too where ``column_stride`` is None.
    """

    out_channels: int
    in_channels: int
    kernel_rows: int
    kernel_columns: int
    height: int
    width: int
    stride: int = 1
    column_stride: int | None = None

    def __post_init__(self) -> None:
        if self.column_stride is None:
            object.__setattr__(self, "column_stride", self.stride)
        if min(self.out_channels, self.in_channels, self.kernel_rows, self.kernel_columns) < 1 or (
            min(self.height, self.width, *self.strides) < 1
        ):
            raise HastenError(f"every size of a convolution must be at least 1: {self}")

    @property
    def strides(self) -> tuple[int, int]:
        """Along rows and along columns."""
        assert self.column_stride is not None
        return self.stride, self.column_stride

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
        """Bytes of 8-bit inputs that are used, the border of padding not counted."""
        rows, columns = min(self.strides[0], self.kernel_rows), min(self.strides[1], self.kernel_columns)
        return self.in_channels * self.height * self.width * rows * columns

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
        """Square metres."""
        return self.pes * PE_AREA + self.buffer * BYTE_AREA + self.bandwidth * BANDWIDTH_AREA


@dataclass(frozen=True)
class Blocking:
    """The pieces that a layer is taken in, between the array and what is outside.

    Args:
        rounds: of the filters.
        rows, columns: of the picture: strips or tiles.
        outer: which of both loops is outside of the other, ``filters`` or ``picture``.
    """

    rounds: int
    rows: int
    columns: int
    outer: str


@dataclass(frozen=True, kw_only=True)
class LayerCost(ChipCost):
    """What a layer costs on a sub-accelerator: levels ``buffer`` and ``memory``; bound by ``compute`` or ``memory``.

    Args:
        cycles: of `CLOCK` that it takes: the latency in steps, in which schedules compare exactly.
        compute: of them, those in which its array computes.
        blocking: the pieces it is taken in.
    """

    cycles: float
    compute: int
    blocking: Blocking


def _moved(
    layer: ConvShape, room: int, rounds: int, strips: int, sums: int = 0, bordered: int = 0
) -> tuple[int, str] | None:
    """Bytes moved when the filters are taken in ``rounds`` and the picture in ``strips``, and the better outer loop.

    Inside of the outer loop a piece of the one tensor can be kept while all of the other passes; either can be kept
    whole. A piece takes twice its size, as the next is on its way; what passes by takes a byte at least.

    Args:
        layer: to be moved.
        room: bytes of buffer.
        rounds, strips: how many pieces.
        sums: bytes of partial sums of a piece.
        bordered: bytes of all inputs when each strip is fetched with the border it shares; as without when 0.

    Returns:
        None where the sums do not fit.
    """
    room -= sums * (1 if rounds * strips == 1 else 2)
    if room < 1:
        return None
    weights, inputs = layer.weights, layer.inputs
    apart = max(bordered, inputs) if strips > 1 else inputs
    round_, strip = math.ceil(weights / rounds), math.ceil(apart / strips)
    # Of each tensor: bytes kept, and bytes then moved. Inside of the filters' loop a piece of them can be kept, inside
    # of the picture's a strip of it.
    weighed = ((0, weights * strips), (round_ * min(rounds, 2), weights)), ((0, weights * strips), (weights, weights))
    given = ((0, apart * rounds), (inputs, inputs)), ((0, apart * rounds), (strip * min(strips, 2), apart))
    best: tuple[int, str] | None = None
    for outer, of_weights, of_inputs in zip(("filters", "picture"), weighed, given, strict=True):
        for kept, once in of_weights:
            for kept_too, once_too in of_inputs:
                if kept + kept_too < room and (best is None or once + once_too < best[0]):
                    best = (once + once_too, outer)
    assert best is not None
    return best[0] + layer.outputs, best[1]


@dataclass(frozen=True)
class _Way:
    """A layer in given pieces, whatever the bandwidth.

    Args:
        compute: cycles in which the array computes.
        moved, accesses: bytes from and to what is outside, and from and to the buffer.
        ends: bytes that arrive before the first multiplication, and leave after the last.
        blocking: the pieces.
    """

    compute: int
    moved: float
    accesses: float
    ends: float
    blocking: Blocking

    @property
    def spent(self) -> float:
        """Energy that the pieces decide, in multiply-accumulates."""
        return BUFFER_RATIO * self.accesses + OUTSIDE_RATIO * self.moved


def _cost(layer: ConvShape, unit: SubAccelerator, way: _Way) -> LayerCost:
    computing, moving = way.compute + way.ends / unit.bandwidth, way.moved / unit.bandwidth
    cycles = max(computing, moving)
    return LayerCost(
        latency=cycles / CLOCK,
        energy=MAC_ENERGY * (layer.macs + way.spent),
        bytes={"buffer": way.accesses, "memory": way.moved},
        area=unit.area,
        bound="compute" if computing >= moving else "memory",
        cycles=cycles,
        compute=way.compute,
        blocking=way.blocking,
    )


def _dla_in(layer: ConvShape, unit: SubAccelerator, rounds: int, strips: int) -> _Way | None:
    """The way in so many pieces; None where their sums do not fit."""
    across = min(ATOMIC_CHANNELS, unit.pes)
    rounds_in = math.ceil(layer.in_channels / across)
    positions = layer.height * layer.width
    filters = math.ceil(layer.out_channels / rounds)
    sums = filters * math.ceil(positions / strips)
    # Strips share borders, here those of a square picture: which of the sides is which does not matter.
    border = max(layer.kernel_rows - layer.stride, 0) / (min(layer.stride, layer.kernel_rows) * math.sqrt(positions))
    way = _moved(layer, unit.buffer, rounds, strips, sums, math.ceil(layer.inputs * (1 + strips * border)))
    if way is None:
        return None
    compute = layer.kernel_rows * layer.kernel_columns * positions * rounds_in * rounds
    # Inputs are broadcast to all filters; sums of a round of channels are stored and read again by the next.
    accesses = layer.macs / filters + layer.weights * strips + layer.outputs * (2 * rounds_in - 1)
    # Weights of the first step come before; outputs leave, so many positions at once, as the last step ends their sums.
    ends = filters * (min(layer.in_channels, ATOMIC_CHANNELS) + min(positions, ATOMIC_CHANNELS))
    return _Way(compute, way[0], accesses, ends, Blocking(rounds, strips, 1, way[1]))


def _dla(layer: ConvShape, unit: SubAccelerator) -> Iterator[_Way]:
    positions = layer.height * layer.width
    # Fewer filters at once than the array has room for leave room for their sums.
    rounds = math.ceil(layer.out_channels / (unit.pes // min(ATOMIC_CHANNELS, unit.pes)))
    while rounds:
        strips = 1
        while strips == 1 or strips * ATOMIC_CHANNELS <= positions:  # weights stay while the next ones come
            way = _dla_in(layer, unit, rounds, strips)
            if way is not None:
                yield way
            strips *= 2
        rounds = _next(layer.out_channels, rounds)


def _next(size: int, pieces: int) -> int:
    """The least number of pieces over ``pieces`` whose largest is smaller; 0 when there is none."""
    largest = math.ceil(size / pieces)
    return math.ceil(size / (largest - 1)) if largest > 1 else 0


@lru_cache(maxsize=1024)
def _tiles(height: int, width: int) -> tuple[tuple[int, int, int], ...]:
    """(tiles, rows, columns) of every way to take a picture in tiles, by their number."""

    def cuts(size: int) -> list[int]:
        found, pieces = [], 1
        while pieces:
            found.append(pieces)
            pieces = _next(size, pieces)
        return found

    return tuple(sorted((a * b, a, b) for a in cuts(height) for b in cuts(width)))


def _shi(layer: ConvShape, unit: SubAccelerator) -> Iterator[_Way]:
    for tiles, down, along in _tiles(layer.height, layer.width):
        rows, columns = math.ceil(layer.height / down), math.ceil(layer.width / along)
        if rows * columns > unit.pes:
            continue
        bordered = tiles * layer.in_channels * _window(rows, layer.kernel_rows, layer.stride)
        bordered *= _window(columns, layer.kernel_columns, layer.strides[1])
        way = _moved(layer, unit.buffer, layer.out_channels, tiles, 0, bordered)
        assert way is not None  # sums never leave their PE
        # A weight is broadcast to all outputs; inputs go from neighbour to neighbour, so that each is read once for a
        # filter and a column of the kernel.
        accesses = layer.weights * tiles + layer.inputs * layer.out_channels + layer.outputs
        blocking = Blocking(layer.out_channels, down, along, way[1])
        yield _Way(layer.weights * tiles, way[0], accesses, 2 * rows * columns, blocking)


def _window(outputs: int, kernel: int, stride: int) -> int:
    """Inputs used along a side by so many outputs."""
    return outputs * min(stride, kernel) + max(kernel - stride, 0)


def _rs(layer: ConvShape, unit: SubAccelerator) -> Iterator[_Way]:
    rows = layer.kernel_rows
    used = unit.pes // rows * rows if unit.pes >= rows else unit.pes
    pairs = layer.out_channels * rows * layer.height
    passes = math.ceil(pairs / used)
    compute = layer.width * layer.kernel_columns * layer.in_channels * passes
    together = min(layer.out_channels, max(1, used // (rows * layer.height)))  # filters in the array at once
    least = math.ceil(rows * layer.height / used)  # strips of the picture, where not even one filter fits
    rounds = math.ceil(layer.out_channels / together)
    strips = 1
    while strips < 2 * layer.height:
        if strips >= least or strips >= layer.height:
            way = _moved(layer, unit.buffer, rounds, strips)
            assert way is not None
            # A row of inputs serves a diagonal of PEs, a row of weights a row of them, and sums go up a column.
            accesses = layer.inputs * rounds + layer.weights * strips
            accesses += 2 * layer.outputs * max(1, layer.in_channels // 4)
            # Outputs leave row by row while others are computed.
            yield _Way(compute, way[0], accesses, 0, Blocking(rounds, strips, 1, way[1]))
        strips *= 2


@lru_cache(maxsize=100_000)
def _ways(layer: ConvShape, dataflow: str, pes: int) -> tuple[_Way, ...]:
    """The ways of a layer that no other beats in cycles, bytes and energy at once, the least energy first."""
    # Its buffer goes with its elements: the ways are the same at any bandwidth.
    found = {"dla": _dla, "shi": _shi, "rs": _rs}[dataflow](layer, SubAccelerator(dataflow, pes, 1))
    kept: list[_Way] = []
    for way in sorted(found, key=lambda w: (w.spent, w.compute, w.moved, w.ends)):
        if not any(k.compute <= way.compute and k.moved <= way.moved and k.ends <= way.ends for k in kept):
            kept.append(way)
    return tuple(kept)


@lru_cache(maxsize=200_000)
def layer_costs(layer: ConvShape, unit: SubAccelerator) -> tuple[LayerCost, ...]:
    """What a layer costs on a sub-accelerator in the ways to take it in pieces that no other beats, the soonest first.

    Each takes the longer of computing and moving, as both overlap; only what is needed for the first multiplication,
    and the last piece of outputs, cannot. Weights, inputs and outputs cross its interface; what its buffer keeps
    crosses once, what it does not crosses as often as the dataflow needs it again. NASAIC, section II; the equations of
    each template are ours.

    With more bandwidth each takes no longer, and as much energy: so the least energy within a deadline never grows.
    """
    found: list[LayerCost] = []
    every = (_cost(layer, unit, way) for way in _ways(layer, unit.dataflow, unit.pes))
    for cost in sorted(every, key=lambda c: (c.cycles, c.energy)):
        if not found or cost.energy < found[-1].energy:
            found.append(cost)
    return tuple(found)


def layer_cost(layer: ConvShape, unit: SubAccelerator) -> LayerCost:
    """The soonest of `layer_costs`."""
    return layer_costs(layer, unit)[0]


def blocked_cost(layer: ConvShape, unit: SubAccelerator, rounds: int, strips: int) -> LayerCost:
    """What a layer costs on a ``dla`` in given pieces, with the better outer loop of both.

    Raises:
        HastenError: another dataflow, more filters at once than the array has room for, or sums that do not fit.
    """
    if unit.dataflow != "dla" or math.ceil(layer.out_channels / rounds) > unit.pes // min(ATOMIC_CHANNELS, unit.pes):
        raise HastenError(f"{rounds} rounds of filters do not fit a {unit.dataflow} of {unit.pes} elements")
    way = _dla_in(layer, unit, rounds, strips)
    if way is None:
        raise HastenError(f"the sums of {strips} strips do not fit {unit.buffer} bytes: take more strips")
    return _cost(layer, unit, way)


def area(units: Iterable[SubAccelerator]) -> float:
    """Square metres of a chip of these sub-accelerators."""
    return sum(unit.area for unit in units)
