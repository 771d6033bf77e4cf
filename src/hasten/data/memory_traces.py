"""Requests to a memory: generated like ArchGym's four workloads, or read from a file.

A file has a line for each request: ``cycle: read 0xaddress`` or ``cycle: write 0xaddress``, cycles not decreasing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError
from hasten.files import named_path, read_text
from hasten.kernels.dram_controller import LATEST

WORKLOADS = ("stream", "random", "cloud-1", "cloud-2")
_LINE = 64


@dataclass(frozen=True)
class MemoryTrace:
    """Requests in order.

    Args:
        name: for people.
        cycle: when each arrives, int64, not decreasing.
        address: bytes, int64.
        write: 1 for a write, uint8.
    """

    name: str
    cycle: NDArray[np.int64]
    address: NDArray[np.int64]
    write: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.cycle)


def memory_trace(workload: str, requests: int = 1000, *, capacity: int = 1 << 30, seed: int = 0) -> MemoryTrace:
    """A workload's requests of 64 bytes, one in each cycle.

    ``stream`` reads on and on; ``random`` reads anywhere; ``cloud-1`` alternates runs of 50 to 300 reads in a row with
    50 to 100 anywhere; ``cloud-2`` is of two programs that take turns, each going on in runs of 10 to 80, with 20 to 60
    anywhere between. As in ArchGym's published traces none writes, and half of the steps of ``cloud-2`` are to the next
    line.

    Args:
        workload: one of `WORKLOADS`.
        requests: how many.
        capacity: bytes that addresses may reach.
        seed: of every choice.

    Raises:
        HastenError: an unknown workload, or no request.
    """
    if workload not in WORKLOADS:
        raise HastenError(f"there is no workload {workload!r}: choose one of {', '.join(WORKLOADS)}, or give a file")
    if requests < 1:
        raise HastenError("a trace needs at least one request")
    rng = np.random.default_rng(seed)
    lines = capacity // _LINE
    if workload == "stream":
        places = np.arange(requests) % lines
    elif workload == "random":
        places = rng.integers(0, lines, requests)
    else:
        runs, jumps = ((50, 300), (50, 100)) if workload == "cloud-1" else ((10, 80), (20, 60))
        programs = [0, lines // 2]  # where each goes on
        parts: list[NDArray[np.int64]] = []
        while sum(map(len, parts)) < requests:
            length = rng.integers(runs[0], runs[1] + 1)
            if workload == "cloud-1":
                start = int(rng.integers(0, lines))
            else:
                turn = len(parts) // 2 % 2
                start, programs[turn] = programs[turn], programs[turn] + int(length)
            parts.append((start + np.arange(length)) % lines)
            parts.append(rng.integers(0, lines, rng.integers(jumps[0], jumps[1] + 1)))
        places = np.concatenate(parts)[:requests]
    return MemoryTrace(
        workload, np.arange(requests, dtype=np.int64), places.astype(np.int64) * _LINE, np.zeros(requests, np.uint8)
    )


def read_memory_trace(path: str | Path) -> MemoryTrace:
    """Requests from a file; empty lines and lines that start with ``#`` are left out.

    Raises:
        HastenError: no such file, a line that is none of these, or cycles that go back.
    """
    source = named_path(path, "the trace")
    text = read_text(source, "the trace")
    cycles: list[int] = []
    addresses: list[int] = []
    writes: list[int] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.replace(":", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            cycle, kind, address = words
            cycles.append(int(cycle))
            addresses.append(int(address, 16))
        except ValueError:
            raise HastenError(
                f"{source}, line {number}: expected 'cycle: read 0xaddress', found {line!r:.60}"
            ) from None
        if kind not in ("read", "write"):
            raise HastenError(f"{source}, line {number}: {kind!r:.20} is neither read nor write")
        if cycles[-1] < (cycles[-2] if len(cycles) > 1 else 0) or not 0 <= addresses[-1] < 1 << 62:
            raise HastenError(f"{source}, line {number}: cycles must not go back, and addresses start at 0")
        if cycles[-1] >= LATEST:
            raise HastenError(f"{source}, line {number}: the last cycle that can be simulated is {LATEST:,}")
        writes.append(kind == "write")
    if not cycles:
        raise HastenError(f"the trace {source} has no request")
    return MemoryTrace(
        source.stem, np.array(cycles, np.int64), np.array(addresses, np.int64), np.array(writes, np.uint8)
    )
