"""What a module really costs: seconds with their spread, and the memory it took."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from hasten.cost.estimate import Measurement, Spread
from hasten.errors import HastenError


def measure(
    module: nn.Module,
    *inputs: Any,
    runs: int = 10,
    warmup: int = 2,
    seconds: float | None = None,
    name: str = "",
    **kwargs: Any,
) -> Measurement:
    """Runs ``module(*inputs, **kwargs)`` without gradients and times it.

    Args:
        module: what is called; it stays in the mode it is in.
        *inputs, **kwargs: its arguments.
        runs: timed calls.
        warmup: calls before, which are not timed.
        seconds: stop after about this long, once three calls are timed.
        name: of the workload; the class name when empty.

    Returns:
        One phase, ``forward``: median, least and greatest seconds. ``peak_memory`` is in bytes: on a GPU the
        greatest amount allocated; on a CPU the parameters, buffers and inputs, plus how far the process's
        resident memory rose over its state before the first call.

    Raises:
        HastenError: ``runs`` is not positive.
    """
    if runs < 1 or warmup < 0:
        raise HastenError(f"cannot measure {runs} runs after {warmup}: give at least 1 run")
    tensors = [*module.parameters(), *module.buffers()]
    tensors += [t for t in tree_leaves((inputs, kwargs)) if isinstance(t, torch.Tensor)]
    device = tensors[0].device if tensors else torch.device("cpu")
    cuda = device.type == "cuda"
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    times: list[float] = []
    with torch.no_grad(), _MemoryRise(device) as memory:
        started = time.perf_counter()
        for index in range(warmup + runs):
            synchronize(device)
            start = time.perf_counter()
            module(*inputs, **kwargs)
            synchronize(device)
            end = time.perf_counter()
            if index >= warmup:
                times.append(end - start)
            if seconds is not None and len(times) >= 3 and end - started > seconds:
                break
    peak = float(torch.cuda.max_memory_allocated(device)) if cuda else sum(storages.values()) + memory.rise
    return Measurement(name or type(module).__name__, str(device), {"forward": spread(times)}, peak)


def synchronize(device: torch.device) -> None:
    """Waits until a device has done what it was given; a processor always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def spread(times: Sequence[float]) -> Spread:
    """Median, least and greatest of measured seconds."""
    return Spread(statistics.median(times), min(times), max(times), len(times))


def least_seconds(call: Callable[[], object], runs: int) -> float:
    """The least wall time of ``runs`` calls, after one that does not count: for ratios on a busy machine."""
    call()
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def alternating(
    calls: Mapping[str, Callable[[], object]], rounds: int, *, counted: int = 1, settling: int = 0
) -> dict[str, list[float]]:
    """Name -> wall seconds of each of ``rounds`` calls, made in turn, so that a slow moment of the machine meets all.

    Each is called once before, which does not count.

    Args:
        calls: what is timed.
        rounds: in which each has its turn.
        counted: calls of a turn.
        settling: calls of a turn before these. Threads of some libraries go on spinning after a call, and slow the
            next one where that is another library's.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(settling):
                call()
            for _ in range(counted):
                begun = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begun)
    return times


def measured_rates(runs: int = 5) -> tuple[float, float]:
    """FLOP/s of a matrix product and B/s of a large copy, both directions counted: the least of ``runs`` times each."""
    a, large = torch.randn(1024, 1024), torch.empty(1 << 26, dtype=torch.uint8)
    target = torch.empty_like(large)
    flops = 2 * 1024**3 / least_seconds(lambda: a @ a, runs)
    return flops, 2 * large.nbytes / least_seconds(lambda: target.copy_(large), runs)


def measured_intensity(runs: int = 5) -> float:
    """FLOPs that this machine does while it moves a byte: a matrix product's rate over a large copy's."""
    flops, bandwidth = measured_rates(runs)
    return flops / bandwidth


def log_slope(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Least-squares slope of log(value) over log(size): 1 for what grows in proportion."""
    x, y = [math.log(s) for s in sizes], [math.log(v) for v in values]
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


def allocated_bytes(call: Callable[[], object]) -> int:
    """The most bytes that torch's allocator of the CPU holds at once for what ``call`` makes, by its own record."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    recorder = profiled.profiler
    assert recorder is not None
    now = most = 0
    events = [e for e in recorder.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def kept_for_backward(call: Callable[[], object], parameters: Iterable[torch.Tensor] = ()) -> int:
    """Bytes of the storages that autograd keeps in ``call`` for a backward pass, each once.

    Args:
        call: a forward pass; it may run backward too.
        parameters: are there anyway, and do not count.
    """
    own = {p.data_ptr() for p in parameters}
    # The tensors are held on to, so that no storage is freed and its address given to another.
    kept: dict[int, tuple[torch.Tensor, int]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    return sum(size for _, size in kept.values())


class _MemoryRise:
    """How far this process's resident memory rises while active, in bytes.

    A thread samples the operating system's own count every two milliseconds; 0 where there is none. Memory that the
    allocator keeps although nobody uses it goes back first: a call that takes it again would seem to take none.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.rise = 0.0

    def __enter__(self) -> _MemoryRise:
        gc.collect()
        return_free_memory()
        before = resident_memory()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif before is not None:
            self._thread = threading.Thread(target=self._watch, args=(before,), daemon=True)
            self._thread.start()
        return self

    def _watch(self, before: int) -> None:
        while True:
            self.rise = max(self.rise, float((resident_memory() or before) - before))
            if self._stop.wait(0.002):
                return

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()


def return_free_memory() -> None:
    """Gives memory that C's allocator holds unused back to the system, where the allocator can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))


def resident_memory() -> int | None:
    """Resident bytes of this process, or None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    import resource

    return pages * resource.getpagesize()
