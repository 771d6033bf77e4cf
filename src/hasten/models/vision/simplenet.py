"""SimpleNet: thirteen plain layers, and nothing else, as a strong baseline (arXiv 1608.06037)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level

POOL = "p"


@dataclass(frozen=True)
class SimpleNetConfig:
    """A layout and what is around it.

    Args:
        layout: a word a layer: channels of a 3x3 convolution, with ``'`` behind those of a 1x1 one; ``p`` for a
            pooling over 2x2.
        strides: of the first convolutions; 1 for all others.
        scale: of all channels, rounded down.
        dropout: chance of a channel after each convolution and each pooling.
        channels, classes: of images and of the output; no classes leave the last layer out.

    Raises:
        HastenError: no convolution, a word that is neither, or more strides than convolutions.
    """

    layout: str
    strides: tuple[int, ...] = ()
    scale: float = 1.0
    dropout: float = 0.0
    channels: int = 3
    classes: int = 10

    def __post_init__(self) -> None:
        words = self.layout.split()
        plain = [w.removesuffix("'") for w in words if w != POOL]
        if not plain or words[0] == POOL or not all(w.isdigit() and int(int(w) * self.scale) > 0 for w in plain):
            raise HastenError(f"a layout is words such as 64, 256' and p, a convolution first: got {self.layout!r:.80}")
        if len(self.strides) > len(plain) or any(s < 1 for s in self.strides):
            raise HastenError(f"strides are of the first of {len(plain)} convolutions, from 1: got {self.strides}")

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """Channels, kernel and stride of each convolution; channels of 0 stand for a pooling, of stride 2."""
        made, strides = [], list(self.strides)
        for word in self.layout.split():
            if word == POOL:
                made.append((0, 2, 2))
                continue
            width = int(int(word.removesuffix("'")) * self.scale)
            made.append((width, 1 if word.endswith("'") else 3, strides.pop(0) if strides else 1))
        return made


_5M = "64 128 128 128 128 128 p 256 256 256 512 p 2048' 256' 256"
_9M = "128 192 192 192 192 192 p 320 320 320 640 p 2560' 320' 320"
# Strides of the first convolutions at 224 pixels: a later mode is slower and more accurate.
MODES = {"m1": (2, 2, 2), "m2": (2, 2, 1, 2), "m3": (2, 2, 1, 1, 2), "m4": (2, 1, 2, 1, 2, 1)}

PUBLISHED: dict[str, SimpleNetConfig] = {
    "simplenet-cifar-310k": SimpleNetConfig("64 32 32 32 p 32 32 64 p 64 64 p 128 256' 64' p 64"),
    # The first authors' net; their later port has fewer weights than its name says.
    "simplenet-cifar-460k": SimpleNetConfig("32 32 32 64 p 64 64 64 p 64 64 p 96 96 96 p 100' p"),
    "simplenet-cifar-460k-port": SimpleNetConfig("32 32 32 64 p 64 64 64 p 64 64 p 96 96' 96' p 100"),
    "simplenet-cifar-5m": SimpleNetConfig("64 128 128 128 p 128 128 256 p 256 256 p 512 2048' 256' p 256"),
    "simplenet-cifar-5m-extra-pool": SimpleNetConfig("64 128 128 128 p 128 128 256 p 256 256 p 512 p 2048' 256' p 256"),
    **{f"simplenet-5m-{m}": SimpleNetConfig(_5M, s, classes=1000) for m, s in MODES.items()},
    **{f"simplenet-9m-{m}": SimpleNetConfig(_9M, s, classes=1000) for m, s in MODES.items()},
    **{
        f"simplenet-small-{m}-{name}": SimpleNetConfig(_5M, s, scale, classes=1000)
        for m, s in MODES.items()
        for name, scale in (("05", 0.5), ("075", 0.75))
    },
}
# Their authors' names of those for ImageNet.
TIMM = {name.replace("simplenet-", "simplenetv1_").replace("-", "_"): name for name in PUBLISHED if "cifar" not in name}


@published((*PUBLISHED, *TIMM))
class SimpleNet(Backbone):
    """A SimpleNet: convolution, batch normalization, ReLU, thirteen times; then the maximum over all positions.

    A stage ends where the map is about to become smaller.

    Args:
        config: the layout.

    >>> net = SimpleNet(SimpleNetConfig("8 8 p 16 16' 16"))
    >>> tuple(net(torch.zeros(2, 3, 16, 16)).shape)
    (2, 10)
    >>> [m.shape[1] for m in net.features_only()(torch.zeros(1, 3, 16, 16))]
    [8, 16]
    """

    def __init__(self, config: SimpleNetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Identity()
        stages: list[list[nn.Module]] = [[]]
        levels: list[Level] = []
        inputs, reduction = config.channels, 1
        for width, kernel, stride in config.layers:
            if stride > 1 and stages[-1]:
                levels.append(Level(inputs, reduction))
                stages.append([])
            reduction *= stride
            stages[-1] += self._layer(inputs, width, kernel, stride)
            inputs = width or inputs
        levels.append(Level(inputs, reduction))
        self._levels = tuple(levels)
        self.stages = nn.ModuleList(nn.Sequential(*s) for s in stages)
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), *self._dropout(nn.Dropout))
        self.classifier = self.new_classifier(config.classes)
        self._start()

    def _dropout(self, kind: Any) -> list[nn.Module]:
        return [kind(self.config.dropout)] if self.config.dropout else []

    def _layer(self, inputs: int, width: int, kernel: int, stride: int) -> list[nn.Module]:
        if not width:
            return [nn.MaxPool2d(kernel, stride), *self._dropout(nn.Dropout2d)]
        conv = nn.Conv2d(inputs, width, kernel, stride, kernel // 2)
        return [conv, nn.BatchNorm2d(width, momentum=0.05), nn.ReLU(), *self._dropout(nn.Dropout2d)]

    @torch.no_grad()
    def _start(self) -> None:
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight, nn.init.calculate_gain("relu"))

    @classmethod
    def named(
        cls,
        name: str,
        *,
        num_classes: int | None = None,
        in_chans: int = 3,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> SimpleNet:
        """A published size with weights at their start.

        Args:
            name: such as ``simplenet-cifar-310k`` or its authors' ``simplenetv1_5m_m1``.
            num_classes: logits, 0 for features; those of the data set that it was published for when None.
            in_chans: channels of the image.
            scale, dropout: of `SimpleNetConfig`; the scale that the name says when None.

        Raises:
            HastenError: a size that no model has.
        """
        config = PUBLISHED[TIMM.get(name, name)]
        if in_chans < 1 or not 0 <= dropout < 1:
            raise HastenError(f"{name} takes in_chans from 1 and dropout below 1, not {in_chans} and {dropout:g}")
        return cls(
            replace(
                config, classes=config.classes if num_classes is None else num_classes, channels=in_chans,
                scale=config.scale if scale is None else scale, dropout=dropout,
            )
        )  # fmt: skip

    @property
    def example_side(self) -> int:
        return 224 if self.config.strides else 32  # what has no strides is for CIFAR's

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._levels

    @property
    def num_features(self) -> int:
        return self._levels[-1].channels
