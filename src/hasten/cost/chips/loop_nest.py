"""A layer as a nest of loops on an array of processing elements with a buffer: cycles, traffic and energy of a mapping.

The accounting is that of loop-nest mappers such as Timeloop and MAESTRO, in three levels: memory, buffer, array. A
tile of each tensor lies in the buffer; loops over tiles run in a chosen order, and a tensor's tile is fetched again
whenever a loop that does not index it makes another that does start over. Within a tile two ranks are spread over rows
and columns of the array, and one tensor stays in the elements' registers. Sizes need not divide.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hasten.cost.chips.chip_cost import ChipCost
from hasten.cost.chips.dataflow import ConvShape
from hasten.errors import HastenError
from hasten.workload.einsum import Einsum, Op

# Energy of a 16-bit multiply-accumulate, J (45 nm), and of a word from a register, a buffer of 100 KiB and memory over
# it (Eyeriss, ISCA 2016, section III); a buffer's grows with the length of its wires.
MAC = 1.0e-12
REGISTER, BUFFER, MEMORY = 1.0, 6.0, 200.0
BUFFER_BYTES = 100 * 1024
WORD = 2
# Square metres of an element (3400 um^2) and of a byte of buffer (5 um^2).
ELEMENT_AREA, BYTE_AREA = 3400e-12, 5e-12


@dataclass(frozen=True)
class Operand:
    """How a nest indexes a tensor: each dimension is a sum of ranks with strides."""

    name: str
    dimensions: tuple[tuple[tuple[str, int], ...], ...]

    @property
    def ranks(self) -> frozenset[str]:
        """Those that index it."""
        return frozenset(rank for dimension in self.dimensions for rank, _ in dimension)

    def words(self, extents: Mapping[str, int]) -> int:
        """Elements of the box that a block of the iteration space lies in; windows that overlap count once.

        A stride larger than its window leaves gaps, and a block is moved with them.
        """
        return math.prod(1 + sum(stride * (extents[rank] - 1) for rank, stride in d) for d in self.dimensions)

    def read(self, extents: Mapping[str, int]) -> int:
        """Elements that a block of the iteration space reads, without gaps."""
        places = 1
        for dimension in self.dimensions:
            reached = {0}
            for rank, stride in dimension:
                reached = {at + stride * i for at in reached for i in range(extents[rank])}
            places *= len(reached)
        return places


@dataclass(frozen=True)
class Nest:
    """Loops that multiply and sum.

    Args:
        sizes: (rank, size) of each loop.
        inputs: the two tensors that are multiplied.
        output: where products are summed.
    """

    sizes: tuple[tuple[str, int], ...]
    inputs: tuple[Operand, Operand]
    output: Operand

    @property
    def macs(self) -> int:
        return math.prod(size for _, size in self.sizes)

    @property
    def operands(self) -> tuple[Operand, ...]:
        return (*self.inputs, self.output)

    @property
    def compulsory(self) -> int:
        """Words of all three tensors that are read or made at least once."""
        return sum(o.read(dict(self.sizes)) for o in self.operands)


def convolution(shape: ConvShape) -> Nest:
    """A convolution of one image: ranks k, c, r, s, y, x; tensors W, I, O."""
    one = {rank: (rank, 1) for rank in "kcrsyx"}
    window = (("y", shape.stride), one["r"]), (("x", shape.strides[1]), one["s"])
    sizes = (
        ("k", shape.out_channels), ("c", shape.in_channels), ("r", shape.kernel_rows), ("s", shape.kernel_columns),
        ("y", shape.height), ("x", shape.width),
    )  # fmt: skip
    weights = Operand("W", ((one["k"],), (one["c"],), (one["r"],), (one["s"],)))
    return Nest(sizes, (weights, Operand("I", ((one["c"],), *window))), Operand("O", tuple((one[r],) for r in "kyx")))


def product(einsum: Einsum) -> Nest:
    """The loops of a matrix product of a traced workload.

    Raises:
        HastenError: an Einsum of another kind.
    """
    if einsum.op is not Op.MATMUL or len(einsum.inputs) != 2:
        raise HastenError(f"{einsum.name} is no product of two tensors: map those of op {Op.MATMUL.value}")
    left, right, out = (
        Operand(a.tensor, tuple(tuple((rank, abs(factor)) for rank, factor in index.terms) for index in a.indices))
        for a in (*einsum.inputs, einsum.output)
    )
    return Nest(einsum.ranks, (left, right), out)


@dataclass(frozen=True)
class BufferedArray:
    """An array of processing elements with its buffer and memory.

    Args:
        rows, columns: of the array.
        buffer: bytes, of which half holds the tiles at work and half those on their way.
        bandwidth: B a cycle of the memory.
        clock: Hz.

    Raises:
        HastenError: a size below 1.
    """

    rows: int = 16
    columns: int = 16
    buffer: int = 128 * 1024
    bandwidth: float = 16.0
    clock: float = 1e9

    def __post_init__(self) -> None:
        # Written so that NaN fails as well.
        if not (min(self.rows, self.columns, self.buffer) >= 1 and self.bandwidth > 0 and self.clock > 0):
            raise HastenError("an array needs rows, columns, a buffer, bandwidth and a clock above 0")

    @property
    def area(self) -> float:
        """Square metres."""
        return self.rows * self.columns * ELEMENT_AREA + self.buffer * BYTE_AREA


@dataclass(frozen=True)
class LoopMapping:
    """How a nest runs.

    Args:
        tile: rank -> its part that is in the buffer at once; all of it where none is given.
        order: ranks of the loops over tiles, outermost first; those left out come last.
        rows, columns: ranks spread over the array's rows and columns.
        stays: name of the tensor that stays in registers.
    """

    tile: Mapping[str, int]
    order: tuple[str, ...]
    rows: str
    columns: str
    stays: str


@dataclass(frozen=True, kw_only=True)
class MappingCost(ChipCost):
    """What a mapping costs; its latency is the longer of computing and moving, which overlap.

    Levels are ``buffer`` (what passes between it and the array) and ``memory``; bound by ``compute`` or ``memory``.

    Args:
        cycles: of the array's clock that it takes.
        compute: of them, those in which the array computes.
        words: tensor -> words to and from memory.
        utilization: share of the array's multiply-accumulates that are used while it computes.
    """

    cycles: float
    compute: int
    words: Mapping[str, int]
    utilization: float


def mapping_cost(nest: Nest, array: BufferedArray, mapping: LoopMapping) -> MappingCost:
    """Prices a mapping.

    Raises:
        HastenError: a rank or tensor that is not the nest's, one rank on both sides of the array, a tile below 1, or
            tiles that do not fit the buffer.
    """
    sizes = dict(nest.sizes)
    tile = _checked(nest, array, mapping)
    order = [*mapping.order, *(r for r in sizes if r not in mapping.order)]
    extents = {r: tuple(_extents(sizes[r], tile[r])) for r in sizes}
    words = {o.name: _moved(o, order, extents, o is nest.output) for o in nest.operands}
    wide = {mapping.rows: array.rows, mapping.columns: array.columns}
    compute = math.prod(sum(math.ceil(e / wide.get(r, 1)) for e in extents[r]) for r in sizes)
    buffered = sum(_buffered(o, nest, extents, wide, mapping.stays) for o in nest.operands)
    traffic = WORD * sum(words.values())
    near = BUFFER * math.sqrt(array.buffer / BUFFER_BYTES)
    energy = MAC * (nest.macs * (1 + 3 * REGISTER) + near * (buffered + sum(words.values())))
    energy += MAC * MEMORY * sum(words.values())
    cycles = max(float(compute), traffic / array.bandwidth)
    return MappingCost(
        latency=cycles / array.clock,
        energy=energy,
        bytes={"buffer": WORD * buffered, "memory": traffic},
        area=array.area,
        bound="compute" if compute >= traffic / array.bandwidth else "memory",
        cycles=cycles,
        compute=compute,
        words=words,
        utilization=nest.macs / (compute * array.rows * array.columns),
    )


def buffer_bytes(nest: Nest, mapping: LoopMapping) -> int:
    """Bytes of buffer that a tile of each tensor takes, twice each."""
    tile = _tile(nest, mapping)
    return 2 * WORD * sum(o.words(tile) for o in nest.operands)


def _tile(nest: Nest, mapping: LoopMapping) -> dict[str, int]:
    """Of each rank; all of one that has none."""
    return {r: min(size, int(mapping.tile.get(r, size))) for r, size in nest.sizes}


def _checked(nest: Nest, array: BufferedArray, mapping: LoopMapping) -> dict[str, int]:
    sizes = dict(nest.sizes)
    names = [*mapping.tile, *mapping.order, mapping.rows, mapping.columns]
    if unknown := [r for r in names if r not in sizes]:
        raise HastenError(f"the nest has no rank {unknown[0]!r}: it has {', '.join(sizes)}")
    if mapping.rows == mapping.columns:
        raise HastenError(f"rank {mapping.rows!r} cannot be on rows and columns at once: choose another for one")
    if mapping.stays not in {o.name for o in nest.operands}:
        raise HastenError(f"no tensor {mapping.stays!r} can stay: choose {', '.join(o.name for o in nest.operands)}")
    if len(set(mapping.order)) < len(mapping.order):
        raise HastenError("a loop is in the order twice: name each rank once")
    if any(not t >= 1 for t in mapping.tile.values()):
        raise HastenError("a tile holds at least 1 of each rank")
    tile, held = _tile(nest, mapping), buffer_bytes(nest, mapping)
    if held > array.buffer:
        raise HastenError(
            f"tiles of {held} bytes, twice each, do not fit a buffer of {array.buffer}: make them smaller"
        )
    return tile


def _extents(size: int, tile: int) -> Iterator[int]:
    for start in range(0, size, tile):
        yield min(tile, size - start)


def _moved(operand: Operand, order: Sequence[str], extents: Mapping[str, Sequence[int]], summed: bool) -> int:
    """Words of one tensor between memory and buffer, from the order of the loops over tiles.

    A tile stays as long as only loops inside of the innermost one that indexes it go round.
    """
    own = _tiles(operand, tuple((r, tuple(extents[r])) for r in order if r in operand.ranks))
    relevant = [i for i, r in enumerate(order) if r in operand.ranks and len(extents[r]) > 1]
    inner = relevant[-1] if relevant else -1
    times = math.prod(len(extents[r]) for r in order[: inner + 1] if r not in operand.ranks)
    # Sums that are left for another part of the output are written, and read when they go on.
    return own * (2 * times - 1) if summed else own * times


@lru_cache(maxsize=4096)
def _tiles(operand: Operand, extents: tuple[tuple[str, tuple[int, ...]], ...]) -> int:
    """Words of all tiles of a tensor together; windows at the edges of tiles count in both."""
    parts = dict(extents)
    total = 1
    for dimension in operand.dimensions:
        lengths = [1]
        for rank, stride in dimension:
            lengths = [n + stride * (e - 1) for n in lengths for e in parts[rank]]
        total *= sum(lengths)
    return total


def _buffered(
    operand: Operand, nest: Nest, extents: Mapping[str, Sequence[int]], wide: Mapping[str, int], stays: str
) -> int:
    """Words of one tensor between buffer and array.

    Elements along a rank that does not index a tensor share each of its words (sums are added up on their way). The
    tensor that stays is fetched once for each tile; the others for every step. A sum that goes on is read and written.
    """
    fetched = 1
    for rank, size in nest.sizes:
        own = rank in operand.ranks
        if own:
            fetched *= size
        elif rank in wide:
            fetched *= sum(math.ceil(e / wide[rank]) for e in extents[rank])
        elif operand.name == stays:
            fetched *= len(extents[rank])
        else:
            fetched *= size
    return 2 * fetched - operand.words(dict(nest.sizes)) if operand is nest.output else fetched
