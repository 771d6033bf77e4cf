"""SimpleNet: thirteen plain layers, and nothing else, as a strong baseline (arXiv 1608.06037)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hasten.cost.growing import deepen, widen
from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level, published_size

POOL = "p"


@dataclass(frozen=True)
class SimpleNetConfig:
    """A layout and what is around it.

    Args:
        layout: a word a layer: channels of a 3x3 convolution, with ``'`` behind those of a 1x1 one; ``p`` for a
            pooling over 2x2.
        strides: of the first convolutions; 1 for all others.
        scale: of all channels, rounded.
        dropout: chance of a channel. One number is for all places: after each convolution and each pooling, and before
            the last layer. Several are one for each word of the layout and one for before the last layer; a mapping has
            those that are not 0 by their places among these, from 0, as their authors' ``drop_rates``. Kept as a number
            or as one for each place.
        channels, classes: of images and of the output; no classes leave the last layer out.

    Raises:
        HastenError: no convolution, a word that is neither, more strides than convolutions, dropout of 1 or more, or
            dropout for places that there are not.

    >>> SimpleNetConfig("8 8 p 8", dropout={2: 0.1}).dropout
    (0.0, 0.0, 0.1, 0.0, 0.0)
    """

    layout: str
    strides: tuple[int, ...] = ()
    scale: float = 1.0
    dropout: float | Sequence[float] | Mapping[Any, float] = 0.0
    channels: int = 3
    classes: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "strides", tuple(self.strides))  # a list, where they were read from JSON
        words = self.layout.split()
        plain = [w.removesuffix("'") for w in words if w != POOL]
        if not plain or words[0] == POOL or not all(w.isdigit() and self._scaled(int(w)) > 0 for w in plain):
            raise HastenError(f"a layout is words such as 64, 256' and p, a convolution first: got {self.layout!r:.80}")
        if len(self.strides) > len(plain) or any(s < 1 for s in self.strides):
            raise HastenError(f"strides are of the first of {len(plain)} convolutions, from 1: got {self.strides}")
        if isinstance(self.dropout, Mapping | Sequence):
            object.__setattr__(self, "dropout", self._of_places(self.dropout))
        if len(self.dropouts) != len(words) + 1 or not all(0 <= chance < 1 for chance in self.dropouts):
            raise HastenError(
                f"dropout below 1, one number or {len(words) + 1} for a layout of {len(words)} words, is taken:"
                f" got {self.dropout!r:.80}"
            )

    def _scaled(self, width: int) -> int:
        return round(width * self.scale)

    def _of_places(self, dropout: Sequence[float] | Mapping[Any, float]) -> tuple[float, ...]:
        """One chance for each place."""
        if not isinstance(dropout, Mapping):
            return tuple(float(chance) for chance in dropout)
        places = len(self.layout.split()) + 1
        named = {str(place): float(chance) for place, chance in dropout.items()}  # JSON has no numbers as keys
        found = tuple(named.pop(str(place), 0.0) for place in range(places))
        if named:
            raise HastenError(f"dropout has places from 0 to {places - 1} in this layout: got {sorted(named)!r:.80}")
        return found

    @property
    def dropouts(self) -> tuple[float, ...]:
        """Chance of a channel after each word of the layout, and before the last layer."""
        if isinstance(self.dropout, Mapping | Sequence):
            return self._of_places(self.dropout)
        return (self.dropout,) * (len(self.layout.split()) + 1)

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """Channels, kernel and stride of each convolution; channels of 0 stand for a pooling, of stride 2."""
        made, strides = [], list(self.strides)
        for word in self.layout.split():
            if word == POOL:
                made.append((0, 2, 2))
                continue
            width = self._scaled(int(word.removesuffix("'")))
            made.append((width, 1 if word.endswith("'") else 3, strides.pop(0) if strides else 1))
        return made

    @property
    def groups(self) -> list[list[int]]:
        """Of each group its words' places in the layout: a group is the convolutions between two poolings."""
        found: list[list[int]] = [[]]
        for place, word in enumerate(self.layout.split()):
            if word != POOL:
                found[-1].append(place)
            elif found[-1]:
                found.append([])
        return [group for group in found if group]

    def _group(self, group: int) -> list[int]:
        if not 0 <= group < len(self.groups):
            raise HastenError(f"there is no group {group}: this layout has {len(self.groups)}, counted from 0")
        return self.groups[group]

    def deepened(self, group: int) -> SimpleNetConfig:
        """One more convolution at the end of a group, like the last there, of stride 1 and with the same dropout.

        Raises:
            HastenError: no such group.
        """
        words, last = self.layout.split(), self._group(group)[-1]
        before = sum(word != POOL for word in words[: last + 1])
        strides, dropout = self.strides, self.dropout
        if before < len(strides):
            strides = (*strides[:before], 1, *strides[before:])
        if isinstance(dropout, tuple):
            dropout = (*dropout[: last + 1], *dropout[last:])
        layout = " ".join([*words[: last + 1], *words[last:]])
        return replace(self, layout=layout, strides=strides, dropout=dropout)

    def widened(self, group: int, factor: float = 1.5) -> SimpleNetConfig:
        """All words of a group times a factor, rounded.

        Args:
            group: which, from 0.
            factor: from 1.

        Raises:
            HastenError: no such group, or a factor below 1.
        """
        if not factor >= 1:
            raise HastenError(f"a group is widened by a factor from 1: got {factor:g}")
        words = self.layout.split()
        for place in self._group(group):
            width = words[place].removesuffix("'")
            words[place] = f"{round(int(width) * factor)}{words[place][len(width) :]}"
        return replace(self, layout=" ".join(words))


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
        inputs = config.channels
        *chances, last = config.dropouts
        for (width, kernel, stride), chance in zip(config.layers, chances, strict=True):
            if stride > 1 and stages[-1]:
                stages.append([])
            stages[-1] += self._layer(inputs, width, kernel, stride)
            stages[-1] += [nn.Dropout2d(chance)] if chance else []
            inputs = width or inputs
        self.stages = nn.ModuleList(nn.Sequential(*s) for s in stages)
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten(), *([nn.Dropout(last)] if last else []))
        self.classifier = self.new_classifier(config.classes)
        self._start()

    @staticmethod
    def _layer(inputs: int, width: int, kernel: int, stride: int) -> list[nn.Module]:
        if not width:
            return [nn.MaxPool2d(kernel, stride)]
        conv = nn.Conv2d(inputs, width, kernel, stride, kernel // 2)
        return [conv, nn.BatchNorm2d(width, momentum=0.05), nn.ReLU()]

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
        dropout: float | Sequence[float] | Mapping[Any, float] = 0.0,
    ) -> SimpleNet:
        """A published size with weights at their start.

        Args:
            name: such as ``simplenet-cifar-310k`` or its authors' ``simplenetv1_5m_m1``.
            num_classes: logits, 0 for features; those of the data set that it was published for when None.
            in_chans: channels of the image.
            scale, dropout: of `SimpleNetConfig`; the scale that the name says when None.

        Raises:
            HastenError: a size that no model has, or dropout that `SimpleNetConfig` refuses.
        """
        config = published_size(name, PUBLISHED, TIMM, in_chans)
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
        found, width, reduction = list[Level](), 0, 1
        for channels, _, stride in self.config.layers:
            if stride > 1 and width:
                found.append(Level(width, reduction))
            width, reduction = channels or width, reduction * stride
        return (*found, Level(width, reduction))

    @property
    def num_features(self) -> int:
        return self.levels[-1].channels

    def _convolutions(self) -> list[str]:
        """Names of the convolutions, in order."""
        return [f"stages.{name}" for name, part in self.stages.named_modules() if isinstance(part, nn.Conv2d)]

    def _example(self) -> tuple[torch.Tensor]:
        side = self.levels[-1].reduction
        like = next(self.parameters())
        return (torch.zeros(2, self.config.channels, side, side, device=like.device, dtype=like.dtype),)

    def deepened(self, group: int, *, noise: float = 0.0, seed: int = 0) -> SimpleNet:
        """A copy with one more convolution at the end of a group that computes the same, but for the noise.

        `hasten.cost.growing.calibrate` is to be called before it is trained on.

        Args:
            group: of `SimpleNetConfig.groups`.
            noise, seed: of `hasten.cost.growing.deepen`.

        Raises:
            HastenError: no such group.
        """
        config = self.config.deepened(group)
        last = self.config.groups[group][-1]
        place = sum(word != POOL for word in self.config.layout.split()[:last])
        name = self._convolutions()[place]
        made = deepen(self, name, self._example(), kernel=self.config.layers[last][1], noise=noise, seed=seed)
        made.config = config
        return made

    def widened(self, group: int, factor: float = 1.5, *, noise: float = 0.0, seed: int = 0) -> SimpleNet:
        """A copy with more channels in a group that computes the same, but for the noise.

        Args:
            group, factor: of `SimpleNetConfig.widened`.
            noise, seed: of `hasten.cost.growing.widen`.

        Raises:
            HastenError: no such group, or a factor below 1.
        """
        config = self.config.widened(group, factor)
        names = self._convolutions()
        widths = [[width for width, _, _ in layers if width] for layers in (self.config.layers, config.layers)]
        sizes = {name: new for name, old, new in zip(names, *widths, strict=True) if new > old}
        made: SimpleNet = widen(self, sizes, self._example(), noise=noise, seed=seed).network
        made.config = config
        return made
