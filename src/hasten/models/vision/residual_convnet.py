"""The network of a study of deep and shallow residual networks: equal weights, any number of groups (2309.08414)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.block import Block
from hasten.nn.parallel_residual import ResidualStack


class ResidualConvNet(Block):
    """A convolution to ``width`` channels, residual branches of a convolution and a ReLU each, and a linear layer.

    With ``groups`` of ``depth`` it is the deep network, with 1 the shallow one; weights and products are the same.

    Args:
        classes: of the output.
        channels, side: of square images.
        width: channels of every convolution.
        depth: branches.
        kernel: of every convolution, odd.
        groups: of `ResidualStack`.
        pooled: whether the linear layer reads means over all positions; each position of its own otherwise.

    Shapes: (batch, channels, side, side) to (batch, classes).

    Warns where outputs of the stack see less of the image than all and are averaged: a shallow network then never sees
    it whole, and is no match for the deep one.

    Raises:
        HastenError: a size below 1, or an even kernel.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        side: int,
        width: int,
        depth: int,
        *,
        kernel: int = 3,
        groups: int | None = None,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        if min(classes, channels, side, width, depth) < 1 or kernel < 1 or kernel % 2 == 0:
            raise HastenError("a residual network of convolutions takes sizes from 1 and odd kernels")
        self.stem = nn.Sequential(nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.ReLU())
        self.stack = ResidualStack(
            [nn.Sequential(nn.Conv2d(width, width, kernel, padding=kernel // 2), nn.ReLU()) for _ in range(depth)],
            groups,
        )
        self.field = 1 + (kernel - 1) * (1 + len(self.stack.sizes))
        if pooled and self.field < side:
            warnings.warn(
                f"outputs see {self.field} of {side} pixels a side and are averaged: use a larger kernel, more groups,"
                " or a head that reads every position",
                stacklevel=2,
            )
        pool: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)] if pooled else []
        self.head = nn.Sequential(*pool, nn.Flatten(), nn.Linear(width if pooled else width * side**2, classes))

    def determination(self, examples: int) -> float:
        """Numbers to be learned from over numbers that are learned: examples x classes / parameters.

        Below 1 weights can hold every answer; far above they cannot.
        """
        weights = sum(p.numel() for p in self.parameters())
        classes: int = self.head[-1].out_features  # type: ignore[assignment]
        return examples * classes / weights

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.stack(self.stem(images)))
        return logits

    if TYPE_CHECKING:
        __call__ = forward
