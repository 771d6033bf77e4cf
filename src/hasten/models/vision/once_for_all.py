"""Once-for-All: one network whose sub-networks of any depth, width, kernel and resolution work (arXiv 1908.09791)."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.cost.preserving import evaluating
from hasten.errors import HastenError
from hasten.models.loading import checkpoint
from hasten.nn.block import Block
from hasten.nn.convolutional import MBConv, make_divisible
from hasten.nn.elastic import ElasticMBConv


@dataclass(frozen=True)
class Architecture:
    """A sub-network: what each block is, and the size of its input.

    Args:
        kernels, expands: of every block of the space, stage by stage; those of blocks past a stage's depth do not
            matter, and are kept as the smallest so that equal sub-networks are equal.
        depths: blocks used of each stage.
        resolution: height and width of the input.
    """

    kernels: tuple[int, ...]
    expands: tuple[int, ...]
    depths: tuple[int, ...]
    resolution: int

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """A sub-network from what `dataclasses.asdict` made of one, by way of JSON or not.

        Raises:
            HastenError: a name is unknown or a value of the wrong kind.
        """
        return _from_dict(cls, data, "a sub-network")


def _from_dict(kind: Any, data: Any, what: str) -> Any:
    known = {f.name: f.type for f in fields(kind)}
    if not isinstance(data, Mapping) or set(data) - set(known):
        raise HastenError(f"{what} is described by {', '.join(known)}: got {data!r:.80}")
    made = {}
    for name, value in data.items():
        many = str(known[name]).startswith("tuple")
        element = str(known[name]).removeprefix("tuple[").split(",")[0]
        types: Any = {"int": int, "float": (int, float), "str": str, "bool": bool}[element]
        values = value if many else [value]
        if not isinstance(values, list | tuple) or not all(
            isinstance(v, types) and (element == "bool" or not isinstance(v, bool)) for v in values
        ):
            raise HastenError(f"{name} of {what} is {known[name]}: got {value!r:.80}")
        made[name] = tuple(values) if many else value
    try:
        return kind(**made)
    except TypeError as error:
        raise HastenError(f"{what} is not described whole: {str(error).rpartition('() ')[2]}") from None


@dataclass(frozen=True)
class OFAConfig:
    """The space: by default the paper's MobileNetV3 space for ImageNet.

    Args:
        widths, strides, activations, se: of each stage.
        depths, kernels, expands, resolutions: what may be chosen.
        stem, final, last: channels before the stages, after them, and of the last layer.
        multiplier: of all widths.
        stem_stride: of the first convolution.
        channels, classes: of images and of the output.
        dropout: before the classifier.
    """

    widths: tuple[int, ...] = (24, 40, 80, 112, 160)
    strides: tuple[int, ...] = (2, 2, 2, 1, 2)
    activations: tuple[str, ...] = ("relu", "relu", "h_swish", "h_swish", "h_swish")
    se: tuple[bool, ...] = (False, True, False, True, True)
    depths: tuple[int, ...] = (2, 3, 4)
    kernels: tuple[int, ...] = (3, 5, 7)
    expands: tuple[int, ...] = (3, 4, 6)
    resolutions: tuple[int, ...] = tuple(range(128, 225, 4))
    stem: int = 16
    final: int = 960
    last: int = 1280
    multiplier: float = 1.0
    stem_stride: int = 2
    channels: int = 3
    classes: int = 1000
    dropout: float = 0.1

    def __post_init__(self) -> None:
        stages = len(self.widths)
        if not stages or {len(self.strides), len(self.activations), len(self.se)} != {stages}:
            raise HastenError("widths, strides, activations and se of a once-for-all network are of equal length")
        for name in ("depths", "kernels", "expands", "resolutions"):
            values = getattr(self, name)
            if not values or tuple(sorted(set(values))) != values or values[0] < 1:
                raise HastenError(f"{name} of a once-for-all network are rising numbers from 1")

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """A space from what `dataclasses.asdict` made of one, by way of JSON or not.

        Raises:
            HastenError: a name is unknown or a value of the wrong kind.
        """
        return _from_dict(cls, data, "a once-for-all network")

    def scaled(self, width: int) -> int:
        """A width after the multiplier."""
        return make_divisible(width * self.multiplier)

    @property
    def blocks(self) -> int:
        """Elastic blocks of the largest sub-network."""
        return len(self.widths) * self.depths[-1]

    @property
    def count(self) -> int:
        """Sub-networks of one resolution."""
        choices = len(self.kernels) * len(self.expands)
        return int(sum(choices**d for d in self.depths) ** len(self.widths))

    @property
    def features(self) -> int:
        """Length of `encode`'s result."""
        return self.blocks * (len(self.kernels) + len(self.expands)) + len(self.resolutions)

    def used(self, depths: Sequence[int]) -> list[bool]:
        """Of every block, whether a sub-network of these depths has it."""
        return [j < d for d in depths for j in range(self.depths[-1])]

    def architecture(
        self, kernels: Sequence[int] | int | None = None, expands: Sequence[int] | int | None = None,
        depths: Sequence[int] | int | None = None, resolution: int | None = None,
    ) -> Architecture:  # fmt: skip
        """A sub-network; one number stands for all blocks or stages, None for the largest.

        Raises:
            HastenError: a number that cannot be chosen, or a wrong count of them.
        """

        def full(name: str, given: Sequence[int] | int | None, count: int) -> list[int]:
            choices = getattr(self, name)
            values = [choices[-1] if given is None else given] * count if not isinstance(given, Sequence) else [*given]
            if len(values) != count or any(v not in choices for v in values):
                raise HastenError(f"{name} of a sub-network are {count} of {', '.join(map(str, choices))}: got {given}")
            return values

        d = full("depths", depths, len(self.widths))
        k, e = full("kernels", kernels, self.blocks), full("expands", expands, self.blocks)
        used = self.used(d)
        (r,) = full("resolutions", resolution, 1)
        return Architecture(
            tuple(v if u else self.kernels[0] for v, u in zip(k, used, strict=True)),
            tuple(v if u else self.expands[0] for v, u in zip(e, used, strict=True)),
            tuple(d),
            r,
        )

    def sample(self, rng: random.Random, **allowed: Sequence[int]) -> Architecture:
        """A sub-network drawn evenly, block by block; ``allowed`` narrows ``kernels``, ``expands``, ``depths`` or
        ``resolutions``."""
        options = {n: allowed.get(n, getattr(self, n)) for n in ("kernels", "expands", "depths", "resolutions")}
        return self.architecture(
            [rng.choice(options["kernels"]) for _ in range(self.blocks)],
            [rng.choice(options["expands"]) for _ in range(self.blocks)],
            [rng.choice(options["depths"]) for _ in self.widths],
            rng.choice(options["resolutions"]),
        )

    def different(self, rng: random.Random, count: int) -> list[Architecture]:
        """So many sub-networks drawn by `sample`, each once; there must be as many."""
        archs: list[Architecture] = []
        while len(archs) < count:
            if (drawn := self.sample(rng)) not in archs:
                archs.append(drawn)
        return archs

    def encode(self, arch: Architecture) -> list[float]:
        """One-hot kernel and expansion of each block, zeros past a stage's depth, and one-hot resolution."""
        row: list[float] = []
        for k, e, used in zip(arch.kernels, arch.expands, self.used(arch.depths), strict=True):
            row += [float(used and k == option) for option in self.kernels]
            row += [float(used and e == option) for option in self.expands]
        return row + [float(arch.resolution == r) for r in self.resolutions]

    def parts(self, arch: Architecture) -> list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]]:
        """What a sub-network is a sum of: a key, the part, and the shape of its input for one image."""
        size, inputs = arch.resolution, self.scaled(self.stem)
        found: list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]] = [
            (("stem", size), partial(_stem, self), (self.channels, size, size))
        ]
        size = -(-size // self.stem_stride)
        for stage, depth in enumerate(arch.depths):
            outputs, act, se = self.scaled(self.widths[stage]), self.activations[stage], self.se[stage]
            for j in range(depth):
                at = stage * self.depths[-1] + j
                kernel, expand, stride = arch.kernels[at], arch.expands[at], self.strides[stage] if j == 0 else 1
                middle = make_divisible(round(inputs * expand))
                make = partial(MBConv, inputs, outputs, middle, kernel, stride, act, se)
                found.append(((stage, min(j, 1), kernel, expand, size), make, (inputs, size, size)))
                inputs, size = outputs, -(-size // stride)
        found.append((("head", size), partial(_Head, self, inputs), (inputs, size, size)))
        return found

    def decode(self, row: Sequence[float]) -> Architecture:
        """The sub-network that `encode` made a row of.

        Raises:
            HastenError: it made no such row.
        """
        step, nk = len(self.kernels) + len(self.expands), len(self.kernels)
        parts = [list(row[i * step : (i + 1) * step]) for i in range(self.blocks)]
        used = [sum(p) > 0 for p in parts]
        top = self.depths[-1]
        try:
            made = self.architecture(
                [self.kernels[p[:nk].index(1)] if u else self.kernels[0] for p, u in zip(parts, used, strict=True)],
                [self.expands[p[nk:].index(1)] if u else self.expands[0] for p, u in zip(parts, used, strict=True)],
                [sum(used[i : i + top]) for i in range(0, self.blocks, top)],
                self.resolutions[list(row[self.blocks * step :]).index(1)],
            )
        except ValueError:
            raise HastenError("this is no code of a sub-network") from None
        if self.encode(made) != [float(v) for v in row]:
            raise HastenError("this is no code of a sub-network")
        return made


class SubNetwork(Block):
    """An ordinary MobileNetV3-like network: what is extracted, and what a sub-network is when trained alone.

    Args:
        config: of the space.
        arch: which of it.

    Shapes: (batch, channels, resolution, resolution) to (batch, classes); other sizes work too.
    """

    def __init__(self, config: OFAConfig, arch: Architecture) -> None:
        super().__init__()
        self.config, self.arch = config, arch
        self.stem, self.first = _stem(config)
        blocks: list[nn.Module] = []
        inputs = config.scaled(config.stem)
        for stage, depth in enumerate(arch.depths):
            outputs = config.scaled(config.widths[stage])
            for j in range(depth):
                at = stage * config.depths[-1] + j
                middle = make_divisible(round(inputs * arch.expands[at]))
                stride = config.strides[stage] if j == 0 else 1
                act, se = config.activations[stage], config.se[stage]
                blocks.append(MBConv(inputs, outputs, middle, arch.kernels[at], stride, act, se))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = _Head(config, inputs)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(self.stem(images))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits

    if TYPE_CHECKING:
        __call__ = forward

    def save(self, folder: str | Path) -> None:
        """Writes ``model.safetensors`` and ``config.json``."""
        checkpoint.save(folder, self, {"space": asdict(self.config), "arch": asdict(self.arch)})

    @classmethod
    def load(cls, folder: str | Path) -> SubNetwork:
        """Reads what `save` wrote; in evaluation mode.

        Raises:
            HastenError: a file is missing or broken, or the two do not belong together.
        """
        read = checkpoint.read_config(folder)
        if not isinstance(read, dict) or set(read) != {"space", "arch"}:
            raise HastenError(f"{folder} holds no sub-network: its config.json needs a space and an arch")
        with torch.device("meta"):
            made = cls(OFAConfig.from_dict(read["space"]), Architecture.from_dict(read["arch"]))
        checkpoint.fill(made, checkpoint.read_tensors(folder), folder)
        return made.eval()


def _stem(config: OFAConfig) -> nn.Sequential:
    """What comes before the stages: a convolution, and a block that does not expand."""
    width = config.scaled(config.stem)
    conv = nn.Conv2d(config.channels, width, 3, config.stem_stride, 1, bias=False)
    first = MBConv(width, width, width, 3, 1, "relu", False, expand=False)
    return nn.Sequential(nn.Sequential(conv, nn.BatchNorm2d(width), nn.Hardswish()), first)


class _Head(nn.Module):
    def __init__(self, config: OFAConfig, inputs: int) -> None:
        super().__init__()
        final, last = config.scaled(config.final), config.scaled(config.last)
        self.final = nn.Sequential(nn.Conv2d(inputs, final, 1, bias=False), nn.BatchNorm2d(final), nn.Hardswish())
        self.last = nn.Conv2d(final, last, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(last, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.final(x).mean((2, 3), keepdim=True)
        logits: Tensor = self.classifier(self.dropout(F.hardswish(self.last(x)).flatten(1)))
        return logits


class OnceForAll(Block):
    """The network of which every sub-network is a part.

    Args:
        config: of the space.

    Shapes: (batch, channels, height, width) to (batch, classes).

    >>> net = OnceForAll(OFAConfig(widths=(16,), strides=(1,), activations=("relu",), se=(False,), classes=10))
    >>> small = net.extract(net.config.architecture(3, 3, 2))
    >>> sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    True
    """

    def __init__(self, config: OFAConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or OFAConfig()
        whole = SubNetwork(config, config.architecture())
        self.stem, self.first, self.head = whole.stem, whole.first, whole.head
        inputs = config.scaled(config.stem)
        blocks = []
        for stage, width in enumerate(config.widths):
            for j in range(config.depths[-1]):
                outputs, stride = config.scaled(width), config.strides[stage] if j == 0 else 1
                act, se = config.activations[stage], config.se[stage]
                blocks.append(ElasticMBConv(inputs, outputs, config.kernels, config.expands, stride, act, se))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.active = config.architecture()

    def forward(self, images: Tensor, arch: Architecture | None = None) -> Tensor:
        """Runs a sub-network (``self.active`` when None) on images of whatever size they are."""
        arch = arch or self.active
        x = self.first(self.stem(images))
        used = self.config.used(arch.depths)
        for block, k, e, u in zip(self.blocks, arch.kernels, arch.expands, used, strict=True):
            if u:
                x = block(x, k, e)
        logits: Tensor = self.head(x)
        return logits

    if TYPE_CHECKING:
        __call__ = forward

    def save(self, folder: str | Path) -> None:
        """Writes ``model.safetensors`` and ``config.json``."""
        checkpoint.save(folder, self, asdict(self.config))

    @classmethod
    def load(cls, folder: str | Path) -> OnceForAll:
        """Reads what `save` wrote; in evaluation mode.

        Raises:
            HastenError: a file is missing or broken, or the two do not belong together.
        """
        config = OFAConfig.from_dict(checkpoint.read_config(folder))
        with torch.device("meta"):
            made = cls(config)
        checkpoint.fill(made, checkpoint.read_tensors(folder), folder)
        return made.eval()

    def extract(self, arch: Architecture) -> SubNetwork:
        """The sub-network as an ordinary module, with its own weights and batch statistics."""
        made = SubNetwork(self.config, arch).to(next(self.parameters()).device)
        for name in ("stem", "first", "head"):
            getattr(made, name).load_state_dict(getattr(self, name).state_dict())
        blocks = [
            block.extract(k, e)  # type: ignore[operator]
            for block, k, e, u in zip(
                self.blocks, arch.kernels, arch.expands, self.config.used(arch.depths), strict=True
            )
            if u
        ]
        made.blocks = nn.ModuleList(blocks)
        return made.train(self.training)

    def sort_channels(self, kept: Sequence[int] = ()) -> None:
        """Sorts every block's middle channels by importance (`ElasticMBConv.sort_channels`)."""
        for block in self.blocks:
            block.sort_channels(kept)  # type: ignore[operator]


def resized(images: Tensor, resolution: int) -> Tensor:
    """Images (batch, channels, height, width) at another size, bilinear."""
    if images.shape[-1] == resolution and images.shape[-2] == resolution:
        return images
    size = (resolution, resolution)
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=resolution < images.shape[-1])


@torch.no_grad()
def calibrate(network: nn.Module, images: Tensor, batch: int = 100) -> None:
    """Sets the batch statistics of a network (an extracted one) to those of images; weights stay.

    A sub-network's statistics are not those of the whole: ask for this before judging it (section 3.4).

    Args:
        images: (count, channels, height, width).
    """
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [m.momentum for m in norms]
    with evaluating(network):
        for m in norms:
            m.reset_running_stats()
            m.momentum = None  # the plain mean over batches
            m.train()
        try:
            for first in range(0, len(images), batch):
                if len(images) - first > 1:
                    network(images[first : first + batch])
        finally:
            for m, momentum in zip(norms, kept, strict=True):
                m.momentum = momentum


def macs(network: nn.Module, resolution: int, channels: int = 3) -> int:
    """Multiply-accumulates of the convolutions and the classifier for one image; the network may be on ``meta``."""
    total = 0

    def count(layer: Any, given: Any, made: Tensor) -> None:
        nonlocal total
        total += layer.weight.numel() * (made.numel() // made.shape[1] if made.ndim == 4 else 1)

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        with evaluating(network):
            network(torch.zeros(1, channels, resolution, resolution, device=next(network.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return total


def from_params(config: OFAConfig, params: Mapping[str, Any]) -> Architecture:
    """The sub-network of a point of the search space ``once-for-all``: ``depth-1``, ``kernel-1-1``, ..."""
    top = config.depths[-1]
    stages = range(1, len(config.widths) + 1)

    def of(name: str, least: int) -> list[int]:
        return [int(params.get(f"{name}-{s}-{j}", least)) for s in stages for j in range(1, top + 1)]

    return config.architecture(
        of("kernel", config.kernels[0]),
        of("expand", config.expands[0]),
        [int(params[f"depth-{s}"]) for s in stages],
        int(params["resolution"]),
    )
