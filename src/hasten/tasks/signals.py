"""MNIST-1D: ten digits as short signals, shifted, stretched, slanted and noisy (arXiv 2011.14439).

Small enough for seconds, and hard enough to tell networks apart: the paper has 32 % for a linear classifier, 68 % for
two hidden layers, 94 % for convolutions. Signals here are drawn as the paper's are, from generators of our own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.tasks.task import SPLITS, LabelledExamples, Split, registered

# The strokes of 0 to 9, twelve points each: appendix A of the paper.
_STROKES = (
    (5, 6, 6.5, 6.75, 7, 7, 7, 7, 6.75, 6.5, 6, 5),
    (5, 3, 3, 3.4, 3.8, 4.2, 4.6, 5, 5.4, 5.8, 5, 5),
    (5, 6, 6.5, 6.5, 6, 5.25, 4.75, 4, 3.5, 3.5, 4, 5),
    (5, 6, 6.5, 6.5, 6, 5, 5, 6, 6.5, 6.5, 6, 5),
    (5, 4.4, 3.8, 3.2, 2.6, 2.6, 5, 5, 5, 5, 5, 5),
    (5, 3, 3, 3, 3, 5, 6, 6.5, 6.5, 6, 4.5, 5),
    (5, 4, 3.5, 3.25, 3, 3, 3, 3, 3.25, 3.5, 4, 5),
    (5, 7, 7, 6.6, 6.2, 5.8, 5.4, 5, 4.6, 4.2, 5, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 4, 3.5, 3.5, 4, 5),
    (5, 4, 3.5, 3.5, 4, 5, 5, 5, 5, 4.7, 4.3, 5),
)
_POINTS, _LEAST_BLANK, _MOST_BLANK = 12, 36, 60
_LONG, _LENGTH = _POINTS + _MOST_BLANK, 40
_SCALING, _SHIFTS, _SLANT = 0.4, 48, 0.75
# Deviations of the noise that is smoothed, where a signal is blank, and of that at every point.
_SMOOTHED, _NOISE = 0.25, 0.02
_SIGMA, _REACH = 2.0, 8


def strokes() -> Tensor:
    """The ten digits as (10, 12) points of deviation 1/6, each from 0 on."""
    points = torch.tensor(_STROKES, dtype=torch.float64)
    points = (points - points.mean(1, keepdim=True)) / points.std(1, correction=0, keepdim=True)
    return (points - points[:, :1]) / 6


class SignalDraws(NamedTuple):
    """All that is random in some signals.

    Args:
        blanks: (count,) points without a signal that follow its twelve, 36 to 60.
        scales: (count,) factors of its height.
        shifts: (count,) points that it is turned by, from the end to the beginning.
        smoothed, noise: (count, 72) normal numbers of deviation 1.
        slants: (count,) how far a slope of the whole falls from one end to the other.
    """

    blanks: Tensor
    scales: Tensor
    shifts: Tensor
    smoothed: Tensor
    noise: Tensor
    slants: Tensor

    @classmethod
    def of(cls, count: int, generator: torch.Generator) -> SignalDraws:
        """For so many signals."""

        def centred() -> Tensor:
            return torch.rand(count, generator=generator, dtype=torch.float64) - 0.5

        return cls(
            torch.randint(_LEAST_BLANK, _MOST_BLANK + 1, (count,), generator=generator),
            1 + _SCALING * centred(),
            torch.randint(_SHIFTS, (count,), generator=generator),
            torch.randn(count, _LONG, generator=generator, dtype=torch.float64),
            torch.randn(count, _LONG, generator=generator, dtype=torch.float64),
            _SLANT * centred(),
        )


def signals(digits: Tensor, draws: SignalDraws) -> Tensor:
    """Signals (count, 40) of digits (count,), as they come of what was drawn: not yet of mean 0 and deviation 1."""
    # A digit and its blank are stretched to 72 points: the more blank, the narrower the digit.
    places = torch.arange(_LONG) * ((_POINTS + draws.blanks - 1)[:, None] / (_LONG - 1)).double()
    blank = places >= _POINTS
    padded = torch.nn.functional.pad(strokes()[digits], (0, 2))
    left = places.floor().long().clamp(max=_POINTS)
    share = (places - left).clamp(0, 1)
    long = padded.gather(1, left) * (1 - share) + padded.gather(1, left + 1) * share
    long = torch.where(blank, 0.0, long) * draws.scales[:, None]
    turned = (torch.arange(_LONG) - draws.shifts[:, None]) % _LONG
    long, blank = long.gather(1, turned), blank.gather(1, turned)
    long = torch.where(blank, _SMOOTHED * draws.smoothed @ _smoothing().T, long) + _NOISE * draws.noise
    slope = torch.linspace(-0.5, 0.5, _LONG, dtype=torch.float64)
    long = long - draws.slants[:, None] * slope
    points = torch.arange(_LENGTH, dtype=torch.float64) * ((_LONG - 1) / (_LENGTH - 1))
    first = points.floor().long().clamp(max=_LONG - 2)
    return long[:, first] + (long[:, first + 1] - long[:, first]) * (points - first)


@functools.cache
def _smoothing() -> Tensor:
    """A Gaussian filter of 72 points as a matrix; beyond each end what lies before it counts, mirrored."""
    offsets = torch.arange(-_REACH, _REACH + 1)
    weights = torch.exp(-0.5 * (offsets.double() / _SIGMA) ** 2)
    weights /= weights.sum()
    matrix = torch.zeros(_LONG, _LONG, dtype=torch.float64)
    for row in range(_LONG):
        columns = row + offsets
        columns = torch.where(columns < 0, -1 - columns, columns)
        columns = torch.where(columns >= _LONG, 2 * _LONG - 1 - columns, columns)
        matrix[row].index_add_(0, columns, weights)
    return matrix


@functools.lru_cache(maxsize=2)
def _made(counts: tuple[int, ...]) -> dict[Split, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    parts: dict[Split, tuple[Tensor, Tensor]] = {}
    for split, count in zip(SPLITS, counts, strict=True):
        digits = (torch.arange(count) % len(_STROKES))[torch.randperm(count, generator=generator)]
        parts[split] = signals(digits, SignalDraws.of(count, generator)), digits
    mean, deviation = parts["training"][0].mean(), parts["training"][0].std()
    return {s: (((x - mean) / deviation).float()[:, None], digits) for s, (x, digits) in parts.items()}


@registered("mnist-1d")
class MNIST1D(LabelledExamples):
    """Ten digits as signals of forty points (Greydanus, arXiv 2011.14439), as many of each.

    Args:
        counts: signals for training, validation and test; the paper has 4,000 and 1,000.
        shuffled: whether all points stand in one random order, the same in every signal.

    Raises:
        HastenError: counts that are not three of 10 or more.
    """

    description = "which digit a short noisy signal shows: 40 points"
    given = "signals (batch, 1, 40), fp32, of mean 0 and deviation 1"
    answered = "logits (batch, 10)"
    classes = 10

    def __init__(self, counts: Sequence[int] = (4000, 1000, 1000), *, shuffled: bool = False) -> None:
        if len(counts) != 3 or min(counts) < len(_STROKES):
            raise HastenError(f"signals are of ten digits: give three counts from 10, not {tuple(counts)}")
        self.parts = _made(tuple(counts))
        if shuffled:
            order = torch.randperm(_LENGTH, generator=torch.Generator().manual_seed(0))
            self.parts = {split: (x[..., order], digits) for split, (x, digits) in self.parts.items()}
