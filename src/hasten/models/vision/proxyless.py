"""ProxylessNAS: inverted bottlenecks of any kernel and expansion, or none, at each place (arXiv 1812.00332, 4.2).

`ProxylessSuperNet` has every choice at every place, `ProxylessNet` one; the published networks are names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level, published_size
from hasten.nn.convolutional import MBConv, conv_norm
from hasten.nn.mixed_edge import MixedEdge, MixedNetwork, is_no_edge, no_edge

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

BlockChoices = tuple[int, ...]


class BlockPlace(NamedTuple):
    """Where a block stands: channels in and out, stride, height of its input, and whether it adds its input."""

    inputs: int
    outputs: int
    stride: int
    size: int

    @property
    def skips(self) -> bool:
        return self.stride == 1 and self.inputs == self.outputs


@dataclass(frozen=True)
class ProxylessConfig:
    """The space: by default the paper's for ImageNet.

    Args:
        widths, depths, strides: of each stage; the stride is that of its first block.
        stem, first, last: channels of the first convolution, of the block behind it, and of the last convolution.
        stem_stride: of the first convolution.
        kernels, expands: of a block; its choices are every pair, kernel by kernel, and none where it adds its input.
        resolution: height and width of the images.
        channels, classes: of images and of the output; no classes leave the last layer out.
    """

    widths: tuple[int, ...] = (24, 40, 80, 96, 192, 320)
    depths: tuple[int, ...] = (4, 4, 4, 4, 4, 1)
    strides: tuple[int, ...] = (2, 2, 2, 1, 2, 1)
    stem: int = 32
    first: int = 16
    last: int = 1280
    stem_stride: int = 2
    kernels: tuple[int, ...] = (3, 5, 7)
    expands: tuple[int, ...] = (3, 6)
    resolution: int = 224
    channels: int = 3
    classes: int = 1000

    def __post_init__(self) -> None:
        if not self.widths or {len(self.depths), len(self.strides)} != {len(self.widths)}:
            raise HastenError("widths, depths and strides of a ProxylessNAS network are of equal length, one a stage")
        if any(k % 2 == 0 for k in self.kernels) or not self.kernels or not self.expands:
            raise HastenError("a ProxylessNAS network has odd kernels and expansions to choose from")
        if min(*self.widths, *self.depths, *self.strides, *self.kernels, *self.expands, self.resolution) < 1:
            raise HastenError("every size of a ProxylessNAS network is at least 1")

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        """Kernel and expansion of each choice but the last, which is no block."""
        return tuple((k, e) for k in self.kernels for e in self.expands)

    @property
    def none(self) -> int:
        """The choice that is no block."""
        return len(self.kernels) * len(self.expands)

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the choices."""
        return (*(f"k{k}_e{e}" for k, e in self.blocks), "none")

    def places(self) -> list[BlockPlace]:
        """Where blocks are chosen, stage by stage."""
        found, inputs = [], self.first
        size = -(-self.resolution // self.stem_stride)
        for width, depth, stride in zip(self.widths, self.depths, self.strides, strict=True):
            for j in range(depth):
                step = stride if j == 0 else 1
                found.append(BlockPlace(inputs, width, step, size))
                inputs, size = width, -(-size // step)
        return found

    def choices(self) -> list[int]:
        """How many choices each place has: one less where a block is needed."""
        return [self.none + place.skips for place in self.places()]

    def check(self, chosen: Sequence[int]) -> BlockChoices:
        """The choices, as a tuple.

        Raises:
            HastenError: another number of them than there are places, or a choice that a place has not.
        """
        made, counts = tuple(int(o) for o in chosen), self.choices()
        if len(made) != len(counts) or any(not 0 <= o < n for o, n in zip(made, counts, strict=True)):
            raise HastenError(
                f"a ProxylessNAS network is {len(counts)} numbers from 0 to {self.none}, the last where shapes stay: "
                f"got {list(chosen)!r:.80}"
            )
        return made

    def of_names(self, text: str) -> BlockChoices:
        """Choices as they are written: ``5/3 3/3 - -``, kernel and expansion of each block, ``-`` for none; stages may
        be set off by ``|``.

        Raises:
            HastenError: no such block, or not one for each place.
        """
        names = {f"{k}/{e}": i for i, (k, e) in enumerate(self.blocks)} | {"-": self.none}
        words = text.replace("|", " ").split()
        if unknown := [w for w in words if w not in names]:
            raise HastenError(f"no block is written {unknown[0]!r}: choose {', '.join(names)}")
        return self.check([names[w] for w in words])

    def macs(self, chosen: Sequence[int]) -> int:
        """Multiply-accumulates of a network's convolutions and classifier, for one image."""
        places = self.places()
        half = places[0].size
        total = (9 * self.channels * self.stem + 9 * self.stem + self.stem * self.first) * half**2
        for operation, place in zip(self.check(chosen), places, strict=True):
            if operation != self.none:
                kernel, expand = self.blocks[operation]
                middle, out = place.inputs * expand, -(-place.size // place.stride)
                total += place.inputs * middle * place.size**2 + middle * (kernel**2 + place.outputs) * out**2
        size = -(-places[-1].size // places[-1].stride)
        return total + self.widths[-1] * self.last * size**2 + self.last * self.classes

    def parts(self, chosen: Sequence[int]) -> list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]]:
        """What a network is a sum of: a key by its shapes, the part, and the shape of its input for one image."""
        places, size = self.places(), self.resolution
        found: list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]] = [
            (("stem", self.channels, self.stem, self.first, size), partial(_stem, self), (self.channels, size, size))
        ]
        for operation, place in zip(self.check(chosen), places, strict=True):
            if operation != self.none:
                kernel, expand = self.blocks[operation]
                key = ("block", *place, kernel, expand)
                found.append((key, partial(_block, place, kernel, expand), (place.inputs, place.size, place.size)))
        size = -(-places[-1].size // places[-1].stride)
        end = ("end", self.widths[-1], self.last, self.classes, size)
        return [*found, (end, partial(_End, self), (self.widths[-1], size, size))]


# Widths and blocks as the authors published them, stage by stage (github.com/han-cai/files).
_MOBILE = "5/3 3/3 - - | 7/3 3/3 5/3 5/3 | 7/6 5/3 5/3 5/3 | 5/6 5/3 5/3 5/3 | 7/6 7/6 7/3 7/3 | 7/6"
PUBLISHED: dict[str, tuple[ProxylessConfig, str]] = {
    "proxylessnas-mobile": (ProxylessConfig((32, 40, 80, 96, 192, 320)), _MOBILE),
    "proxylessnas-gpu": (
        ProxylessConfig((32, 56, 112, 128, 256, 432), stem=40, first=24, last=1728),
        "5/3 - - - | 7/3 - - 3/3 | 7/6 - - 5/3 | 5/6 - 3/3 5/3 | 7/6 7/6 7/6 5/6 | 7/6",
    ),
    "proxylessnas-cpu": (
        ProxylessConfig((32, 48, 88, 104, 216, 360), stem=40, first=24, last=1432),
        "3/6 3/3 3/3 3/3 | 3/6 3/3 3/3 5/3 | 3/6 - - 3/3 | 5/6 3/3 3/3 3/3 | 5/6 5/3 5/3 3/3 | 5/6",
    ),
    "proxylessnas-mobile-1.4": (
        ProxylessConfig((40, 56, 112, 136, 256, 448), stem=48, first=24, last=1792),
        _MOBILE,
    ),
}
TIMM = {name.replace("-", "_").replace(".", ""): name for name in PUBLISHED}


def _published_norms(module: nn.Module) -> nn.Module:
    """The module, its batch norms with the published epsilon."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-3
    return module


def _block(place: BlockPlace, kernel: int, expand: int) -> MBConv:
    made = MBConv(place.inputs, place.outputs, place.inputs * expand, kernel, place.stride, "relu6", False)
    _published_norms(made)
    return made


def _stem(config: ProxylessConfig) -> nn.Sequential:
    first = MBConv(config.stem, config.first, config.stem, 3, 1, "relu6", False, expand=False)
    made = nn.Sequential(conv_norm(config.channels, config.stem, 3, config.stem_stride, act="relu6"), first)
    _published_norms(made)
    return made


def _head(config: ProxylessConfig) -> nn.Sequential:
    wide = conv_norm(config.widths[-1], config.last, 1, act="relu6")
    made = nn.Sequential(wide, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    _published_norms(made)
    return made


class _End(nn.Module):
    """Head and classifier."""

    def __init__(self, config: ProxylessConfig) -> None:
        super().__init__()
        self.head = _head(config)
        self.classifier = nn.Linear(config.last, config.classes) if config.classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.head(x))
        return logits


@published((*PUBLISHED, *TIMM))
class ProxylessNet(Backbone):
    """A network of the space.

    Args:
        config: of the space.
        chosen: the choice at each place; the published mobile network's when None.

    >>> config = ProxylessConfig((8, 16), (2, 2), (2, 2), stem=8, first=8, last=16, resolution=16, classes=10)
    >>> net = ProxylessNet(config, config.of_names("3/3 - | 5/6 7/3"))
    >>> tuple(net(torch.zeros(2, 3, 16, 16)).shape)
    (2, 10)
    """

    def __init__(self, config: ProxylessConfig | None = None, chosen: Sequence[int] | None = None) -> None:
        super().__init__()
        self.config = config = config or PUBLISHED["proxylessnas-mobile"][0]
        self.chosen = config.of_names(_MOBILE) if chosen is None else config.check(chosen)
        self.stem = _stem(config)
        stages: list[list[nn.Module]] = []
        rest = iter(zip(self.chosen, config.places(), strict=True))
        for depth in config.depths:
            stages.append([])
            for _ in range(depth):
                operation, place = next(rest)
                if operation != config.none:
                    stages[-1].append(_block(place, *config.blocks[operation]))
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.head = _head(config)
        self.classifier = self.new_classifier(config.classes)

    @classmethod
    def named(cls, name: str, *, num_classes: int = 1000, in_chans: int = 3) -> ProxylessNet:
        """A published network with weights at their start.

        Args:
            name: such as ``proxylessnas-mobile``, or timm's way of writing.
            num_classes: logits; 0 for features.
            in_chans: channels of the image.

        Raises:
            HastenError: a size that no network has.
        """
        config, blocks = published_size(name, PUBLISHED, TIMM, in_chans)
        config = replace(config, classes=num_classes, channels=in_chans)
        return cls(config, config.of_names(blocks))

    @property
    def levels(self) -> tuple[Level, ...]:
        found, reduction = [], self.config.stem_stride
        for width, stride in zip(self.config.widths, self.config.strides, strict=True):
            reduction *= stride
            found.append(Level(width, reduction))
        return tuple(found)

    @property
    def example_side(self) -> int:
        return self.config.resolution

    @property
    def num_features(self) -> int:
        return self.config.last


class ProxylessSuperNet(MixedNetwork):
    """Every choice at every place, a `MixedEdge` each.

    Args:
        config: of the space.

    Shapes: (batch, channels, resolution, resolution) to (batch, classes).

    >>> config = ProxylessConfig((8,), (2,), (2,), stem=8, first=8, last=16, resolution=16, classes=10)
    >>> net = ProxylessSuperNet(config)
    >>> [len(edge.candidates) for edge in net.edges]
    [6, 7]
    """

    edges: nn.ModuleList

    def __init__(self, config: ProxylessConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _stem(config)
        places = config.places()
        self.skips = tuple(place.skips for place in places)
        self.edges = nn.ModuleList(_edge(config, place) for place in places)
        self.end = _End(config)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.stem(images)
        for edge, skips in zip(self.edges, self.skips, strict=True):
            y = edge(x)
            x = x + y if skips else y
        logits: Tensor = self.end(x)
        return logits

    if TYPE_CHECKING:
        __call__ = forward

    @property
    def resolution(self) -> int:
        return self.config.resolution

    def check(self, chosen: Sequence[int]) -> BlockChoices:
        return self.config.check(chosen)

    def extract(self, chosen: Sequence[int]) -> ProxylessNet:
        """A network of the space with copies of these weights.

        Raises:
            HastenError: it is none of the space.
        """
        made = ProxylessNet(self.config, chosen)
        blocks = iter([block for stage in made.stages for block in stage.children()])
        for edge, operation in zip(self.mixed, made.chosen, strict=True):
            if not is_no_edge(edge.candidates[operation]):
                next(blocks).load_state_dict(edge.candidates[operation].state_dict())
        made.stem.load_state_dict(self.stem.state_dict())
        made.head.load_state_dict(self.end.head.state_dict())
        made.classifier.load_state_dict(self.end.classifier.state_dict())
        return made.train(self.training)


def _edge(config: ProxylessConfig, place: BlockPlace) -> MixedEdge:
    candidates: list[nn.Module] = []
    for kernel, expand in config.blocks:
        block = _block(place, kernel, expand)
        block.residual = False  # added behind the edge, whichever is chosen
        candidates.append(block)
    if place.skips:
        candidates.append(no_edge())
    return MixedEdge(candidates)
