"""Describing the GPU that torch sees by measuring it: `load_device` knows it as ``cuda``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from hasten.errors import HastenError
from hasten.hardware.device import ComputeUnit, Device, MemoryLevel, named
from hasten.hardware.memory_rates import HOROWITZ
from hasten.hardware.quantity import Quantity, parse
from hasten.hardware.timing import MEASURED, using_threads

__all__ = ["probe_gpu"]

_FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Rows and columns of the matrix products, elements of the streams, and of what a cache on the chip holds.
_SIDE, _STREAM, _CACHED = 8192, 1 << 28, 1 << 20
_ENERGY = {"L2": "12.5 pJ/B", "memory": "32 pJ/B"}
_REPEATS = 5


def find_gpu() -> torch.device:
    """The GPU that torch uses.

    Raises:
        HastenError: it sees none.
    """
    if not torch.cuda.is_available():
        raise HastenError("torch sees no GPU here: --device cpu, or a build of torch for this machine's GPU")
    return torch.device("cuda", torch.cuda.current_device())


@named("cuda")
def probe_gpu() -> Device:
    """The GPU that torch uses as a `Device`, measured in a few seconds: products, memory, the time to launch.

    Raises:
        HastenError: torch sees no GPU.
    """
    device = find_gpu()
    known = torch.cuda.get_device_properties(device)
    return measured(
        device,
        title=f"this machine's GPU: {known.name}",
        capacity=float(known.total_memory),
        cache=float(getattr(known, "L2_cache_size", 0) or 4e6),
        wait=lambda: torch.cuda.synchronize(device),
    )


def measured(
    device: torch.device,
    *,
    title: str,
    capacity: float,
    cache: float,
    wait: Callable[[], None],
    side: int = _SIDE,
    stream: int = _STREAM,
) -> Device:
    """A device of torch's, by timing operators on it.

    Args:
        device: where tensors are made.
        title: for people.
        capacity, cache: bytes of its memory, and of the cache on the chip.
        wait: returns when it has done what it was given.
        side: rows and columns of the matrix products that peaks are measured with.
        stream: elements of the tensors that main memory is measured with.
    """
    made: Any = {"device": device}

    def seconds(call: Callable[[], object], count: int = 1) -> float:
        """Least seconds of one of ``count`` calls that are launched after each other."""
        call()
        found = []
        for _ in range(_REPEATS):
            wait()
            begun = time.perf_counter()
            for _ in range(count):
                call()
            wait()
            found.append((time.perf_counter() - begun) / count)
        return max(min(found), 1e-9)

    with using_threads(torch.get_num_threads()):
        peak: dict[str, Quantity] = {}
        for name, dtype in _FORMATS.items():
            a = torch.ones(side, side, dtype=dtype, **made)
            took = seconds(lambda: a @ a)  # noqa: B023 (called at once)
            peak[name] = Quantity.make(2 * side**3 / took, "operations per second", f"{MEASURED}: a matrix product")
        large, other = torch.ones(stream, **made), torch.empty(stream, **made)
        read = 4 * stream / seconds(large.sum)
        copying = seconds(lambda: other.copy_(large))
        write = 4 * stream / max(copying - 4 * stream / read, copying / 3)
        small = torch.ones(min(_CACHED, stream), **made)
        one = torch.ones(1, **made)
        launch = seconds(lambda: one + one, 200)
        busy = max(seconds(lambda: small + small, 50) - launch, 1e-9)
        vector = len(small) / busy
        inner = max(12 * len(small) / busy, read, write)
    levels = (
        _level("L2", cache, inner, inner, "L2"),
        _level("memory", max(capacity, cache), read, write, "memory"),
    )
    limit = Quantity.make(300.0, "watts", "estimated: no counter is read")
    return Device(
        name="cuda",
        title=title,
        kind="gpu",
        compute=(
            ComputeUnit(name="matrix product", runs=("contraction",), peak=peak),
            ComputeUnit(
                name="vector",
                runs=("vector",),
                peak={"fp32": Quantity.make(vector, "operations per second", f"{MEASURED}: additions in cache")},
            ),
        ),
        memory=levels,
        launch_overhead=Quantity.make(launch, "seconds", MEASURED),
        idle_power=Quantity.make(60.0, "watts", "estimated: no counter is read"),
        max_power=limit,
        identity={"gpu": title, "torch": str(torch.__version__)},
    )


def _level(name: str, capacity: float, read: float, write: float, like: str) -> MemoryLevel:
    return MemoryLevel(
        name=name,
        capacity=Quantity.make(capacity, "bytes", "torch"),
        bandwidth=Quantity.make(read, "bytes per second", MEASURED),
        write_bandwidth=Quantity.make(write, "bytes per second", MEASURED),
        energy=parse({"value": _ENERGY[like], "source": f"estimated after {HOROWITZ}"}, "joules per byte"),
    )
