"""Hierarchical vision transformers of plain blocks: Hiera (arXiv 2306.00989), the space of TurboViT (2308.11421).

A stage is a run of blocks with one width. Its first block may pool queries 2 x 2; attention is inside mask units in
some stages and over all tokens in others. The first block of a stage still attends as the stage before it does.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level
from hasten.nn.block import Block
from hasten.nn.mask_unit import MaskUnitBlock, check_units, reroll, unroll


class BlockSizes(NamedTuple):
    """A block of `MaskUnitBlock`'s arguments, with its stage and the side of the map it reads, in tokens."""

    stage: int
    inputs: int
    outputs: int
    heads: int
    unit: int
    pool: bool
    ratio: int
    side: int


@dataclass(frozen=True)
class HieraConfig:
    """Sizes: by default Hiera-T.

    Args:
        widths, heads, depths: of each stage.
        pool: of each stage whether its first block pools; never the first stage.
        local: of each stage whether attention stays inside mask units.
        ratios: of each stage the inner width of the feed-forward over the width.
        unit: tokens of a mask unit's side, before any pool.
        kernel, stride: of the convolution that makes tokens.
        image: height and width of the images.
        channels, classes: of images and of the output; no classes leave the last layer out.

    Raises:
        HastenError: lists of different lengths, a first stage that pools, heads that do not divide a width, or images
            that do not divide into mask units.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    depths: tuple[int, ...] = (1, 2, 7, 2)
    pool: tuple[bool, ...] = (False, True, True, True)
    local: tuple[bool, ...] = (True, True, False, False)
    ratios: tuple[int, ...] = (4, 4, 4, 4)
    unit: int = 8
    kernel: int = 7
    stride: int = 4
    image: int = 224
    channels: int = 3
    classes: int = 1000

    def __post_init__(self) -> None:
        lists = (self.widths, self.heads, self.depths, self.pool, self.local, self.ratios)
        if not self.widths or len({len(row) for row in lists}) > 1:
            raise HastenError("widths, heads, depths, pool, local and ratios are one a stage, for one stage or more")
        if min(*self.widths, *self.heads, *self.depths, *self.ratios, self.stride) < 1 or self.pool[0]:
            raise HastenError("every size of a network is at least 1, and its first stage does not pool")
        if any(w % h for w, h in zip(self.widths, self.heads, strict=True)):
            raise HastenError(f"heads {self.heads} do not divide widths {self.widths}: choose others")
        if self.image % self.stride:
            raise HastenError(f"images of {self.image} pixels are not cut at a stride of {self.stride}: pad them")
        check_units(self.side, self.unit, sum(self.pool))

    @property
    def side(self) -> int:
        """Tokens of the map's side before any pool."""
        return self.image // self.stride

    @property
    def reductions(self) -> tuple[int, ...]:
        """Times that each stage's map was halved in all."""
        return tuple(sum(self.pool[: i + 1]) for i in range(len(self.pool)))

    @property
    def blocks(self) -> list[BlockSizes]:
        """Every block, from the first."""
        found = []
        inputs = self.widths[0]
        for s, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for j in range(depth):
                pool = self.pool[s] and j == 0
                halved = self.reductions[s] - pool  # before this block
                local = self.local[max(0, s - 1)] if j == 0 else self.local[s]
                unit = (self.unit // 2**halved) ** 2 if local else 0
                found.append(
                    BlockSizes(s, inputs, width, self.heads[s], unit, pool, self.ratios[s], self.side // 2**halved)
                )
                inputs = width
        return found

    @property
    def parameters(self) -> int:
        """Weights of a network, by formula."""
        first, last = self.widths[0], self.widths[-1]
        total = (self.channels * self.kernel**2 + 1 + self.side**2) * first + 2 * last
        for b in self.blocks:
            total += 2 * b.inputs + 3 * (b.inputs + 1) * b.outputs + (b.outputs + 1) * b.outputs + 2 * b.outputs
            total += (b.inputs + 1) * b.outputs if b.pool or b.inputs != b.outputs else 0
            total += 2 * b.ratio * b.outputs**2 + (b.ratio + 1) * b.outputs
        return total + ((last + 1) * self.classes if self.classes else 0)

    @property
    def products(self) -> int:
        """Multiply-accumulates of a network for one image, by formula: an even kernel's last row and column counted."""
        grown = self.side + (self.kernel % 2 == 0)
        total = self.channels * self.kernel**2 * self.widths[0] * grown**2
        for b in self.blocks:
            read = b.side**2
            made = read // 4 if b.pool else read
            total += 3 * read * b.inputs * b.outputs + made * b.outputs**2 + 2 * made * b.ratio * b.outputs**2
            total += read * b.inputs * b.outputs if b.pool or b.inputs != b.outputs else 0
            total += 2 * made * (b.unit or read) * b.outputs
        return total + self.widths[-1] * self.classes

    def parts(self) -> list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]]:
        """What a network is a sum of: a key, the part, and the shape of its input for one image."""
        found: list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]] = [
            (("stem", self.widths[0]), partial(_Tokens, self), (self.channels, self.image, self.image))
        ]
        found += [(b[1:], partial(MaskUnitBlock, *b[1:7]), (b.side**2, b.inputs)) for b in self.blocks]
        last, side = self.widths[-1], self.side // 2 ** self.reductions[-1]
        found.append((("end", last, side), partial(_end, self), (last, side, side)))
        return found


def _head(config: HieraConfig) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(config.widths[-1], eps=1e-6))


def _end(config: HieraConfig) -> nn.Sequential:
    return nn.Sequential(_head(config), nn.Linear(config.widths[-1], config.classes))


class _Tokens(Block):
    """A map of tokens, each with a learned vector of its place."""

    no_decay = ("places",)

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        self.image = config.image
        self.convolution = nn.Conv2d(
            config.channels, config.widths[0], config.kernel, config.stride, config.kernel // 2
        )
        self.places = nn.Parameter(torch.zeros(1, config.widths[0], config.side, config.side))

    @torch.no_grad()
    def _start(self) -> None:
        nn.init.trunc_normal_(self.places, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.image, self.image):
            raise HastenError(
                f"the network takes images of {self.image} x {self.image} pixels, not {tuple(images.shape[-2:])}:"
                " resize or pad them"
            )
        made: Tensor = self.convolution(images)
        # Kernels that are even leave a row and a column more.
        return made[:, :, : self.places.shape[2], : self.places.shape[3]] + self.places


class _Stage(nn.Module):
    """Blocks on a map (batch, width, side, side), or on tokens that are ``unrolled`` already and stay so."""

    def __init__(self, config: HieraConfig, stage: int) -> None:
        super().__init__()
        sizes = [b for b in config.blocks if b.stage == stage]
        self.blocks = nn.Sequential(*(MaskUnitBlock(*b[1:7]) for b in sizes))
        pools, after = sum(config.pool), config.reductions[stage]
        before = after - config.pool[stage]
        self.before = (config.side // 2**before, config.unit // 2**before, pools - before)
        self.after = (config.side // 2**after, config.unit // 2**after, pools - after)

    def unrolled(self, x: Tensor) -> Tensor:
        """A map (batch, width, side, side) as unrolled tokens."""
        return unroll(x.flatten(2).transpose(1, 2), *self.before)

    def as_map(self, tokens: Tensor) -> Tensor:
        """Unrolled tokens after the blocks as a map."""
        side = self.after[0]
        return reroll(tokens, *self.after).transpose(1, 2).unflatten(2, (side, side))

    def forward(self, x: Tensor, ordered: bool = False) -> Tensor:
        made: Tensor = self.blocks(x if ordered else self.unrolled(x))
        return made if ordered else self.as_map(made)


def _hiera(width: int, heads: int, *depths: int) -> HieraConfig:
    return HieraConfig(tuple(width * 2**i for i in range(4)), tuple(heads * 2**i for i in range(4)), depths)


PUBLISHED = {
    "hiera-tiny": _hiera(96, 1, 1, 2, 7, 2),
    "hiera-small": _hiera(96, 1, 1, 2, 11, 2),
    "hiera-base": _hiera(96, 1, 2, 3, 16, 3),
    "hiera-base-plus": _hiera(112, 2, 2, 3, 16, 3),
    "hiera-large": _hiera(144, 2, 2, 6, 36, 4),
    "hiera-huge": _hiera(256, 4, 2, 6, 36, 4),
    # Hiera-T at two thirds of its width: of the size that TurboViT's abstract implies, whose own sizes are not public.
    "hiera-tiny-64": _hiera(64, 1, 1, 2, 7, 2),
}
TIMM = {name.replace("-", "_"): name for name in PUBLISHED}


@published((*PUBLISHED, *TIMM))
class Hiera(Backbone):
    """A hierarchical transformer whose tokens are ordered once.

    Args:
        config: sizes.

    >>> import torch
    >>> config = HieraConfig((16, 32), (1, 2), (1, 1), (False, True), (True, False), (2, 2), 2, 3, 2, 8, 1, 5)
    >>> tuple(Hiera(config)(torch.zeros(2, 1, 8, 8)).shape)
    (2, 5)
    """

    def __init__(self, config: HieraConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HieraConfig()
        self.stem = _Tokens(config)
        self.stages = nn.ModuleList(_Stage(config, i) for i in range(len(config.widths)))
        self.head = _head(config)
        self.classifier = self.new_classifier(config.classes)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        self.stem._start()  # type: ignore[operator]
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            # The convolution's stays as torch draws it, as in the published code.
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.constant_(module.bias, 0.02)
        if isinstance(self.classifier, nn.Linear):
            self.classifier.weight.mul_(1e-3)
            self.classifier.bias.mul_(1e-3)

    @classmethod
    def named(cls, name: str, *, num_classes: int = 1000, in_chans: int = 3, img_size: int = 224) -> Hiera:
        """A published size with weights at their start.

        Args:
            name: such as ``hiera-tiny`` or timm's ``hiera_tiny``.
            num_classes: logits; 0 for features.
            in_chans: channels of the image.
            img_size: its side, a multiple of 32.

        Raises:
            HastenError: a size that no model has.
        """
        if in_chans < 1 or img_size < 1:
            raise HastenError(f"{name} takes in_chans and img_size from 1, not {in_chans} and {img_size}")
        sizes: dict[str, Any] = {"classes": num_classes, "channels": in_chans, "image": img_size}
        return cls(replace(PUBLISHED[TIMM.get(name, name)], **sizes))

    @property
    def levels(self) -> tuple[Level, ...]:
        config = self.config
        return tuple(Level(w, config.stride * 2**r) for w, r in zip(config.widths, config.reductions, strict=True))

    @property
    def example_side(self) -> int:
        return self.config.image

    @property
    def num_features(self) -> int:
        return self.config.widths[-1]

    def forward_features(self, images: Tensor) -> Tensor:
        """The last stage's map: (batch, channels, height / reduction, width / reduction)."""
        # Ordered once: going through every stage as maps gives the same.
        stages: list[Any] = list(self.stages)
        x = stages[0].unrolled(self.stem(images))
        for stage in stages:
            x = stage(x, ordered=True)
        made: Tensor = stages[-1].as_map(x)
        return made
