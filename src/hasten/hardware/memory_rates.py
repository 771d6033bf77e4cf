"""Bandwidths of caches and main memory, and of unpacking packed weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from hasten.hardware.device import MemoryLevel, packed_key
from hasten.hardware.machine import MIB, caches, cores, memory_size
from hasten.hardware.quantity import Quantity
from hasten.hardware.timing import MEASURED, filled, seconds, using_threads
from hasten.kernels import gate
from hasten.kernels.block_formats import BLOCK_FORMATS
from hasten.kernels.compiled import native
from hasten.kernels.tiles import takes_tiles, tile_shapes

HOROWITZ = "Horowitz, ISSCC 2014, 45 nm; not measured here"
_ENERGY: dict[str, tuple[float, str]] = {
    "L1": (20e-12 / 8, f"{HOROWITZ}: 20 pJ per 64 bit from 32 KB"),
    "L2": (100e-12 / 8, f"{HOROWITZ}: 100 pJ per 64 bit from 1 MB"),
    "L3": (100e-12 / 8, f"estimated as 1 MB of cache: {HOROWITZ}"),
    "DRAM": (1.3e-9 / 8, f"{HOROWITZ}: 1.3 nJ per 64 bit, the low end"),
}


def cache_levels(threads: int) -> list[MemoryLevel]:
    """Bandwidth of every cache, launch excluded: a stream of reads, and one of copies, that fill most of it.

    One core streams, as small operators do, and the cores in use are taken to add up.
    """

    def rate(call: Callable[[], object], launch: float, moved: float) -> float:
        took = seconds(call, 0.02, 5)
        return moved / max(took - launch, 0.2 * took)

    found: list[MemoryLevel] = []
    with using_threads(1):
        tiny = filled(8)
        launches = seconds(lambda: torch.dot(tiny, tiny)), seconds(lambda: tiny.copy_(tiny))
        for name, size, shared in caches():
            private = shared < max(2, cores())
            instances = max(1, math.ceil(threads / shared)) if private else 1
            count = int(size * (0.75 if private else 0.4)) // 8
            x, y = filled(count), filled(count)
            read = threads * rate(lambda: torch.dot(x, y), launches[0], 8.0 * count)  # noqa: B023
            write = threads * rate(lambda: y.copy_(x), launches[1], 4.0 * count)  # noqa: B023
            inner = float(found[-1].capacity) if found else 0.0
            found.append(memory_level(name, max(float(size * instances), inner), read, write))
    return found


def ordered(levels: list[MemoryLevel]) -> list[MemoryLevel]:
    """The same levels, none slower than one further out: where noise says so, the inner one was disturbed."""
    ordered: list[MemoryLevel] = []
    read = write = 0.0
    for level in reversed(levels):
        read, write = max(read, level.bandwidth), max(write, level.writing)
        ordered.append(memory_level(level.name, float(level.capacity), read, write))
    return ordered[::-1]


def main_memory() -> tuple[float, float]:
    """Bytes per second of reading and of writing what no cache holds."""
    cached = sum(size for _, size, _ in caches())
    size = int(min(max(4 * cached, 128 * MIB), 384 * MIB, memory_size() // 8))
    matrix, vector = torch.ones(size // 4096, 1024), torch.ones(1024)
    readers: list[Callable[[], object]] = [lambda: torch.mv(matrix, vector), matrix.sum]
    read = size / min(seconds(reader, 0.1, 4) for reader in readers)
    if (module := native()) is not None:  # a loop that does nothing else, as compiled products do little else
        whole = gate.address(matrix, torch.float32, *matrix.shape)
        read = max(read, module.read_rate(whole, matrix.nbytes, torch.get_num_threads()))
    half = matrix[: len(matrix) // 2]
    other = torch.ones_like(half)
    copying = seconds(lambda: other.copy_(half), 0.1, 4)
    # A copy reads and writes: what reading does not explain is writing.
    moved = half.numel() * 4
    return read, moved / max(copying - moved / read, copying / 3)


def packed_rates() -> tuple[dict[str, Quantity], dict[str, float]]:
    """Weights a second that a product with one row reads from main memory and unpacks, by `packed_key`; and what a
    further row adds, as a share.

    Measured where a ``packed_linear`` operator is registered with torch; weights in blocks, which cost more to take
    apart the more parts a block has, where products of them are compiled.
    """
    rates: dict[str, Quantity] = {}
    further: dict[str, float] = {}
    if not hasattr(torch.ops.hasten, "packed_linear"):
        return rates, further
    rows, columns, group = 16384, 2048, 32
    kinds = [(32, torch.float32, False)] if hasattr(torch.ops.hasten, "plain_linear") else []
    kinds += [(16, torch.bfloat16, False)]
    kinds += [(bits, kind, int8) for bits, kind in ((8, torch.int8), (4, torch.uint8)) for int8 in (False, True)]
    if (module := native()) is not None and module.isa() != "generic":
        for bits, (nbytes, number) in blocks_by_bits().items():
            packed = torch.ones(rows, columns // 256 * nbytes, dtype=torch.uint8)
            if takes_tiles(number):  # as a compiled step has them
                packed = packed.view(tile_shapes(rows, columns, number)[0])
            copies = [packed, packed.clone(), packed.clone()]

            def in_blocks(x: Any, number: int = number, copies: Any = copies) -> None:
                for matrix in copies:
                    torch.ops.hasten.packed_linear(x, matrix, None, None, number, group, False, True)

            rates[packed_key(bits, "int8")], further[packed_key(bits, "int8")] = _one_and_six(
                in_blocks, len(copies), rows, columns, 0.03
            )
    for bits, kind, int8 in kinds:
        packed = torch.ones(rows, columns // 2 if bits == 4 else columns, dtype=kind)
        scales = torch.ones(rows, columns // group, dtype=torch.float16) if bits < 16 else None
        if int8 and module is not None and scales is not None:
            shape, numbers = tile_shapes(rows, columns, bits)
            packed, scales = packed.view(shape), scales.view(numbers)
        copies = [packed, packed.clone(), packed.clone()]
        mins = scales if bits == 4 else None

        def call(
            x: Any, bits: int = bits, copies: Any = copies, scales: Any = scales, mins: Any = mins, int8: bool = int8
        ) -> None:
            for matrix in copies:
                if bits == 32:
                    torch.ops.hasten.plain_linear(x, matrix)
                else:
                    torch.ops.hasten.packed_linear(x, matrix, scales, mins, bits, group, False, int8)

        key = packed_key(bits, "int8" if int8 else "")
        rates[key], further[key] = _one_and_six(call, len(copies), rows, columns, 0.08)
    return rates, further


def blocks_by_bits() -> dict[float, tuple[int, int]]:
    """Bits of a weight in blocks of 256, scales included -> bytes of a block, and the number of the format."""
    found: dict[float, tuple[int, int]] = {}
    for number, known in BLOCK_FORMATS.items():
        if known.columns == 256:
            found.setdefault(8 * known.nbytes / known.columns, (known.nbytes, number))
    return found


def _one_and_six(
    call: Callable[[Any], None], matrices: int, rows: int, columns: int, budget: float
) -> tuple[Quantity, float]:
    """Weights a second of a product with one row, and what each of five more adds, as a share."""
    one, six = torch.ones(1, columns), torch.ones(6, columns)
    first = seconds(lambda: call(one), budget, 4) / matrices
    sixth = seconds(lambda: call(six), budget, 4) / matrices
    rate = Quantity.make(rows * columns / first, "weights per second", MEASURED)
    return rate, round(max(0.0, (sixth / first - 1) / 5), 4)


def memory_level(name: str, capacity: float, read: float, write: float) -> MemoryLevel:
    energy, source = _ENERGY.get(name, _ENERGY["DRAM"])
    return MemoryLevel(
        name=name,
        capacity=Quantity.make(capacity, "bytes", "the operating system"),
        bandwidth=Quantity.make(read, "bytes per second", MEASURED),
        write_bandwidth=Quantity.make(write, "bytes per second", MEASURED),
        energy=Quantity.make(energy, "joules per byte", source),
    )
