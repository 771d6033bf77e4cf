"""Plain networks that grow: blocks of convolutions between poolings, then linear layers (EAS, arXiv 1707.04873)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from hasten.cost.growing import identity_layer, identity_norm, widen
from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level, published_size


@dataclass(frozen=True)
class PlainLayers:
    """The layers of a plain network.

    Args:
        blocks: of each block the kernel and the filters of every convolution; between two blocks maps are halved.
        units: of each linear layer before the last.

    Raises:
        HastenError: no block, an empty one, an even kernel or a size below 1.

    >>> str(PlainLayers((((3, 16), (5, 16)), ((3, 32),)), (64,)))
    '3x16 5x16 | 3x32 | 64'
    """

    blocks: tuple[tuple[tuple[int, int], ...], ...]
    units: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        layers = [layer for block in self.blocks for layer in block]
        if not self.blocks or not all(self.blocks) or any(k < 1 or k % 2 == 0 or f < 1 for k, f in layers):
            raise HastenError("blocks of a plain network have convolutions of odd kernels and of 1 filter or more")
        if any(u < 1 for u in self.units):
            raise HastenError(f"linear layers have 1 unit or more: got {self.units}")

    def __str__(self) -> str:
        words = [" ".join(f"{k}x{f}" for k, f in block) for block in self.blocks]
        return " | ".join([*words, *([" ".join(map(str, self.units))] if self.units else [])])

    def parameters(self, channels: int, classes: int) -> int:
        """Weights of the network for images of so many channels, by formula: each layer has a normalization."""
        total, inputs = 0, channels
        for block in self.blocks:
            for kernel, filters in block:
                total += inputs * filters * kernel**2 + 2 * filters
                inputs = filters
        for units in self.units:
            total += inputs * units + 2 * units
            inputs = units
        return total + (inputs + 1) * classes

    def products(self, channels: int, classes: int, side: int) -> int:
        """Multiply-accumulates of the network for one image of so many channels and pixels a side, by formula."""
        total, inputs = 0, channels
        for halvings, block in enumerate(self.blocks):
            for kernel, filters in block:
                total += inputs * filters * kernel**2 * (side >> halvings) ** 2
                inputs = filters
        for outputs in (*self.units, classes):
            total += inputs * outputs
            inputs = outputs
        return total


def _convolution(inputs: int, filters: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, filters, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(filters), nn.ReLU()
    )


def _dense(inputs: int, units: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, units, bias=False), nn.BatchNorm1d(units), nn.ReLU())


def _stage(inputs: int, block: Sequence[tuple[int, int]], first: bool) -> nn.Sequential:
    parts: list[nn.Module] = [nn.Identity() if first else nn.MaxPool2d(2)]
    for kernel, filters in block:
        parts.append(_convolution(inputs, filters, kernel))
        inputs = filters
    return nn.Sequential(*parts)


def _head(inputs: int, units: Sequence[int]) -> nn.Sequential:
    parts: list[nn.Module] = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for unit in units:
        parts.append(_dense(inputs, unit))
        inputs = unit
    return nn.Sequential(*parts)


def _end(inputs: int, units: Sequence[int], classes: int) -> nn.Sequential:
    return nn.Sequential(_head(inputs, units), nn.Linear(units[-1] if units else inputs, classes))


def plain_parts(
    layers: PlainLayers, channels: int, image: int, classes: int
) -> list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]]:
    """What a network is a sum of: a key, the part, and the shape of its input for one image."""
    found: list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]] = []
    inputs, side = channels, image
    for i, block in enumerate(layers.blocks):
        if i:
            found.append((("pool", inputs, side), partial(nn.MaxPool2d, 2), (inputs, side, side)))
            side //= 2
        for kernel, filters in block:
            make = partial(_convolution, inputs, filters, kernel)
            found.append(((inputs, filters, kernel, side), make, (inputs, side, side)))
            inputs = filters
    end = partial(_end, inputs, layers.units, classes)
    found.append((("end", inputs, layers.units, side), end, (inputs, side, side)))
    return found


# The start of the released code, whose sizes are those of a toy, and that of the paper's first search.
PUBLISHED = {
    "eas-start-4": PlainLayers((((3, 4),),) * 4, (8,)),
    "eas-start-16": PlainLayers((((3, 16),), ((3, 32),), ((3, 64),), ((3, 128),)), (256,)),
}
TIMM = {name.replace("-", "_"): name for name in PUBLISHED}


@published((*PUBLISHED, *TIMM))
class PlainNet(Backbone):
    """Convolutions with normalization, pooling between blocks, the mean over the map, linear layers.

    Args:
        layers: which.
        channels, classes: of images and of the output; no classes leave the last layer out.

    >>> tuple(PlainNet(PlainLayers((((3, 4),),) * 2))(torch.zeros(2, 3, 8, 8)).shape)
    (2, 10)
    """

    def __init__(self, layers: PlainLayers, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.layers, self.channels = layers, channels
        self.stem = nn.Identity()
        stages, inputs = [], channels
        for i, block in enumerate(layers.blocks):
            stages.append(_stage(inputs, block, first=i == 0))
            inputs = block[-1][1]
        self.stages = nn.ModuleList(stages)
        self.head = _head(inputs, layers.units)
        self.classifier = self.new_classifier(classes)

    @classmethod
    def named(cls, name: str, *, num_classes: int = 10, in_chans: int = 3) -> PlainNet:
        """Where EAS began to grow, with random weights.

        Args:
            name: such as ``eas-start-16``.
            num_classes: logits; 0 for features.
            in_chans: channels of the image.

        Raises:
            HastenError: a size that no model has.
        """
        return cls(published_size(name, PUBLISHED, TIMM, in_chans), in_chans, num_classes)

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(Level(block[-1][1], 2**i) for i, block in enumerate(self.layers.blocks))

    @property
    def example_side(self) -> int:
        return 32

    @property
    def num_features(self) -> int:
        return self.layers.units[-1] if self.layers.units else self.layers.blocks[-1][-1][1]

    def _name(self, block: int, layer: int) -> str:
        """Of a convolution, or of a linear layer where the block is the one behind all others."""
        return f"stages.{block}.{1 + layer}.0" if block < len(self.stages) else f"head.{2 + layer}.0"

    def _check(self, block: int, layer: int) -> None:
        rows: list[Any] = [*self.layers.blocks, self.layers.units]
        if not 0 <= block < len(rows) or not 0 <= layer < len(rows[block]):
            raise HastenError(f"there is no layer {layer} in block {block} to grow")

    def _example(self) -> tuple[torch.Tensor]:
        side = 2 ** len(self.layers.blocks)
        like = next(self.parameters())
        return (torch.zeros(2, self.channels, side, side, device=like.device, dtype=like.dtype),)

    def widened(self, sizes: Mapping[tuple[int, int], int], *, noise: float = 0.0, seed: int = 0) -> PlainNet:
        """A copy with wider layers that computes the same, but for the noise.

        Args:
            sizes: (block, layer) -> filters or units; linear layers are the block behind the others.
            noise, seed: of `hasten.cost.growing.widen`.

        Raises:
            HastenError: no such layer, or a size below its own.
        """
        blocks, units = [list(block) for block in self.layers.blocks], list(self.layers.units)
        for (block, layer), size in sizes.items():
            self._check(block, layer)
            if block < len(blocks):
                blocks[block][layer] = (blocks[block][layer][0], size)
            else:
                units[layer] = size
        named = {self._name(*place): size for place, size in sizes.items()}
        made: PlainNet = widen(self, named, self._example(), noise=noise, seed=seed).network
        made.layers = PlainLayers(tuple(map(tuple, blocks)), tuple(units))
        return made

    def deepened(self, block: int, layer: int, kernel: int = 3, *, noise: float = 0.0, seed: int = 0) -> PlainNet:
        """A copy with one more layer behind another of its width, that computes the same, but for the noise.

        `hasten.cost.growing.calibrate` is to be called before it is trained on.

        Args:
            block, layer: behind which; linear layers are the block behind the others.
            kernel: of a convolution.
            noise: deviation of the noise on the new weights over that of the weights.
            seed: of the noise.

        Raises:
            HastenError: no such layer, or an even kernel.
        """
        self._check(block, layer)
        made = copy.deepcopy(self)
        place = self._name(block, layer).removesuffix(".0")
        unit: Any = made.get_submodule(place)
        owner: Any = made.get_submodule(place.rpartition(".")[0])
        # What `hasten.cost.growing.deepen` does to any network, here without having to follow the network's calls.
        new = identity_layer(unit[0], kernel, noise, torch.Generator().manual_seed(seed))
        owner.insert(int(place.rpartition(".")[2]) + 1, nn.Sequential(new, identity_norm(unit[1]), nn.ReLU()))
        if block < len(self.layers.blocks):
            row = self.layers.blocks[block]
            new = (*row[: layer + 1], (kernel, row[layer][1]), *row[layer + 1 :])
            made.layers = replace(
                self.layers, blocks=(*self.layers.blocks[:block], new, *self.layers.blocks[block + 1 :])
            )
        else:
            units = self.layers.units
            made.layers = replace(self.layers, units=(*units[: layer + 1], units[layer], *units[layer + 1 :]))
        return made
