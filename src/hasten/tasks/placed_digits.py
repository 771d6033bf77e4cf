"""Handwritten digits of any size at any place of a canvas: what a network for images has to find before it tells."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.data.images import digits
from hasten.errors import HastenError
from hasten.tasks.images import LabelledImages, permute_pixels
from hasten.tasks.task import SPLITS, Split, registered

# Digits that each split's canvases are made of: no canvas of one shows a digit of another.
_SOURCES = (1100, 347, 350)


def placed(
    pictures: Tensor, count: int, side: int, sizes: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Canvases (count, 1, side, side), each with one picture at a random size and place; which it is, (count,).

    Args:
        pictures: (number, height, width), fp32.
        sizes: the smallest and the largest side that a picture is brought to, both included.
    """
    which = torch.randint(len(pictures), (count,), generator=generator)
    chosen = torch.randint(sizes[0], sizes[1] + 1, (count,), generator=generator)
    corners = torch.rand(count, 2, generator=generator)
    canvases = torch.zeros(count, 1, side, side)
    for size in range(sizes[0], sizes[1] + 1):
        at = (chosen == size).nonzero()[:, 0]
        if not len(at):
            continue
        scaled = F.interpolate(pictures[which[at], None], (size, size), mode="bilinear", align_corners=False)
        places = (corners[at] * (side - size + 1)).long().tolist()
        for i, (canvas, (row, column)) in enumerate(zip(at.tolist(), places, strict=True)):
            canvases[canvas, :, row : row + size, column : column + size] = scaled[i]
    return canvases, which


def source_digits(generator: torch.Generator) -> dict[Split, tuple[Tensor, Tensor]]:
    """Each split's own digits: pictures (number, 8, 8) fp32, and labels (number,)."""
    pictures, labels = digits()
    order = torch.randperm(len(labels), generator=generator).split(_SOURCES)
    return {split: (pictures[part].float(), labels[part]) for split, part in zip(SPLITS, order, strict=True)}


@functools.lru_cache(maxsize=2)
def _made(counts: tuple[int, ...], side: int) -> dict[Split, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made: dict[Split, tuple[Tensor, Tensor]] = {}
    for (split, (pictures, labels)), count in zip(source_digits(generator).items(), counts, strict=True):
        canvases, which = placed(pictures, count, side, (side // 4, 3 * side // 4), generator)
        made[split] = canvases, labels[which]
    mean, deviation = made["training"][0].mean(), made["training"][0].std()
    return {split: ((canvases - mean) / deviation, asked) for split, (canvases, asked) in made.items()}


@registered("placed-digits")
class PlacedDigits(LabelledImages):
    """scikit-learn's digits at a quarter to three quarters of a canvas's side, anywhere on it.

    Args:
        counts: canvases for training, validation and test.
        side: of a canvas, in pixels.
        permuted: whether all pixels stand in one random order, the same in every canvas.

    Raises:
        HastenError: counts that are not three above 0, or a canvas under 16 pixels.
    """

    description = "which digit is somewhere on a canvas: 32 x 32 pixels"
    source = "digits"

    def __init__(
        self, counts: tuple[int, int, int] = (4000, 750, 750), side: int = 32, *, permuted: bool = False
    ) -> None:
        if len(counts) != 3 or min(counts) < 1 or side < 16:
            raise HastenError("canvases are of at least 16 pixels a side, and three counts above 0 of them are made")
        made = _made(tuple(counts), side)
        self.parts = {s: (permute_pixels(p), y) for s, (p, y) in made.items()} if permuted else made
