"""Learning-rate schedules: the rate as a share of an optimizer's own, from how far a training is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Moment:
    """How far a training is, in front of a step.

    Args:
        step: its number: 0, 1, ...
        share: of the budget that is used up, 0 to 1.
        steps: of the whole training; None where the budget is in seconds.
    """

    step: int
    share: float
    steps: int | None = None


# Anything that tells the share of the rate at a moment will do.
Schedule: TypeAlias = Callable[[Moment], float]


@dataclass(frozen=True)
class Constant:
    """The optimizer's own rate all the time."""

    def __call__(self, moment: Moment) -> float:
        return 1.0


CONSTANT = Constant()


@dataclass(frozen=True)
class Linear:
    """Falls evenly from 1 to 0, but never under ``least``."""

    least: float = 0.0

    def __call__(self, moment: Moment) -> float:
        return max(self.least, 1 - moment.share)


@dataclass(frozen=True)
class Cosine:
    """Falls as half a cosine from 1 to ``final`` (SGDR without restarts, arXiv 1608.03983)."""

    final: float = 0.0

    def __call__(self, moment: Moment) -> float:
        angle = math.pi * moment.share if moment.steps is None else math.pi * moment.step / moment.steps
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(angle))


@dataclass(frozen=True)
class Warmup:
    """Rises evenly to 1 in the first ``length`` of the training, and stays there."""

    length: float = 0.1

    def __call__(self, moment: Moment) -> float:
        if moment.steps is None:
            return min(1.0, moment.share / self.length) if self.length else 1.0
        return min(1.0, (moment.step + 1) / max(1, self.length * moment.steps))


@dataclass(frozen=True)
class WarmupCosine:
    """Rises evenly to 1 in the first ``warmup`` of the training; the rest is half a cosine down to ``final``.

    With a budget in steps the rise takes at least one of them, which already has the whole rate.

    Args:
        warmup, final: shares.
        least: no share is smaller.
    """

    warmup: float = 0.1
    final: float = 0.0
    least: float = 0.0

    def __call__(self, moment: Moment) -> float:
        if moment.steps is None:
            rising, done, rest = self.warmup, moment.share, 1 - self.warmup
            rise = done / rising if rising else 1.0
        else:
            rising = max(1, round(self.warmup * moment.steps))
            done, rest = moment.step, max(1, moment.steps - rising)
            rise = (done + 1) / rising
        if done < rising:
            return max(self.least, rise)
        fall = 0.5 * (1 + math.cos(math.pi * (done - rising) / rest))
        return max(self.least, self.final + (1 - self.final) * fall)


@dataclass(frozen=True)
class Product:
    """Several schedules multiplied: ``Product(Warmup(0.1), Cosine())`` rises while the cosine already falls."""

    factors: tuple[Schedule, ...]

    def __init__(self, *factors: Schedule) -> None:
        object.__setattr__(self, "factors", factors)

    def __call__(self, moment: Moment) -> float:
        return math.prod(factor(moment) for factor in self.factors)
