"""ShuffleNetV2: half of the channels passes a block untouched, then all are shuffled (arXiv 1807.11164)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level, published_size
from hasten.nn.block import Block
from hasten.nn.convolutional import conv_norm


@dataclass(frozen=True)
class ShuffleNetConfig:
    """Sizes: by default those of 1.0x.

    Args:
        widths: channels of the three stages, even.
        last: channels of the 1x1 convolution behind the last of them.
        depths: blocks of the stages, the first of each halving the map.
        stem: channels of the first convolution.
        pooled: whether the first convolution, of stride 2, is followed by a pooling that halves again; where not, its
            stride is 4.
        channels, classes: of images and of the output; no classes leave the last layer out.

    Raises:
        HastenError: other than three stages, an odd width, or a stage of no block.
    """

    widths: tuple[int, int, int] = (116, 232, 464)
    last: int = 1024
    depths: tuple[int, int, int] = (4, 8, 4)
    stem: int = 24
    pooled: bool = True
    channels: int = 3
    classes: int = 1000

    def __post_init__(self) -> None:
        if len(self.widths) != 3 or len(self.depths) != 3 or min(self.depths) < 1:
            raise HastenError("a ShuffleNetV2 has three stages of at least one block: give widths and depths of each")
        if any(w < 2 or w % 2 for w in self.widths):
            raise HastenError(
                f"half of a stage's channels passes a block untouched: widths are even, not {self.widths}"
            )


PUBLISHED = {
    "shufflenet-v2-0.5": ShuffleNetConfig((48, 96, 192)),
    "shufflenet-v2-1.0": ShuffleNetConfig(),
    "shufflenet-v2-1.5": ShuffleNetConfig((176, 352, 704)),
    "shufflenet-v2-2.0": ShuffleNetConfig((244, 488, 976), 2048),
}
# torchvision's names of them.
TIMM = {name.replace("-", "_").replace("v2_", "v2_x").replace(".", "_"): name for name in PUBLISHED}


class ShuffleBlock(Block):
    """A 1x1, a depthwise 3x3 and a 1x1 convolution on half of the channels; halves are then shuffled.

    Where it halves the map it works on all channels, twice: once without the first 1x1 convolution.

    Args:
        inputs, outputs: channels, even; equal unless ``halves``.
        halves: the map.

    Shapes: (batch, inputs, height, width) to (batch, outputs, height, width), both halved and rounded up if ``halves``.
    """

    def __init__(self, inputs: int, outputs: int, halves: bool = False) -> None:
        super().__init__()
        half, stride = outputs // 2, 2 if halves else 1
        self.halves = halves
        self.beside = nn.Sequential()
        if halves:
            self.beside = nn.Sequential(
                *conv_norm(inputs, inputs, 3, 2, groups=inputs), *conv_norm(inputs, half, 1, act="relu")
            )
        self.through = nn.Sequential(
            *conv_norm(inputs if halves else half, half, 1, act="relu"),
            *conv_norm(half, half, 3, stride, groups=half),
            *conv_norm(half, half, 1, act="relu"),
        )

    def forward(self, x: Tensor) -> Tensor:
        left, right = (self.beside(x), x) if self.halves else x.chunk(2, 1)
        both = torch.stack((left, self.through(right)), 2)  # channel i of one beside channel i of the other
        return both.flatten(1, 2)

    if TYPE_CHECKING:
        __call__ = forward


@published((*PUBLISHED, *TIMM))
class ShuffleNetV2(Backbone):
    """A ShuffleNetV2. The 1x1 convolution at its end belongs to the last stage, so that detectors read what it makes.

    Args:
        config: sizes.

    >>> net = ShuffleNetV2(ShuffleNetConfig((8, 16, 32), 64, (1, 1, 1), 8, classes=10))
    >>> [tuple(m.shape[1:]) for m in net.features_only()(torch.zeros(1, 3, 64, 64))]
    [(8, 8, 8), (16, 4, 4), (64, 2, 2)]
    """

    def __init__(self, config: ShuffleNetConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ShuffleNetConfig()
        first = conv_norm(config.channels, config.stem, 3, 2 if config.pooled else 4, act="relu")
        self.stem = nn.Sequential(*first, *([nn.MaxPool2d(3, 2, 1)] if config.pooled else []))
        stages: list[nn.Module] = []
        inputs = config.stem
        for width, depth in zip(config.widths, config.depths, strict=True):
            blocks = [ShuffleBlock(inputs, width, True), *(ShuffleBlock(width, width) for _ in range(depth - 1))]
            stages.append(nn.Sequential(*blocks))
            inputs = width
        stages[-1] = nn.Sequential(*stages[-1], *conv_norm(inputs, config.last, 1, act="relu"))  # type: ignore[misc]
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = self.new_classifier(config.classes)

    @classmethod
    def named(cls, name: str, *, num_classes: int = 1000, in_chans: int = 3) -> ShuffleNetV2:
        """A published size with weights at their start.

        Args:
            name: such as ``shufflenet-v2-1.0`` or torchvision's ``shufflenet_v2_x1_0``.
            num_classes: logits; 0 for features.
            in_chans: channels of the image.

        Raises:
            HastenError: a size that no model has.
        """
        config = published_size(name, PUBLISHED, TIMM, in_chans)
        return cls(replace(config, classes=num_classes, channels=in_chans))

    @property
    def levels(self) -> tuple[Level, ...]:
        first, second, _ = self.config.widths
        return Level(first, 8), Level(second, 16), Level(self.config.last, 32)

    @property
    def num_features(self) -> int:
        return self.config.last
