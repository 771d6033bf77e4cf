"""Measured times of an operator over a grid of sizes, and reading between the points."""

from __future__ import annotations

import math
from bisect import bisect_right
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Curve(BaseModel):
    """Seconds that one launch of an operator takes, over a grid of sizes.

    A peak figure says what a unit could do; a curve says what an operator of this machine's framework
    does at a shape, its launch included. It is what separates a skinny matrix product from a square one.

    Args:
        operation: the operator's name, as in PyTorch: ``mm``, ``conv3x3``, ``add``.
        dtype: number format it ran in.
        axes: names of the sizes, outermost first, e.g. ``["m", "n", "k"]``.
        grid: the sizes measured, one ascending list an axis.
        seconds: times, one a point of the grid, the last axis fastest.
        source: how it was measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operation: str
    dtype: str
    axes: tuple[str, ...]
    grid: tuple[tuple[int, ...], ...]
    seconds: tuple[float, ...]
    source: str

    @model_validator(mode="after")
    def _consistent(self) -> Curve:
        if len(self.axes) != len(self.grid) or not self.axes:
            raise ValueError("needs one list of sizes an axis")
        for axis, sizes in zip(self.axes, self.grid):
            if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise ValueError(f"the sizes of axis {axis!r} must be positive and ascending")
        if len(self.seconds) != math.prod(len(sizes) for sizes in self.grid):
            raise ValueError("needs one time a point of the grid")
        if not all(math.isfinite(t) and t > 0 for t in self.seconds):
            raise ValueError("every time must be a positive finite number of seconds")
        if not self.source.strip():
            raise ValueError("has no source")
        return self

    @cached_property
    def _logs(self) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
        grid = tuple(tuple(math.log(size) for size in sizes) for sizes in self.grid)
        return grid, tuple(math.log(t) for t in self.seconds)

    def at(self, *sizes: float, shrinks: bool = False) -> float:
        """Seconds at ``sizes``, one an axis.

        Between the points the logarithm of the time is linear in the logarithms of the sizes, so that
        both a constant launch cost and a power law are met exactly at the points. Above the grid time
        grows with the volume; below it, it stays, or with ``shrinks``, of times that have no launch in
        them, falls with it.
        """
        grid, logs = self._logs
        corners: list[tuple[int, float]] = [(0, 1.0)]
        beyond = 0.0  # of the grid, the logarithm of the volume
        for points, size in zip(grid, sizes):
            x = math.log(max(size, 1.0))
            if x >= points[-1]:
                beyond += x - points[-1]
                low, fraction = len(points) - 1, 0.0
            elif x <= points[0]:
                beyond += shrinks * (x - points[0])
                low, fraction = 0, 0.0
            else:
                low = bisect_right(points, x) - 1
                fraction = (x - points[low]) / (points[low + 1] - points[low])
            step: list[tuple[int, float]] = []
            for index, weight in corners:
                step.append((index * len(points) + low, weight * (1 - fraction)))
                if fraction:
                    step.append((index * len(points) + low + 1, weight * fraction))
            corners = step
        return math.exp(sum(weight * logs[index] for index, weight in corners) + beyond)

    def to_table(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
