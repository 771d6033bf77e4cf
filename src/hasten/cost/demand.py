"""What a kernel asks of a device, in seconds at its peaks, and what it takes where software reaches shares of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hasten.hardware.achieved import Achieved, of_format

Work = Literal["product", "attention", "convolution", "other"]
Kept = Literal["weights", "experts", "other"]


@dataclass(frozen=True)
class Demand:
    """A kernel's seconds at a device's peaks, divided by the share that each part will have.

    Args:
        overhead: before it, whatever it computes.
        compiled: whether it is a kernel of a compiled program, which has `Achieved.kernel` on top; one that a framework
            launches takes the larger of both.
        units: unit -> seconds of its arithmetic, by kind of work and format of the narrower operand.
        measured: seconds of the arithmetic where they were measured, in the units' stead.
        waiting: seconds that a measured kernel waits for operands that are further out than they were then.
        inner: seconds at the slowest port of a memory level inside main memory, and that level's name.
        outer: seconds at main memory's port, by what moves and its format.
        memory: main memory's name.
        parts: devices that share it.
        told: seconds of the sums over these devices that follow it, and the link's name.
    """

    overhead: float
    compiled: bool
    units: tuple[tuple[str, tuple[tuple[Work, str, float], ...]], ...]
    measured: float | None
    waiting: float
    inner: tuple[float, str]
    outer: tuple[tuple[Kept, str, float], ...]
    memory: str
    parts: int = 1
    told: tuple[float, str] = (0.0, "")

    def seconds(self, achieved: Achieved, training: bool = False) -> tuple[float, str]:
        """Seconds where software reaches these shares, and what bounds them: a unit, a level, a link or ``launch``."""
        unit, arithmetic = "", self.measured or 0.0
        busy = {
            name: sum(seconds / _share_of_work(achieved, work, dtype, training) for work, dtype, seconds in parts)
            for name, parts in self.units
        }
        if busy:
            unit = max(busy, key=lambda name: busy[name])
            arithmetic = busy[unit] if self.measured is None else arithmetic
        moving, level = self.inner
        outer = sum(seconds / _share_of_bandwidth(achieved, kept, dtype) for kept, dtype, seconds in self.outer)
        if outer > moving:
            moving, level = outer, self.memory
        body = max(arithmetic + self.waiting, moving) / self.parts
        # What starts a kernel from a framework costs no less than its start within a program.
        kernel = float(achieved.kernel or 0.0)
        overhead = self.overhead + kernel if self.compiled else max(self.overhead, kernel)
        bound = level if moving >= arithmetic else unit
        if overhead >= body:
            bound = "launch"
        if self.told[0] > max(body, overhead):
            bound = self.told[1]
        return overhead + body + self.told[0], bound


def _share_of_work(achieved: Achieved, work: Work, dtype: str, training: bool) -> float:
    if work == "other":
        return 1.0
    if work == "attention" and achieved.attention is not None:
        return float(achieved.attention)
    tables: tuple[Mapping[str, float], ...] = (achieved.product,)
    if work == "convolution":
        tables = (achieved.convolution, achieved.product)
    elif training:
        tables = (achieved.training, achieved.product)
    return of_format(next((t for t in tables if t), {}), dtype)


def _share_of_bandwidth(achieved: Achieved, kept: Kept, dtype: str) -> float:
    share = of_format(achieved.bandwidth, dtype)
    return share * float(achieved.experts or 1.0) if kept == "experts" else share
