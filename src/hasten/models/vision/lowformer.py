"""LowFormer: backbones designed by measured speed, with attention at low resolution (arXiv 2409.03460, 2603.26551)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hasten.cost.preserving import fold_normalization
from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level, published_size
from hasten.nn.block import Block
from hasten.nn.convolutional import FusedMBConv, MBConv, conv_norm
from hasten.nn.lowtention import Lowtention, MapAttention

_STAGES = 5


@dataclass(frozen=True)
class LowFormerConfig:
    """Sizes: by default those of B1.

    Args:
        widths, depths: channels and blocks of the five stages, at 1/2 to 1/32 of the image. The first stage has a stem
            before its blocks; the last two have a block that halves the map before theirs.
        head: channels of the head's convolution and of its hidden layer.
        first_expand: expansion of the first stage's blocks.
        halving_expand: expansion of the blocks that halve the map; all others have 4.
        attention, mlp: whether the last two stages' blocks have them.
        fused: of each stage whether its blocks that keep the map's shape have one dense convolution or a 1x1 and a
            depthwise one; None is the paper's rule, dense below 256 channels. `faster_fusion` decides for a device.
        channels, classes: of images and of the output; no classes leave the last layer out.
    """

    widths: tuple[int, ...] = (16, 32, 64, 128, 256)
    depths: tuple[int, ...] = (0, 1, 1, 5, 5)
    head: tuple[int, int] = (1536, 1600)
    first_expand: int = 2
    halving_expand: int = 6
    attention: bool = True
    mlp: bool = True
    fused: tuple[bool, ...] | None = None
    channels: int = 3
    classes: int = 1000

    def __post_init__(self) -> None:
        given = (self.widths, self.depths, self.widths if self.fused is None else self.fused)
        if any(len(g) != _STAGES for g in given):
            raise HastenError(f"a LowFormer has {_STAGES} stages: give widths, depths and fused of each")
        if min(self.widths) < 1 or min(self.depths) < 0 or min(self.depths[1:3]) < 1:
            raise HastenError("a LowFormer has widths from 1 and depths from 0, from 1 in the second and third stage")

    @property
    def fusion(self) -> tuple[bool, ...]:
        """Of each stage whether its blocks are fused, by ``fused`` or by the paper's rule."""
        return tuple(width < 256 for width in self.widths) if self.fused is None else self.fused


_BIG = (2304, 2560)
# Widths, depths and flags of the published models; B2's depths are those of the training configuration, as the file
# that stands alone leaves two stages without the block that halves the map.
PUBLISHED = {
    "lowformer-b0": LowFormerConfig(depths=(0, 1, 1, 3, 4), halving_expand=4),
    "lowformer-b1": LowFormerConfig(),
    "lowformer-b1.5": LowFormerConfig((20, 40, 80, 160, 320), (0, 1, 1, 6, 6), _BIG),
    "lowformer-b2": LowFormerConfig((24, 48, 96, 192, 384), (0, 1, 1, 6, 6), _BIG),
    "lowformer-b3": LowFormerConfig((32, 64, 128, 256, 512), (1, 2, 3, 6, 6), first_expand=4),
    "lowformer-e1": LowFormerConfig((20, 40, 80, 160, 320), (0, 1, 1, 4, 4), _BIG, attention=False, mlp=False),
    "lowformer-e2": LowFormerConfig(
        (32, 64, 128, 256, 512), (1, 2, 3, 4, 4), first_expand=4, attention=False, mlp=False
    ),
    "lowformer-e3": LowFormerConfig((32, 64, 128, 256, 512), (1, 2, 3, 6, 6), first_expand=4, mlp=False),
}
TIMM = {name.replace("-", "_").replace(".", ""): name for name in PUBLISHED}


def _local(width: int, fused: bool, expand: int, bias: bool) -> nn.Module:
    """A block that keeps the shape and adds its input."""
    if fused:
        return FusedMBConv(width, width, expand * width, bias=bias)
    return MBConv(width, width, expand * width, 3, 1, "h_swish", False, normed=False, bias=bias)


class LowFormerBlock(Block):
    """Attention on a smaller map, a feed-forward layer and an inverted bottleneck, each added to its input.

    Args:
        width: channels.
        stride, kernel: of the attention's depthwise convolution.
        fused: whether the bottleneck's first convolution is dense.
        attention, mlp: whether it has them.

    Shapes: (batch, width, height, height) to the same.
    """

    def __init__(
        self, width: int, stride: int, kernel: int, fused: bool, attention: bool = True, mlp: bool = True
    ) -> None:
        super().__init__()
        self.attention: nn.Module | None = None
        self.feed_forward: nn.Module | None = None
        if attention:
            # Without the feed-forward layer the published blocks have no norm before the attention either.
            norm = nn.GroupNorm(1, width) if mlp else nn.Identity()
            self.attention = nn.Sequential(norm, Lowtention(width, stride, kernel))
        if mlp:
            self.feed_forward = nn.Sequential(
                nn.GroupNorm(1, width), nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1)
            )
        self.local = _local(width, fused, 4, True)

    def forward(self, x: Tensor) -> Tensor:
        if self.attention is not None:
            x = x + self.attention(x)
        if self.feed_forward is not None:
            x = x + self.feed_forward(x)
        made: Tensor = self.local(x)
        return made

    if TYPE_CHECKING:
        __call__ = forward


@published((*PUBLISHED, *TIMM))
class LowFormer(Backbone):
    """A LowFormer.

    Args:
        config: sizes.

    >>> model = LowFormer(LowFormerConfig((4, 8, 8, 16, 16), (0, 1, 1, 1, 1), (16, 16), classes=10))
    >>> tuple(model(torch.zeros(2, 3, 33, 40)).shape)
    (2, 10)
    >>> [tuple(m.shape[1:]) for m in model.features_only((-2, -1))(torch.zeros(1, 3, 64, 64))]
    [(16, 4, 4), (16, 2, 2)]
    """

    def __init__(self, config: LowFormerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or LowFormerConfig()
        widths, fusion = config.widths, config.fusion
        self.stem = conv_norm(config.channels, widths[0], 3, 2, act="h_swish")
        stages: list[nn.Module] = [
            nn.Sequential(*(_local(widths[0], fusion[0], config.first_expand, False) for _ in range(config.depths[0])))
        ]
        for i in range(1, _STAGES):
            blocks: list[nn.Module] = [
                FusedMBConv(widths[i - 1], widths[i], config.halving_expand * widths[i - 1], stride=2)
            ]
            if i < 3:
                blocks += [_local(widths[i], fusion[i], 4, False) for _ in range(config.depths[i] - 1)]
            else:
                stride, kernel = (2, 5) if i == 3 else (1, 3)
                blocks += [
                    LowFormerBlock(widths[i], stride, kernel, fusion[i], config.attention, config.mlp)
                    for _ in range(config.depths[i])
                ]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        wide, hidden = config.head
        self.head = nn.Sequential(
            conv_norm(widths[-1], wide, 1, act="h_swish"), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(wide, hidden, bias=False), nn.LayerNorm(hidden), nn.Hardswish(),
        )  # fmt: skip
        self.classifier = self.new_classifier(config.classes)

    @classmethod
    def named(
        cls, name: str, *, num_classes: int = 1000, in_chans: int = 3, fused: tuple[bool, ...] | None = None
    ) -> LowFormer:
        """A published size with weights at their start.

        Args:
            name: such as ``lowformer-b1`` or timm's ``lowformer_b1``.
            num_classes: logits; 0 for features.
            in_chans: channels of the image.
            fused: of `LowFormerConfig`.

        Raises:
            HastenError: a size that no model has.
        """
        config = published_size(name, PUBLISHED, TIMM, in_chans)
        return cls(replace(config, classes=num_classes, channels=in_chans, fused=fused))

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(Level(width, 2 ** (i + 1)) for i, width in enumerate(self.config.widths))

    @property
    def num_features(self) -> int:
        return self.config.head[1]


def mini_lowformer(channels: int = 1, classes: int = 10, *, plain: bool = False) -> nn.Sequential:
    """Three stages of 16, 32 and 64 channels for images of 32 x 32, with attention in the last two.

    Args:
        channels, classes: of images and of the output.
        plain: whether attention is `MapAttention`, over all positions and channels.

    Shapes: (batch, channels, 32, 32) to (batch, classes).
    """
    blocks = [LowFormerBlock(32, 2, 5, True), LowFormerBlock(64, 1, 3, True)]
    if plain:
        for block, width in zip(blocks, (32, 64), strict=True):
            block.attention = nn.Sequential(nn.GroupNorm(1, width), MapAttention(width))
    return nn.Sequential(
        conv_norm(channels, 16, act="h_swish"), FusedMBConv(16, 32, 64, stride=2), blocks[0],
        FusedMBConv(32, 64, 128, stride=2), blocks[1], conv_norm(64, 128, 1, act="h_swish"), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(128, classes),
    )  # fmt: skip


def faster_fusion(
    config: LowFormerConfig, seconds: Callable[[nn.Module, Tensor], float], image: int = 224
) -> tuple[bool, ...]:
    """Of each stage whether its blocks are faster fused: `LowFormerConfig.fused` for a device.

    The paper fuses below 256 channels, which it measured on one GPU; where the border lies is the device's.

    Args:
        config: of the network.
        seconds: of a module in evaluation mode on one map (1, channels, height, width): measured
            (`hasten.search.networks.specialize.seconds_of`), or estimated for a device that is not here.
        image: height and width of the images.
    """
    found = []
    for stage, width in enumerate(config.widths):
        size = -(-image // 2 ** (stage + 1))
        expand = config.first_expand if stage == 0 else 4
        # Folded, as they run: the fused block has one normalization more.
        fused, plain = (fold_normalization(_local(width, fuse, expand, stage > 2).eval()) for fuse in (True, False))
        x = torch.zeros(1, width, size, size)
        found.append(seconds(fused, x) <= seconds(plain, x))
    return tuple(found)
