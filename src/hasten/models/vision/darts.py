"""Networks of two learned cells: DARTS' space (arXiv 1806.09055), with its and PC-DARTS' published networks as names.

`hasten.search.networks.darts_super_net` has every operation on every edge.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.nn.block import Block
from hasten.nn.mixed_edge import no_edge

OPERATIONS = (
    "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3",
    "dil_conv_5x5",
)  # fmt: skip
NODES = 4
"""Of a cell, beside its two inputs."""
EDGES = tuple((start, node) for node in range(2, 2 + NODES) for start in range(node))
"""(from, to) of a cell's super-network; 0 and 1 are its inputs."""
CellKind = Literal["normal", "reduce"]
KINDS: tuple[CellKind, ...] = ("normal", "reduce")
Choice = tuple[str, int]
_CONCAT = tuple(range(2, 2 + NODES))


class Genotype(NamedTuple):
    """Two cells: of every node two operations, each with the input that it reads, node by node.

    The fields are those of DARTS' published genotypes; with tuples in them it hashes.

    Args:
        normal, reduce: (operation, input) pairs, two a node; inputs 0 and 1 are the two cells before.
        normal_concat, reduce_concat: nodes whose maps are the cell's output.
    """

    normal: tuple[Choice, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Choice, ...]
    reduce_concat: tuple[int, ...]

    def of(self, kind: CellKind) -> tuple[Choice, ...]:
        """The pairs of a kind of cell."""
        return self.normal if kind == "normal" else self.reduce


def genotype(normal: Sequence[Choice], reduce: Sequence[Choice]) -> Genotype:
    """The genotype of two cells, the inputs of each node in their order.

    Raises:
        HastenError: not two different inputs from before it at each node, or an operation that does not exist.
    """
    cells = []
    for cell in (normal, reduce):
        pairs = [(str(o), int(i)) for o, i in cell]
        if len(pairs) != 2 * NODES:
            raise HastenError(f"a cell has {2 * NODES} pairs of operation and input: got {len(pairs)}")
        for node in range(NODES):
            two = pairs[2 * node : 2 * node + 2]
            if two[0][1] == two[1][1] or not all(0 <= i < node + 2 for _, i in two):
                raise HastenError(f"node {node + 2} of a cell reads two different inputs before it: got {two}")
            pairs[2 * node : 2 * node + 2] = sorted(two, key=lambda pair: pair[1])
        if wrong := [o for o, _ in pairs if o not in OPERATIONS[1:]]:
            raise HastenError(f"no operation of a cell is called {wrong[0]!r:.40}: choose {', '.join(OPERATIONS[1:])}")
        cells.append(tuple(pairs))
    return Genotype(cells[0], _CONCAT, cells[1], _CONCAT)


def read_genotype(text: str) -> Genotype:
    """A genotype as DARTS and those after it print it: ``Genotype(normal=[('sep_conv_3x3', 1), ...], ...)``.

    Raises:
        HastenError: it is none, or one of another space.
    """
    try:
        call = ast.parse(text[max(0, text.find("Genotype(")) :].strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        given = dict(zip(Genotype._fields, map(_literal, call.args), strict=False))
        given |= {str(k.arg): _literal(k.value) for k in call.keywords}
        if any(tuple(given[name]) != _CONCAT for name in ("normal_concat", "reduce_concat")):
            raise HastenError("a genotype of this space joins the nodes 2 to 5")
        return genotype(given["normal"], given["reduce"])
    except (SyntaxError, ValueError, TypeError, KeyError, AssertionError) as error:
        raise HastenError(
            f"this is no genotype ({type(error).__name__}): give Genotype(normal=[...], normal_concat=..., reduce=..., "
            "reduce_concat=...)"
        ) from None


def _literal(node: ast.expr) -> Any:
    """What is written there: literals, and ``range`` of some."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        return range(*(int(ast.literal_eval(a)) for a in node.args))
    return ast.literal_eval(node)


@dataclass(frozen=True)
class DartsConfig:
    """Sizes: by default those of the published networks for CIFAR-10.

    Args:
        width: channels of the first cells' nodes, doubled by each cell that halves the map.
        cells: the ones at one and at two thirds halve the map.
        stem: ``small``, a 3x3 convolution; ``large``, three that each halve the image.
        resolution: height and width of the images.
        channels, classes: of images and of the output.
        auxiliary: whether a second head at two thirds gives logits in training.
    """

    width: int = 36
    cells: int = 20
    stem: Literal["small", "large"] = "small"
    resolution: int = 32
    channels: int = 3
    classes: int = 10
    auxiliary: bool = False

    def __post_init__(self) -> None:
        if min(self.width, self.resolution, self.channels, self.classes) < 1 or self.cells < 3 or self.width % 2:
            raise HastenError("a network of cells has an even width and 3 cells at least, every other size from 1 on")

    def layout(self) -> list[CellPlace]:
        """Where each cell stands."""
        large = self.stem == "large"
        size = -(-self.resolution // 8) if large else self.resolution
        before = last = self.width if large else 3 * self.width
        halved, width = large, self.width
        found = []
        for i in range(self.cells):
            reduces = i in (self.cells // 3, 2 * self.cells // 3)
            width *= 2 if reduces else 1
            found.append(CellPlace(before, last, width, size, reduces, halved))
            before, last, halved = last, NODES * width, reduces
            size = -(-size // 2) if reduces else size
        return found

    def macs(self, chosen: Genotype) -> int:
        """Multiply-accumulates of a network's convolutions and classifier, for one image."""
        size, width, layout = self.resolution, self.width, self.layout()
        if self.stem == "small":
            total = 27 * self.channels * width * size**2
        else:
            sizes = [-(-size // 2**i) for i in (1, 2, 3)]
            pairs = ((self.channels, width // 2), (width // 2, width), (width, width))
            total = sum(9 * i * o * s**2 for (i, o), s in zip(pairs, sizes, strict=True))
        for place in layout:
            wide = place.width
            total += (place.before + place.last) * wide * place.size**2
            for operation, start in chosen.of(place.kind):
                if operation == "skip_connect" and place.stride(start) == 2:
                    total += wide * wide * place.inner**2
                elif "conv" in operation:
                    one = (int(operation[-1]) ** 2 * wide + wide * wide) * place.inner**2
                    total += 2 * one if operation.startswith("sep") else one
        return total + NODES * layout[-1].width * self.classes

    def parts(self, chosen: Genotype) -> list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]]:
        """What a network is a sum of: a key by its shapes, the part, and the shape of its input for one image."""
        layout, size = self.layout(), self.resolution
        stem = ("stem", self.stem, self.channels, self.width, size)
        found: list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]] = [
            (stem, partial(cell_stem, self), (self.channels, size, size))
        ]
        for place in layout:
            for inputs, halves in ((place.before, place.halved), (place.last, False)):
                side = place.size * (2 if halves else 1)
                make = partial(cell_entry, inputs, place.width, halves)
                found.append((("entry", inputs, place.width, halves, side), make, (inputs, side, side)))
            for operation, start in chosen.of(place.kind):
                stride, side = place.stride(start), place.side(start)
                if operation == "skip_connect" and stride == 1:
                    continue
                make = partial(cell_operation, operation, place.width, stride, True)
                found.append(((operation, place.width, stride, side), make, (place.width, side, side)))
            shape = (place.width, place.inner, place.inner)
            found += [(("add", *shape), _Twice, shape)] * NODES
            found.append((("join", *shape), _Joined, shape))
        outputs, size = NODES * layout[-1].width, layout[-1].inner
        end = ("end", outputs, self.classes, size)
        return [*found, (end, partial(cell_end, outputs, self.classes), (outputs, size, size))]


class CellPlace(NamedTuple):
    """Where a cell stands: channels of the two cells before and of its nodes, height of its inputs, whether it halves
    the map, and whether the cell before did."""

    before: int
    last: int
    width: int
    size: int
    reduces: bool
    halved: bool

    @property
    def kind(self) -> CellKind:
        return "reduce" if self.reduces else "normal"

    @property
    def inner(self) -> int:
        """Height of its nodes' maps."""
        return self.side(2)

    def stride(self, start: int) -> int:
        """Of an edge that begins at an input or node."""
        return 2 if self.reduces and start < 2 else 1

    def side(self, start: int) -> int:
        """Height of the map at an input or node."""
        return -(-self.size // 2) if self.reduces and start >= 2 else self.size


# -- operations --------------------------------------------------------------------------------------


class _Halving(nn.Module):
    """Halves the map: two 1x1 convolutions of stride 2, one of them a pixel further."""

    def __init__(self, inputs: int, outputs: int, affine: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs // 2, 1, 2, bias=False)
        self.second = nn.Conv2d(inputs, outputs - outputs // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        moved = F.pad(x[:, :, 1:, 1:], (0, x.shape[3] % 2, 0, x.shape[2] % 2))  # odd maps are rounded up
        y: Tensor = self.norm(torch.cat([self.first(x), self.second(moved)], 1))
        return y


def _squeeze(inputs: int, outputs: int, affine: bool = True) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs, affine=affine))


def cell_entry(inputs: int, width: int, halves: bool, affine: bool = True) -> nn.Module:
    """What brings a cell before to a cell\'s width, and to the map\'s height where the cell between halved it."""
    return _Halving(inputs, width, affine) if halves else _squeeze(inputs, width, affine)


def _depthwise(width: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    padding = dilation * (kernel // 2)
    return [
        nn.ReLU(),
        nn.Conv2d(width, width, kernel, stride, padding, dilation, width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width, affine=affine),
    ]


def cell_operation(name: str, width: int, stride: int, affine: bool) -> nn.Module:
    """An operation of `OPERATIONS`, (batch, width, height, height) to the same, the height divided by the stride.

    Args:
        affine: whether batch norms have weights.
    """
    kernel = int(name[-1]) if name[-1].isdigit() else 0
    if name == "none":
        return no_edge(stride)
    if name == "skip_connect":
        return nn.Identity() if stride == 1 else _Halving(width, width, affine)
    if name.startswith("max"):
        return nn.MaxPool2d(3, stride, 1)
    if name.startswith("avg"):
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if name.startswith("dil"):
        return nn.Sequential(*_depthwise(width, kernel, stride, 2, affine))
    return nn.Sequential(*_depthwise(width, kernel, stride, 1, affine), *_depthwise(width, kernel, 1, 1, affine))


class _Stem(nn.Module):
    """The maps that the first cell reads."""

    def __init__(self, config: DartsConfig) -> None:
        super().__init__()
        width = config.width
        self.second: nn.Module | None = None
        if config.stem == "small":
            self.first = nn.Sequential(
                nn.Conv2d(config.channels, 3 * width, 3, padding=1, bias=False), nn.BatchNorm2d(3 * width)
            )
            return
        self.first = nn.Sequential(
            nn.Conv2d(config.channels, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU(),
            nn.Conv2d(width // 2, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.second = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        )  # fmt: skip

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(images)
        return x, x if self.second is None else self.second(x)


def cell_stem(config: DartsConfig) -> nn.Module:
    """What makes the two maps that the first cell reads."""
    return _Stem(config)


def cell_end(inputs: int, classes: int) -> nn.Module:
    """The mean over the map, and the classifier."""
    return _End(inputs, classes)


class _End(nn.Module):
    """The mean over the map, and the classifier."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


class _Twice(nn.Module):
    """What adding two maps costs."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x


class _Joined(nn.Module):
    """What joining the nodes' maps costs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * NODES, 1)


class _Auxiliary(nn.Module):
    """A second head of maps 8 x 8 (small images) or 14 x 14."""

    def __init__(self, inputs: int, large: bool, classes: int) -> None:
        super().__init__()
        # The published network for large images has no norm behind the second convolution.
        norm = nn.Identity() if large else nn.BatchNorm2d(768)
        self.features = nn.Sequential(
            nn.ReLU(), nn.AvgPool2d(5, 2 if large else 3, count_include_pad=False),
            nn.Conv2d(inputs, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.classifier = nn.Linear(768, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x))
        return logits


# -- networks of a genotype --------------------------------------------------------------------------


class DartsCell(Block):
    """A cell of a genotype.

    Args:
        place: where it stands.
        pairs: two operations with their inputs a node.
        affine: whether batch norms have weights.

    Shapes: the maps of two cells to (batch, 4 width, inner, inner).
    """

    def __init__(self, place: CellPlace, pairs: Sequence[Choice], affine: bool = True) -> None:
        super().__init__()
        self.place, self.pairs = place, tuple(pairs)
        self.first = cell_entry(place.before, place.width, place.halved, affine)
        self.second = cell_entry(place.last, place.width, False, affine)
        self.operations = nn.ModuleList(cell_operation(o, place.width, place.stride(i), affine) for o, i in self.pairs)
        self.drop = 0.0

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        maps = [self.first(before), self.second(last)]
        for node in range(NODES):
            two = [
                self._kept(self.operations[k], self.operations[k](maps[self.pairs[k][1]]))
                for k in (2 * node, 2 * node + 1)
            ]
            maps.append(two[0] + two[1])
        return torch.cat(maps[2:], 1)

    if TYPE_CHECKING:
        __call__ = forward

    def _kept(self, operation: nn.Module, x: Tensor) -> Tensor:
        """A map, in training left out for some images, but for those that are passed on as they are."""
        if not self.training or not self.drop or isinstance(operation, nn.Identity):
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.drop
        return x * kept / (1 - self.drop)


def _choices(text: str) -> tuple[Choice, ...]:
    """``sep3 1, skip 0``: operations in short, each with its input."""
    short = {"max3": "max_pool_3x3", "avg3": "avg_pool_3x3", "skip": "skip_connect"}
    short |= {f"{kind}{k}": f"{kind}_conv_{k}x{k}" for kind in ("sep", "dil") for k in (3, 5)}
    return tuple((short[o], int(i)) for o, i in (pair.split() for pair in text.replace("|", ",").split(",")))


# As published (github.com/quark0/darts and github.com/yuhuixu1993/PC-DARTS, genotypes.py), node by node.
GENOTYPES: dict[str, Genotype] = {
    "darts-v1": genotype(
        _choices("sep3 1, sep3 0 | skip 0, sep3 1 | skip 0, sep3 1 | sep3 0, skip 2"),
        _choices("max3 0, max3 1 | skip 2, max3 0 | max3 0, skip 2 | skip 2, avg3 0"),
    ),
    "darts-v2": genotype(
        _choices("sep3 0, sep3 1 | sep3 0, sep3 1 | sep3 1, skip 0 | skip 0, dil3 2"),
        _choices("max3 0, max3 1 | skip 2, max3 1 | max3 0, skip 2 | skip 2, max3 1"),
    ),
    "pc-darts-cifar": genotype(
        _choices("sep3 1, skip 0 | sep3 0, dil3 1 | sep5 0, sep3 1 | avg3 0, dil3 1"),
        _choices("sep5 1, max3 0 | sep5 1, sep5 2 | sep3 0, sep3 3 | sep3 1, sep3 2"),
    ),
    "pc-darts-imagenet": genotype(
        _choices("skip 1, sep3 0 | sep3 0, skip 1 | sep3 1, sep3 3 | sep3 1, dil5 4"),
        _choices("sep3 0, skip 1 | dil5 2, max3 1 | sep3 2, sep3 1 | sep5 0, sep3 3"),
    ),
}
CIFAR = DartsConfig()
IMAGENET = DartsConfig(48, 14, "large", 224, classes=1000)
PUBLISHED: dict[str, tuple[DartsConfig, str]] = {
    "darts-v1": (CIFAR, "darts-v1"),
    "darts-v2": (CIFAR, "darts-v2"),
    "darts-v2-imagenet": (IMAGENET, "darts-v2"),
    "pc-darts-cifar": (CIFAR, "pc-darts-cifar"),
    "pc-darts-imagenet": (IMAGENET, "pc-darts-imagenet"),
}


@published(PUBLISHED)
class DartsNetwork(Block):
    """A network of a genotype.

    Args:
        config: sizes; those for CIFAR-10 when None.
        cells: its genotype; PC-DARTS' of CIFAR-10 when None.

    Shapes: (batch, channels, height, width) to (batch, classes).

    >>> net = DartsNetwork(DartsConfig(4, 3, resolution=8, channels=1), GENOTYPES["darts-v2"])
    >>> tuple(net(torch.zeros(2, 1, 8, 8)).shape)
    (2, 10)
    """

    cells: nn.ModuleList

    def __init__(self, config: DartsConfig | None = None, cells: Genotype | None = None) -> None:
        super().__init__()
        self.config = config = config or CIFAR
        self.genotype = cells = GENOTYPES["pc-darts-cifar"] if cells is None else genotype(cells.normal, cells.reduce)
        layout = config.layout()
        self.stem = cell_stem(config)
        self.cells = nn.ModuleList(DartsCell(place, cells.of(place.kind)) for place in layout)
        self.auxiliary: nn.Module | None = None
        if config.auxiliary:
            inputs = NODES * layout[2 * config.cells // 3].width
            self.auxiliary = _Auxiliary(inputs, config.stem == "large", config.classes)
        self.end = cell_end(NODES * layout[-1].width, config.classes)

    @classmethod
    def named(
        cls, name: str, *, num_classes: int | None = None, in_chans: int = 3, auxiliary: bool = False
    ) -> DartsNetwork:
        """A published network with weights at their start.

        Args:
            name: such as ``pc-darts-cifar``.
            num_classes: logits; as published when None.
            in_chans: channels of the image.
            auxiliary: of `DartsConfig`.
        """
        config, cells = PUBLISHED[name]
        classes = config.classes if num_classes is None else num_classes
        return cls(replace(config, classes=classes, channels=in_chans, auxiliary=auxiliary), GENOTYPES[cells])

    def example_inputs(self, batch: int = 1) -> Tensor:
        """Images (batch, channels, resolution, resolution) of zeros, in the format of the weights."""
        config, like = self.config, next(self.parameters())
        return torch.zeros(batch, config.channels, config.resolution, config.resolution, dtype=like.dtype)

    def drop_path(self, share: float) -> None:
        """In training leaves each operation's map out for this share of the images from now on.

        Raises:
            HastenError: no share from 0 to less than 1.
        """
        if not 0 <= share < 1:
            raise HastenError(f"a share of maps to leave out is from 0 to less than 1: got {share:g}")
        for cell in self.cells:
            if isinstance(cell, DartsCell):
                cell.drop = share

    def forward(self, images: Tensor) -> Tensor:
        logits, _ = self._both(images, False)
        return logits

    if TYPE_CHECKING:
        __call__ = forward

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the last and of the second head, for a training on both.

        Raises:
            HastenError: it has no second head.
        """
        logits, second = self._both(images, True)
        if second is None:
            raise HastenError("this network has no second head: make it with auxiliary=True")
        return logits, second

    def _both(self, images: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        before, last = self.stem(images)
        second = None
        for i, cell in enumerate(self.cells):
            before, last = last, cell(before, last)
            if wanted and self.auxiliary is not None and i == 2 * self.config.cells // 3:
                second = self.auxiliary(last)
        return self.end(last), second
