"""Residual networks of two convolutions a block: those for CIFAR's small images, and ResNet-18 and 34 (1512.03385)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level
from hasten.nn.block import Block
from hasten.nn.convolutional import conv_norm


class BasicBlock(Block):
    """Two 3x3 convolutions with batch norm, the input added before the last ReLU.

    Args:
        inputs, outputs, stride: of the first convolution.
        projected: whether an input of another shape is brought to the output's by a 1x1 convolution with batch norm;
            otherwise every stride-th pixel is taken, and new channels are zeros.

    Shapes: (batch, inputs, height, width) to (batch, outputs, height / stride, width / stride).
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, projected: bool = True) -> None:
        super().__init__()
        self.first = conv_norm(inputs, outputs, 3, stride, act="relu")
        self.second = conv_norm(outputs, outputs)
        self.stride, self.more = stride, outputs - inputs
        changes = stride > 1 or self.more != 0
        self.skip = conv_norm(inputs, outputs, 1, stride) if projected and changes else None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        if self.skip is not None:
            return F.relu(self.skip(x) + y)
        if self.stride > 1:
            x = x[..., :: self.stride, :: self.stride]
        return F.relu((F.pad(x, (0, 0, 0, 0, 0, self.more)) if self.more else x) + y)

    if TYPE_CHECKING:
        __call__ = forward


# Blocks of each stage, and whether the stem is that of large images.
PUBLISHED = {"resnet-18": (2, 2, 2, 2), "resnet-34": (3, 4, 6, 3)}


@published(PUBLISHED)
class ResNet(Backbone):
    """A residual network; by default the CIFAR-like one of 20 layers: three stages, no projections.

    Args:
        classes: of the output; 0 for features.
        channels: of the image.
        depths: blocks of each stage.
        width: channels of the first stage; each later one has twice as many and half the height and width.
        large: whether the stem is a 7x7 convolution of stride 2 and a pooling, and shapes are changed by projections.

    Raises:
        HastenError: a size below 1.

    >>> tuple(ResNet(10, 3)(torch.zeros(2, 3, 32, 32)).shape)
    (2, 10)
    """

    def __init__(
        self, classes: int, channels: int, depths: Sequence[int] = (3, 3, 3), width: int = 16, large: bool = False
    ) -> None:
        super().__init__()
        if not depths or min(channels, width, *depths) < 1:
            raise HastenError("a residual network takes channels, a width and blocks of each stage from 1")
        stem: list[nn.Module] = [conv_norm(channels, width, 7 if large else 3, 2 if large else 1, act="relu")]
        if large:
            stem.append(nn.MaxPool2d(3, 2, 1))
        self.stem = nn.Sequential(*stem)
        self._first = 4 if large else 1
        self._widths = [width * 2**i for i in range(len(depths))]
        self.stages = nn.ModuleList()
        inputs = width
        for i, (depth, outputs) in enumerate(zip(depths, self._widths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(BasicBlock(inputs, outputs, 2 if i and j == 0 else 1, large))
                inputs = outputs
            self.stages.append(nn.Sequential(*blocks))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = self.new_classifier(classes)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def named(cls, name: str, *, num_classes: int = 1000, in_chans: int = 3) -> ResNet:
        """A published size with weights at their start.

        Args:
            name: ``resnet-18`` or ``resnet-34``.
            num_classes: logits; 0 for features.
            in_chans: channels of the image.

        Raises:
            HastenError: a size that no model has.
        """
        return cls(num_classes, in_chans, PUBLISHED[name], 64, True)

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(Level(width, self._first * 2**i) for i, width in enumerate(self._widths))

    @property
    def example_side(self) -> int:
        return 224 if self._first == 4 else 32

    @property
    def num_features(self) -> int:
        return self._widths[-1]
