"""Timing a call on this machine, beside other processes."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from hasten.hardware.curve import Curve
from hasten.processes import torch_threads

MEASURED = "measured on this machine by hasten probe"


@contextmanager
def using_threads(count: int) -> Iterator[None]:
    with torch_threads(count), torch.inference_mode():
        yield


_late = math.inf


@contextmanager
def in_a_hurry(after: float) -> Iterator[None]:
    """`seconds` takes two calls where it would take several once so many seconds have passed: what else the machine
    does would make it wait for minutes."""
    global _late
    before, _late = _late, time.monotonic() + after
    try:
        yield
    finally:
        _late = before


def filled(*shape: int) -> Any:
    """A tensor to compute with: its values do not matter to the time, and random ones take longer to make
    than most operators to run."""
    return torch.full(shape, 0.5)


def _preempted() -> int:
    """How often the system took a processor from a thread of this process that had work to do."""
    try:
        import resource
    except ImportError:  # Windows: every run counts as undisturbed
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def seconds(call: Callable[[], object], budget: float = 0.01, least: int = 3) -> float:
    """Least seconds of one ``call`` over batches of calls, in about ``budget`` seconds.

    Other processes only ever add. A batch in which one of them took a processor does not count while
    there is another, and up to four budgets are spent to find one. A call much longer than the budget is
    timed once, after one to warm up, and again only if it was disturbed.
    """
    clock = time.perf_counter
    call()
    if time.monotonic() > _late:
        return max(min(_timed(call), _timed(call)), 1e-9)
    clean: list[float] = []
    disturbed: list[float] = []
    batch, spent = 1, 0.0
    while True:
        before = _preempted()
        start = clock()
        for _ in range(batch):
            call()
        took = clock() - start
        (clean if _preempted() == before else disturbed).append(took / batch)
        spent += took
        tried = len(clean) + len(disturbed)
        if tried == 1:
            batch = max(1, min(2000, int(0.1 * budget / max(took, 1e-7))))
        long = took > 3 * budget and batch == 1
        if (
            (long and (clean or tried >= 3))
            or (len(clean) >= least and (spent >= budget or tried >= 40))
            or (not long and (spent >= 4 * budget or tried >= 160))
        ):
            return min(clean or disturbed)


def measured_curve(
    operation: str, axes: Mapping[str, Sequence[int]], took: Callable[..., float], dtype: str = "fp32"
) -> Curve:
    """A curve of what ``took(*sizes)`` says, in seconds, at every point of the grid of sizes, one a name."""
    return Curve(
        operation=operation,
        dtype=dtype,
        axes=tuple(axes),
        grid=tuple(tuple(sizes) for sizes in axes.values()),
        seconds=tuple(took(*sizes) for sizes in itertools.product(*axes.values())),
        source=MEASURED,
    )
