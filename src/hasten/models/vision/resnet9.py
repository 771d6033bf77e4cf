"""A small residual network whose widths and depths are chosen: NASAIC's classification backbone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.block import Block


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class ResNet9(Block):
    """A stem, then blocks of a convolution, a pooling to half the size, and skip layers (arXiv 2002.04116, sec. IV).

    Args:
        classes: of the output.
        channels: of the input images.
        stem: filters of the stem.
        filters: of each block (the paper's FN).
        skips: residual layers in each block (the paper's SK), from 0.

    Shapes: (batch, channels, height, width) to (batch, classes).

    Raises:
        HastenError: another number of skips than of filters, or a number below its least.
    """

    def __init__(self, classes: int, channels: int, stem: int, filters: Sequence[int], skips: Sequence[int]) -> None:
        super().__init__()
        if len(filters) != len(skips) or not filters or min(stem, *filters) < 1 or min(skips) < 0:
            raise HastenError("a ResNet9 takes filters from 1 and skips from 0 for each of its blocks")
        self.stem = _conv(channels, stem)
        widths = [stem, *filters]
        self.blocks = nn.ModuleList(_conv(a, b) for a, b in pairwise(widths))
        self.skips = nn.ModuleList(
            # No activation before the sum: at zero it would let no gradient through.
            nn.ModuleList(nn.Sequential(_conv(n, n), _conv(n, n)[:2]) for _ in range(count))
            for n, count in zip(filters, skips)
        )
        self.head = nn.Linear(widths[-1], classes)
        self._start()

    @classmethod
    def of_size(cls, parameters: int, classes: int, channels: int, blocks: int = 2) -> ResNet9:
        """The network of a stem of w filters and blocks of w, 2w, ... with a skip each whose parameters come nearest.

        Args:
            parameters: wanted.
            classes, channels: of `ResNet9`.
            blocks: at least 1.
        """

        def made(width: int) -> ResNet9:
            return cls(classes, channels, width, [width * 2**i for i in range(blocks)], [1] * blocks)

        width, below = 1, made(1)
        while (above := made(width + 1)).parameter_count < parameters:
            width, below = width + 1, above
        return min(below, above, key=lambda m: abs(m.parameter_count - parameters))

    @property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def _start(self) -> None:
        for skips in self.skips:
            for skip in skips:  # type: ignore[attr-defined]
                nn.init.zeros_(skip[1][1].weight)  # a skip layer begins as nothing, so that deep choices train

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block, skips in zip(self.blocks, self.skips):
            x = F.max_pool2d(block(x), 2, ceil_mode=True)
            for skip in skips:  # type: ignore[attr-defined]
                x = F.relu(x + skip(x))
        logits: Tensor = self.head(x.amax((2, 3)))
        return logits

    if TYPE_CHECKING:
        __call__ = forward
