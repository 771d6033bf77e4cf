"""Dense networks with bottlenecks that grow: DenseNet-BC (arXiv 1608.06993), each layer of a growth of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hasten.cost.growing import noisy, widen, with_channels, with_inputs, with_outputs
from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level, published_size
from hasten.nn.block import Block

BOTTLENECK = 4
"""Channels of a layer's 1x1 convolution over its growth."""
FIRST = 2
"""Channels of the first convolution over the mean growth, where EAS widens a network."""


@dataclass(frozen=True)
class DenseLayers:
    """The layers of a dense network.

    Args:
        first: channels of the first convolution.
        growths: of each block, what every layer adds to what it has read; behind each block but the last a transition
            halves maps and channels.

    Raises:
        HastenError: no block, an empty one, or a size below 1.
    """

    first: int
    growths: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.growths or not all(self.growths) or min(self.first, *(g for row in self.growths for g in row)) < 1:
            raise HastenError("a dense network has blocks of one layer or more, each of a growth from 1")

    def __str__(self) -> str:
        return f"{self.first} | " + " | ".join(" ".join(f"g{g}" for g in row) for row in self.growths)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Channels that each block reads."""
        found = [self.first]
        for row in self.growths[:-1]:
            found.append((found[-1] + sum(row)) // 2)
        return tuple(found)

    @property
    def last(self) -> int:
        """Channels of the last block's output."""
        return self.inputs[-1] + sum(self.growths[-1])

    @property
    def suited_first(self) -> int:
        """The first convolution's channels that go with the growths in EAS, or its own where it has more."""
        rows = [g for row in self.growths for g in row]
        return max(self.first, FIRST * sum(rows) // len(rows))

    def parameters(self, channels: int, classes: int) -> int:
        """Weights of the network for images of so many channels, by formula."""
        total = channels * self.first * 9
        for i, (width, row) in enumerate(zip(self.inputs, self.growths, strict=True)):
            for growth in row:
                middle = BOTTLENECK * growth
                total += 2 * width + width * middle + 2 * middle + middle * growth * 9
                width += growth
            if i < len(self.growths) - 1:
                total += 2 * width + width * (width // 2)
        return total + 2 * self.last + (self.last + 1) * classes


class DenseLayer(Block):
    """Normalization and activation before a 1x1 and a 3x3 convolution; what it makes stands behind what it read.

    Args:
        inputs: channels read.
        growth: channels added.

    Shapes: (batch, inputs, height, width) to (batch, inputs + growth, height, width).
    """

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        middle = BOTTLENECK * growth
        self.norm, self.act = nn.BatchNorm2d(inputs), nn.ReLU()
        self.squeeze = nn.Conv2d(inputs, middle, 1, bias=False)
        self.middle_norm, self.middle_act = nn.BatchNorm2d(middle), nn.ReLU()
        self.expand = nn.Conv2d(middle, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.expand(self.middle_act(self.middle_norm(self.squeeze(self.act(self.norm(x))))))
        return torch.cat([x, y], 1)

    if TYPE_CHECKING:
        __call__ = forward


def _transition(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, inputs // 2, 1, bias=False), nn.AvgPool2d(2)
    )


def _head(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _end(inputs: int, classes: int) -> nn.Sequential:
    return nn.Sequential(_head(inputs), nn.Linear(inputs, classes))


def _stem(channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(channels, width, 3, padding=1, bias=False)


def dense_parts(
    layers: DenseLayers, channels: int, image: int, classes: int
) -> list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]]:
    """What a network is a sum of: a key, the part, and the shape of its input for one image."""
    side = image
    found: list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]] = [
        (("stem", layers.first), partial(_stem, channels, layers.first), (channels, side, side))
    ]
    for i, (width, row) in enumerate(zip(layers.inputs, layers.growths, strict=True)):
        if i:
            before = layers.inputs[i - 1] + sum(layers.growths[i - 1])
            found.append((("transition", before, side), partial(_transition, before), (before, side, side)))
            side //= 2
        for growth in row:
            found.append(((width, growth, side), partial(DenseLayer, width, growth), (width, side, side)))
            width += growth
    found.append((("end", layers.last, side), partial(_end, layers.last, classes), (layers.last, side, side)))
    return found


def _regular(depth: int, growth: int) -> DenseLayers:
    """DenseNet-BC of so many layers: three equal blocks."""
    return DenseLayers(2 * growth, ((growth,) * ((depth - 4) // 6),) * 3)


PUBLISHED = {
    "densenet-bc-40-40": _regular(40, 40),
    "densenet-bc-100-12": _regular(100, 12),
    "densenet-bc-250-24": _regular(250, 24),
    "densenet-bc-190-40": _regular(190, 40),
}
TIMM = {name.replace("-", "_"): name for name in PUBLISHED}


@published((*PUBLISHED, *TIMM))
class DenseNet(Backbone):
    """A dense network for small images.

    Args:
        layers: which.
        channels, classes: of images and of the output; no classes leave the last layer out.

    >>> tuple(DenseNet(DenseLayers(8, ((4, 4), (4,))))(torch.zeros(2, 3, 8, 8)).shape)
    (2, 10)
    """

    def __init__(self, layers: DenseLayers, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.layers, self.channels = layers, channels
        self.stem = _stem(channels, layers.first)
        stages = []
        for i, (width, row) in enumerate(zip(layers.inputs, layers.growths, strict=True)):
            parts: list[nn.Module] = [_transition(layers.inputs[i - 1] + sum(layers.growths[i - 1]))] if i else []
            for growth in row:
                parts.append(DenseLayer(width, growth))
                width += growth
            stages.append(nn.Sequential(*parts))
        self.stages = nn.ModuleList(stages)
        self.head = _head(layers.last)
        self.classifier = self.new_classifier(classes)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    @classmethod
    def named(cls, name: str, *, num_classes: int = 10, in_chans: int = 3) -> DenseNet:
        """A published size with random weights.

        Args:
            name: such as ``densenet-bc-100-12``: layers and growth.
            num_classes: logits; 0 for features.
            in_chans: channels of the image.

        Raises:
            HastenError: a size that no model has.
        """
        return cls(published_size(name, PUBLISHED, TIMM, in_chans), in_chans, num_classes)

    @property
    def levels(self) -> tuple[Level, ...]:
        pairs = zip(self.layers.inputs, self.layers.growths, strict=True)
        return tuple(Level(width + sum(row), 2**i) for i, (width, row) in enumerate(pairs))

    @property
    def example_side(self) -> int:
        return 32

    @property
    def num_features(self) -> int:
        return self.layers.last

    def _layer(self, block: int, layer: int) -> str:
        return f"stages.{block}.{layer + (block > 0)}"

    def _grown(self, layers: DenseLayers, noise: float, seed: int) -> DenseNet:
        """The sizes of ``layers``, of as many layers, where they are larger: the later ones follow the earlier ones."""
        sizes = {} if layers.first == self.layers.first else {"stem": layers.first}
        for b, (old, new) in enumerate(zip(self.layers.growths, layers.growths, strict=True)):
            if b and layers.inputs[b] != self.layers.inputs[b]:
                sizes[f"stages.{b}.0.2"] = layers.inputs[b]
            for i, (was, growth) in enumerate(zip(old, new, strict=True)):
                if was != growth:
                    sizes[f"{self._layer(b, i)}.squeeze"] = BOTTLENECK * growth
                    sizes[f"{self._layer(b, i)}.expand"] = growth
        like = next(self.parameters())
        side = 2 ** len(self.layers.growths)
        example = torch.zeros(2, self.channels, side, side, device=like.device, dtype=like.dtype)
        made: DenseNet = widen(self, sizes, (example,), noise=noise, seed=seed).network if sizes else self
        made.layers = layers
        return made

    def _check(self, block: int, layer: int) -> None:
        rows = self.layers.growths
        if not 0 <= block < len(rows) or not 0 <= layer < len(rows[block]):
            raise HastenError(f"there is no layer {layer} in block {block} to grow")

    def widened(self, sizes: Mapping[tuple[int, int], int], *, noise: float = 0.0, seed: int = 0) -> DenseNet:
        """A copy with larger growths that computes the same, but for the noise.

        The first convolution and the transitions grow with them, so that they have their ratios again.

        Args:
            sizes: (block, layer) -> growth.
            noise, seed: of `hasten.cost.growing.widen`.

        Raises:
            HastenError: no such layer, or a growth below its own.
        """
        rows = [list(row) for row in self.layers.growths]
        for (block, layer), growth in sizes.items():
            self._check(block, layer)
            rows[block][layer] = growth
        layers = replace(self.layers, growths=tuple(map(tuple, rows)))
        return self._grown(replace(layers, first=layers.suited_first), noise, seed)

    @torch.no_grad()
    def deepened(self, block: int, layer: int, *, noise: float = 0.0, seed: int = 0) -> DenseNet:
        """A copy with one more layer behind another, whose outputs are copies of the other's, drawn at random.

        Its first convolution does not read what the other has made: what is computed stays, but for the noise. The
        transitions behind grow with it.

        Args:
            block, layer: behind which.
            noise: deviation of the noise on the new layer's weights over that of the weights.
            seed: of which outputs are copied, and of the noise.

        Raises:
            HastenError: no such layer.
        """
        self._check(block, layer)
        made = copy.deepcopy(self)
        generator = torch.Generator().manual_seed(seed)
        rows = self.layers.growths
        growth = rows[block][layer]
        first = self.layers.inputs[block] + sum(rows[block][:layer])  # where the layer's outputs begin
        drawn = torch.randint(growth, (growth,), generator=generator)
        stage: Any = made.stages[block]
        at = layer + (block > 0)
        stage.insert(at + 1, _copied(stage[at], growth, drawn, noise, generator))
        after = first + growth
        total = self.layers.inputs[block] + sum(rows[block])

        def places(width: int) -> Tensor:
            return torch.cat([torch.arange(after), first + drawn, torch.arange(after, width)])

        width = after
        for later in list(stage)[at + 2 :]:
            later.norm, later.squeeze = (
                with_channels(later.norm, places(width)),
                with_inputs(later.squeeze, places(width)),
            )
            width += later.expand.out_channels
        if block + 1 < len(rows):
            reader: Any = made.stages[block + 1][0]  # type: ignore[index]
            reader[0], reader[2] = with_channels(reader[0], places(total)), with_inputs(reader[2], places(total))
        else:
            head: Any = made.head
            head[0] = with_channels(head[0], places(total))
            if isinstance(made.classifier, nn.Linear):
                made.classifier = with_inputs(made.classifier, places(total))
        new = (*rows[block][: layer + 1], growth, *rows[block][layer + 1 :])
        wanted = replace(self.layers, growths=(*rows[:block], new, *rows[block + 1 :]))
        if block + 1 == len(rows):
            made.layers = wanted
            return made
        # So far the transition gives as many channels as before.
        made.layers = _Kept(
            wanted.first, wanted.growths, (*self.layers.inputs[: block + 1], *self.layers.inputs[block + 1 :])
        )
        return made._grown(wanted, noise, seed)


@dataclass(frozen=True)
class _Kept(DenseLayers):
    """Layers whose transitions have not grown yet."""

    widths: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.widths


def _copied(layer: Any, growth: int, drawn: Tensor, noise: float, generator: torch.Generator) -> DenseLayer:
    """A layer that gives another's outputs in another order, and reads them with weights of 0."""
    inputs = layer.squeeze.in_channels
    made: Any = copy.deepcopy(layer)
    like = layer.squeeze.weight
    made.norm = nn.BatchNorm2d(inputs + growth, layer.norm.eps, layer.norm.momentum).to(like.device, like.dtype)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(made.norm, name)[:inputs].copy_(getattr(layer.norm, name))
    made.norm.num_batches_tracked.copy_(layer.norm.num_batches_tracked)
    made.norm.train(layer.training)
    squeeze = nn.Conv2d(inputs + growth, layer.squeeze.out_channels, 1, bias=False)
    made.squeeze = squeeze.to(like.device, like.dtype)
    made.squeeze.weight.zero_()
    made.squeeze.weight[:, :inputs].copy_(like)
    made.squeeze.weight.copy_(noisy(made.squeeze.weight, noise, generator, like))
    made.expand = with_outputs(layer.expand, drawn, 0.0, generator)
    made.expand.weight.copy_(noisy(made.expand.weight, noise, generator))
    found: DenseLayer = made
    return found
