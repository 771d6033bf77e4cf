"""AsCAN: convolution in the early stages, attention in the late ones, by a layout that is chosen (arXiv 2411.04967)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level
from hasten.nn.convolutional import FusedMBConv, conv_norm
from hasten.nn.map_transformer import MapTransformer


@dataclass(frozen=True)
class StageLayout:
    """What each block of a network is: C for a convolution, T for a transformer layer.

    Args:
        stages: a word a stage, the largest map first.

    Raises:
        HastenError: no stage, an empty one, or another letter.

    >>> StageLayout.of("CC | CCT | TTT").why_uneven()
    ''
    >>> str(StageLayout.of("CT|CTT").reversed())
    'TTC|TC'
    """

    stages: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.stages or any(not s or set(s) - set("CT") for s in self.stages):
            raise HastenError(f"a layout is words of C and T, one a stage, such as CC|CCT|TTT: got {self!s}")

    @classmethod
    def of(cls, text: str) -> StageLayout:
        """A layout from its words, with | between them."""
        return cls(tuple(word.strip() for word in text.split("|")))

    def __str__(self) -> str:
        return "|".join(self.stages)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each stage the share of transformer layers."""
        return tuple(stage.count("T") / len(stage) for stage in self.stages)

    def reversed(self) -> StageLayout:
        """The same blocks from the end to the beginning: the way up that mirrors a way down."""
        return StageLayout(tuple(stage[::-1] for stage in self.stages[::-1]))

    def why_uneven(self) -> str:
        """Which of three of the paper's rules it breaks, in a line; empty where it keeps them.

        Convolutions stand before transformer layers in a stage, the share of transformer layers falls nowhere, and the
        first half of the stages (rounded down) has none. A layout of convolutions alone keeps these: `remark` is about
        its end.
        """
        early = len(self.stages) // 2
        if any("TC" in stage for stage in self.stages):
            return "a convolution stands behind a transformer layer of its stage"
        if any(later < before for before, later in itertools.pairwise(self.shares)):
            return "a stage has a smaller share of transformer layers than the one before it"
        if any(self.shares[:early]):
            return f"one of the first {early} stages has a transformer layer"
        return ""

    def remark(self) -> str:
        """What it lacks of the paper's networks, in a line; empty where nothing.

        Their last stages are mostly or wholly transformer layers. Layouts where that is not so are counted and searched
        among the others, as arms to compare with.

        >>> StageLayout.of("CC | CCT | TTT").remark(), StageLayout.of("C | CT").remark()
        ('', 'half or less of the last stage is transformer layers, where the paper has mostly these')
        """
        if self.shares[-1] > 0.5:
            return ""
        return "half or less of the last stage is transformer layers, where the paper has mostly these"


def layouts(blocks: Sequence[int], rising: bool = False, early: int = 0) -> list[StageLayout]:
    """Every layout of so many blocks a stage with convolutions before transformer layers.

    Args:
        blocks: of each stage.
        rising: whether the share of transformer layers may fall nowhere.
        early: first stages that have none.

    >>> [len(layouts((2, 2, 8, 4), rising, early)) for rising, early in ((False, 0), (True, 0), (True, 2))]
    [405, 46, 25]
    """
    choices = [range(1) if i < early else range(n + 1) for i, n in enumerate(blocks)]
    found = []
    for layers in itertools.product(*choices):
        made = StageLayout(tuple("C" * (n - t) + "T" * t for n, t in zip(blocks, layers, strict=True)))
        if not rising or all(a <= b for a, b in itertools.pairwise(made.shares)):
            found.append(made)
    return found


@dataclass(frozen=True)
class AsCANConfig:
    """Sizes: by default a small network for images of 32 x 32.

    Args:
        layout: what each block is.
        widths: channels of each stage.
        stem: channels of the two convolutions before the stages.
        stem_stride: of the first of them; every stage halves the map once more.
        head_size: channels of a head of attention.
        image: height and width of the images.
        relative: whether attention has a bias for each difference of two positions, learned at that size.
        channels, classes: of images and of the output; no classes leave the last layer out.

    Raises:
        HastenError: another number of widths than of stages.
    """

    layout: StageLayout = StageLayout(("CC", "CCT", "TTT"))
    widths: tuple[int, ...] = (16, 32, 64)
    stem: int = 8
    stem_stride: int = 1
    head_size: int = 16
    image: int = 32
    relative: bool = True
    channels: int = 3
    classes: int = 10

    def __post_init__(self) -> None:
        if len(self.widths) != len(self.layout.stages):
            raise HastenError(f"{self.layout} has {len(self.layout.stages)} stages: give a width for each")

    @property
    def blocks(self) -> list[tuple[int, str, int, int, int]]:
        """Stage, kind, input and output channels and stride of every block."""
        found = []
        inputs = self.stem
        for stage, (word, width) in enumerate(zip(self.layout.stages, self.widths, strict=True)):
            for j, kind in enumerate(word):
                found.append((stage, kind, inputs, width, 2 if j == 0 else 1))
                inputs = width
        return found

    def block(self, kind: str, inputs: int, outputs: int, stride: int, stage: int) -> nn.Module:
        """A block of the network."""
        if kind == "C":
            middle, squeezed = 4 * inputs, max(1, inputs // 4)
            return FusedMBConv(inputs, outputs, middle, 3, stride, "gelu", squeezed, pooled_skip=True)
        size = -(-self.image // (self.stem_stride * 2 ** (stage + 1))) if self.relative else 0
        return MapTransformer(inputs, outputs, stride, self.head_size, size)

    def parts(self) -> list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]]:
        """What a network for images of ``image`` is a sum of: a key, the part, and the shape of its input for one."""
        size = -(-self.image // self.stem_stride)
        found: list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]] = [
            ("stem", partial(_stem, self), (self.channels, self.image, self.image))
        ]
        for stage, kind, inputs, outputs, stride in self.blocks:
            make = partial(self.block, kind, inputs, outputs, stride, stage)
            found.append(((kind, inputs, outputs, stride, size), make, (inputs, size, size)))
            size = -(-size // stride)
        found.append(("end", partial(_end, self), (self.widths[-1], size, size)))
        return found


def _stem(config: AsCANConfig) -> nn.Sequential:
    first = conv_norm(config.channels, config.stem, 3, config.stem_stride, act="gelu")
    return nn.Sequential(first, conv_norm(config.stem, config.stem, act="gelu"))


def _head(config: AsCANConfig) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(config.widths[-1]))


def _end(config: AsCANConfig) -> nn.Sequential:
    return nn.Sequential(_head(config), nn.Linear(config.widths[-1], config.classes))


def _large(layout: str, *widths: int) -> AsCANConfig:
    return AsCANConfig(
        StageLayout.of(layout), widths, min(64, widths[0] // 2), 2, head_size=32, image=224, classes=1000
    )  # fmt: skip


# The paper's strings and widths are not public: these were fitted to its parameters and products, and are none of its.
FITTED = {
    "ascan-fit-t": _large(f"CC|CC|CCC{'T' * 7}|{'T' * 7}", 80, 160, 320, 640),
    "ascan-fit-b": _large(f"CC|CCCC|CCCC{'T' * 7}|TTTTT", 96, 192, 448, 896),
    "ascan-fit-l": _large(f"CCC|CCCCC|CC{'T' * 8}|TTTTT", 128, 256, 640, 1280),
}
TIMM = {name.replace("-", "_"): name for name in FITTED}


@published((*FITTED, *TIMM))
class AsCAN(Backbone):
    """A hybrid of fused inverted bottlenecks and transformer layers, each block by a layout.

    Args:
        config: sizes and layout.

    >>> import torch
    >>> tuple(AsCAN()(torch.zeros(2, 3, 32, 32)).shape)
    (2, 10)
    """

    def __init__(self, config: AsCANConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or AsCANConfig()
        self.stem = _stem(config)
        stages: list[list[nn.Module]] = [[] for _ in config.widths]
        for stage, kind, inputs, outputs, stride in config.blocks:
            stages[stage].append(config.block(kind, inputs, outputs, stride, stage))
        self.stages = nn.ModuleList(nn.Sequential(*s) for s in stages)
        self.head = _head(config)
        self.classifier = self.new_classifier(config.classes)

    @classmethod
    def named(
        cls, name: str, *, num_classes: int = 1000, in_chans: int = 3, img_size: int = 224, relative: bool = True
    ) -> AsCAN:
        """A size fitted to a published one, with weights at their start.

        Args:
            name: such as ``ascan-fit-t``.
            num_classes: logits; 0 for features.
            in_chans: channels of the image.
            img_size: its side, in pixels.
            relative: of `AsCANConfig`.

        Raises:
            HastenError: a size that no model has.
        """
        if in_chans < 1 or img_size < 1:
            raise HastenError(f"{name} takes in_chans and img_size from 1, not {in_chans} and {img_size}")
        sizes: dict[str, Any] = {"classes": num_classes, "channels": in_chans, "image": img_size, "relative": relative}
        return cls(replace(FITTED[TIMM.get(name, name)], **sizes))

    @property
    def levels(self) -> tuple[Level, ...]:
        first = self.config.stem_stride
        return tuple(Level(width, first * 2 ** (i + 1)) for i, width in enumerate(self.config.widths))

    @property
    def example_side(self) -> int:
        return self.config.image

    @property
    def num_features(self) -> int:
        return self.config.widths[-1]
