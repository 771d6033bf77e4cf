"""ProxylessNAS' space for small images: a pyramid of residual blocks around cells that are trees of operations.

arXiv 1812.00332, section 4.1: each 3x3 convolution of a PyramidNet (1610.02915) is a tree, whose twelve edges each have
one of seven operations (cells: 1806.02639). `PyramidTreeNet` has one operation an edge, `PyramidTreeSuperNet` all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.models.registry import published
from hasten.models.vision.backbone import Backbone, Level, published_size
from hasten.nn.mixed_edge import MixedEdge, MixedNetwork, shuffled

TREE_OPERATIONS = ("identity", "conv_3x3", "conv_5x5", "conv_7x7", "dil_conv_3x3", "avg_pool_3x3", "max_pool_3x3")
"""Convolutions are depthwise separable."""
TREE_EDGES = 12
"""Of a cell: of each half of the channels two branches, of each an edge that two more follow."""
_LETTERS = "i357dam"
_WIDER = 4  # channels of a block's output over those of its cell
TreeChoices = tuple[int, ...]


class TreePlace(NamedTuple):
    """Where a block stands: channels in, of its cell and out, stride, and height of its input."""

    inputs: int
    inner: int
    outputs: int
    stride: int
    size: int

    @property
    def out(self) -> int:
        """Height of its output."""
        return -(-self.size // self.stride)


@dataclass(frozen=True)
class PyramidTreeConfig:
    """Sizes: by default those of the published network for CIFAR-10.

    Args:
        depths: blocks of each stage; the first block of each but the first halves the map.
        first: channels of a cell, before it grows.
        growth: what is added to them until the last block, in equal steps, rounded to even numbers.
        stem: channels of the first convolution.
        resolution: height and width of the images.
        channels, classes: of images and of the output; no classes leave the last layer out.
    """

    depths: tuple[int, ...] = (18, 18, 18)
    first: int = 16
    growth: int = 84
    stem: int = 16
    resolution: int = 32
    channels: int = 3
    classes: int = 10

    def __post_init__(self) -> None:
        if not self.depths or min(*self.depths, self.stem, self.resolution, self.channels) < 1:
            raise HastenError("a pyramid of trees has stages of one block or more, and sizes from 1")
        if self.first < 2 or self.growth < 0 or self.classes < 0:
            raise HastenError("cells of a pyramid of trees begin with 2 channels at least, and do not get narrower")

    def places(self) -> list[TreePlace]:
        """Where the blocks stand."""
        found: list[TreePlace] = []
        inputs, size, count = self.stem, self.resolution, sum(self.depths)
        for stage, depth in enumerate(self.depths):
            for j in range(depth):
                inner = round(self.first + self.growth * (len(found) + 1) / count) // 2 * 2
                found.append(TreePlace(inputs, inner, _WIDER * inner, 2 if stage and not j else 1, size))
                inputs, size = found[-1].outputs, found[-1].out
        return found

    def choices(self) -> list[int]:
        """How many operations each edge has to choose from, cell by cell."""
        return [len(TREE_OPERATIONS)] * (TREE_EDGES * sum(self.depths))

    def check(self, chosen: Sequence[int]) -> TreeChoices:
        """The operations, as a tuple.

        Raises:
            HastenError: another number of them than there are edges, or one that does not exist.
        """
        made, count = tuple(int(o) for o in chosen), len(self.choices())
        if len(made) != count or any(not 0 <= o < len(TREE_OPERATIONS) for o in made):
            raise HastenError(f"a pyramid of trees is {count} numbers from 0 to {len(TREE_OPERATIONS) - 1}: got "
                              f"{list(chosen)!r:.80}")  # fmt: skip
        return made

    def of_letters(self, text: str) -> TreeChoices:
        """Operations as letters, a word a cell: ``i`` for none, ``3 5 7`` for separable convolutions, ``d`` for the
        dilated one, ``a m`` for pooling; of each half two branches, each an edge and the two behind it.

        Raises:
            HastenError: an unknown letter, or not one for each edge.
        """
        letters = "".join(text.split())
        if unknown := [c for c in letters if c not in _LETTERS]:
            raise HastenError(f"no operation of a tree is written {unknown[0]!r}: choose {', '.join(_LETTERS)}")
        return self.check([_LETTERS.index(c) for c in letters])

    def cells(self, chosen: Sequence[int]) -> list[TreeChoices]:
        """The operations of each cell."""
        made = self.check(chosen)
        return [made[i : i + TREE_EDGES] for i in range(0, len(made), TREE_EDGES)]

    def macs(self, chosen: Sequence[int]) -> int:
        """Multiply-accumulates of a network's convolutions and classifier, for one image."""
        total = 9 * self.channels * self.stem * self.resolution**2
        places = self.places()
        for place, cell in zip(places, self.cells(chosen), strict=True):
            wide, pixels = place.inner, place.out**2
            total += place.inputs * wide * place.size**2 + (9 * wide + place.outputs) * wide * pixels
            total += sum((k * k + wide) * wide * pixels for k in map(_kernel, cell) if k)
        return total + places[-1].outputs * self.classes

    def parts(self, chosen: Sequence[int]) -> list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]]:
        """What a network is a sum of: a key by its shapes, the part, and the shape of its input for one image."""
        side, places = self.resolution, self.places()
        found: list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]] = [
            (("stem", self.channels, self.stem, side), partial(_stem, self), (self.channels, side, side))
        ]
        for place, cell in zip(places, self.cells(chosen), strict=True):
            shape = (place.inner, place.out, place.out)
            enter = (("enter", *place), partial(_Enter, place), (place.inputs, place.size, place.size))
            leave = (("leave", *place), partial(_Leave, place), shape)
            found += [enter, *[(("half", *shape), partial(_Half, place.inner), shape)] * 2, leave]
            found += [(("add", *shape), _Twice, shape)] * 7
            found += [
                (("operation", o, *shape), partial(_operation, o, place.inner), shape) for o in cell if o
            ]  # fmt: skip
        last = places[-1]
        end = ("end", last.outputs, self.classes, last.out)
        return [*found, (end, partial(_end, last.outputs, self.classes), (last.outputs, last.out, last.out))]


# As published (github.com/han-cai/files, proxyless_cifar.config), a word a cell, a stage in three lines.
PUBLISHED: dict[str, tuple[PyramidTreeConfig, str]] = {
    "proxylessnas-cifar": (
        PyramidTreeConfig(),
        "7dim7m555d77 aaai3imdi7dd 73ai5a33add5 a5d53dd737i7 a5did577amim 77mm35ad37ii "
        "dimm777537ii d57d57maa537 75mdiim3amad 53ii37357i57 775a35dadid3 5a5d33a775d3 "
        "m73m7d3a5m7i 3md77d5i3d73 dm3adda5ii5i 5d5iaad55573 7555d3im7d37 miid3i757mid "
        "d5ama7573aam 7i7di7d37mm5 ma3didmm5mia d73aa337iadd dmam7i7didam 7m75mimadim7 "
        "ia55m5d7addm 3adidddaa3a3 dm77imm55m5d 3737aim377mm 7775a33id3a3 5aiia5a3a7am "
        "iad3i7i7maid 75im7dmdm777 3m37i35i335i dd37d733dimi mi5i5a3ai7ad 775mda775355 "
        "aaaada75iiia mia75iiaii7i d7m3i5a3iima 7a57a3ma3imm ia7ii7ia5ma7 d5iim57d75id "
        "miamamdi5a3i 75777ad3m77a ddmad37iddm5 aamd3md7diai ma7m335aidi3 57ddimm357mi "
        "73m7dammm55m mia5d3573377 ia5377i7773a 553mai5am55i 3d3mmaimd733 73m75i5m3m37",
    )
}


# -- parts -------------------------------------------------------------------------------------------


def _kernel(operation: int) -> int:
    """Of a convolution; 0 of another operation."""
    name = TREE_OPERATIONS[operation]
    return int(name[-1]) if "conv" in name else 0


def _operation(operation: int, width: int) -> nn.Module:
    """An operation of `TREE_OPERATIONS`, shapes stay."""
    name, kernel = TREE_OPERATIONS[operation], _kernel(operation)
    if kernel:
        dilation = 2 if name.startswith("dil") else 1
        padding = dilation * (kernel // 2)
        return nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, kernel, 1, padding, dilation, width, bias=False),
            nn.Conv2d(width, width, 1, bias=False),
        )  # fmt: skip
    if name.startswith("avg"):
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    return nn.MaxPool2d(3, 1, 1) if name.startswith("max") else nn.Identity()


def _stem(config: PyramidTreeConfig) -> nn.Sequential:
    conv = nn.Conv2d(config.channels, config.stem, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(config.stem))


class _Enter(nn.Module):
    """A block's first convolution and its cell's root, whose two groups are dealt out to both halves."""

    def __init__(self, place: TreePlace) -> None:
        super().__init__()
        wide = place.inner
        self.squeeze = nn.Sequential(nn.BatchNorm2d(place.inputs), nn.Conv2d(place.inputs, wide, 1, bias=False))
        self.root = nn.Sequential(
            nn.BatchNorm2d(wide), nn.ReLU(), nn.Conv2d(wide, 2 * wide, 3, place.stride, 1, groups=2, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(self.root(self.squeeze(x)), 2)


class _Half(nn.Module):
    """What a half's tree gave, normalized, is added to the half."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor, tree: Tensor | None = None) -> Tensor:
        y: Tensor = self.norm(x if tree is None else tree)
        return x + y


class _Leave(nn.Module):
    """A block's last convolution, and its addition to the input, which has zeros for the channels that it has not."""

    def __init__(self, place: TreePlace) -> None:
        super().__init__()
        self.widen = nn.Sequential(
            nn.BatchNorm2d(place.inner), nn.ReLU(), nn.Conv2d(place.inner, place.outputs, 1, bias=False),
            nn.BatchNorm2d(place.outputs),
        )  # fmt: skip
        self.shortcut = nn.AvgPool2d(2, 2, ceil_mode=True) if place.stride == 2 else nn.Identity()

    def forward(self, x: Tensor, given: Tensor | None = None) -> Tensor:
        y: Tensor = self.widen(x)
        if given is None:
            return y + y
        short: Tensor = self.shortcut(given)
        return y + F.pad(short, (0, 0, 0, 0, 0, y.shape[1] - short.shape[1]))


class _Twice(nn.Module):
    """What adding two maps costs."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x


class _TreeBlock(nn.Module):
    """A residual block with operations, or edges of several, in its tree."""

    def __init__(self, place: TreePlace, operations: Sequence[nn.Module]) -> None:
        super().__init__()
        self.width = place.inner
        self.enter, self.leave = _Enter(place), _Leave(place)
        self.halves = nn.ModuleList(_Half(place.inner) for _ in range(2))
        self.operations = nn.ModuleList(operations)

    def forward(self, x: Tensor) -> Tensor:
        halves = self.enter(x).split(self.width, 1)
        first, second = (
            half(part, self._tree(part, 6 * i)) for i, (half, part) in enumerate(zip(self.halves, halves, strict=True))
        )
        y: Tensor = self.leave(first + second, x)
        return y

    def _tree(self, x: Tensor, at: int) -> Tensor:
        """Two branches of three operations each, from number ``at`` on."""
        branches = []
        for i in (at, at + 3):
            y = self.operations[i](x)
            branches.append(self.operations[i + 1](y) + self.operations[i + 2](y))
        return branches[0] + branches[1]


def _head(width: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _end(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(_head(width), nn.Linear(width, classes) if classes else nn.Identity())


# -- networks ----------------------------------------------------------------------------------------


@published(PUBLISHED)
class PyramidTreeNet(Backbone):
    """A network of the space: an operation on each edge of each block's tree.

    Args:
        config: sizes.
        chosen: the operations, cell by cell; the published network's when None.

    >>> config = PyramidTreeConfig((1, 1), first=4, growth=4, stem=4, resolution=8)
    >>> net = PyramidTreeNet(config, config.of_letters("ii3i7da5m33i iiiiiiiiiiii"))
    >>> tuple(net(torch.zeros(2, 3, 8, 8)).shape)
    (2, 10)
    """

    def __init__(self, config: PyramidTreeConfig | None = None, chosen: Sequence[int] | None = None) -> None:
        super().__init__()
        known, letters = PUBLISHED["proxylessnas-cifar"]
        self.config = config = config or known
        self.chosen = config.of_letters(letters) if chosen is None else config.check(chosen)
        self.stem = _stem(config)
        pairs = iter(zip(config.places(), config.cells(self.chosen), strict=True))
        stages: list[list[nn.Module]] = []
        for depth in config.depths:
            stages.append([])
            for _ in range(depth):
                place, cell = next(pairs)
                stages[-1].append(_TreeBlock(place, [_operation(o, place.inner) for o in cell]))
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.head = _head(self.num_features)
        self.classifier = self.new_classifier(config.classes)

    @classmethod
    def named(cls, name: str, *, num_classes: int = 10, in_chans: int = 3) -> PyramidTreeNet:
        """A published network with weights at their start.

        Args:
            name: ``proxylessnas-cifar``.
            num_classes: logits; 0 for features.
            in_chans: channels of the image.

        Raises:
            HastenError: a size that no network has.
        """
        config, letters = published_size(name, PUBLISHED, {}, in_chans)
        config = replace(config, classes=num_classes, channels=in_chans)
        return cls(config, config.of_letters(letters))

    @property
    def levels(self) -> tuple[Level, ...]:
        places, last = self.config.places(), -1
        found = []
        for stage, depth in enumerate(self.config.depths):
            last += depth
            found.append(Level(places[last].outputs, 2**stage))
        return tuple(found)

    @property
    def example_side(self) -> int:
        return self.config.resolution

    @property
    def num_features(self) -> int:
        return self.config.places()[-1].outputs


class PyramidTreeSuperNet(MixedNetwork):
    """Every operation on every edge, a `MixedEdge` each.

    Args:
        config: sizes.

    Shapes: (batch, channels, resolution, resolution) to (batch, classes).

    >>> config = PyramidTreeConfig((1,), first=4, growth=0, stem=4, resolution=8)
    >>> len(PyramidTreeSuperNet(config).mixed)
    12
    """

    def __init__(self, config: PyramidTreeConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = _stem(config)
        self.blocks = nn.Sequential(*(_TreeBlock(place, _edges(place.inner)) for place in config.places()))
        self.end = _end(config.places()[-1].outputs, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.end(self.blocks(self.stem(images)))
        return logits

    if TYPE_CHECKING:
        __call__ = forward

    @property
    def resolution(self) -> int:
        return self.config.resolution

    def check(self, chosen: Sequence[int]) -> TreeChoices:
        return self.config.check(chosen)

    def extract(self, chosen: Sequence[int]) -> PyramidTreeNet:
        """A network of the space with copies of these weights.

        Raises:
            HastenError: it is none of the space.
        """
        made = PyramidTreeNet(self.config, chosen)
        blocks = [block for stage in made.stages for block in stage.children()]
        for block, source, cell in zip(blocks, self.blocks, self.config.cells(chosen), strict=True):
            assert isinstance(block, _TreeBlock)
            assert isinstance(source, _TreeBlock)
            for name in ("enter", "leave", "halves"):
                getattr(block, name).load_state_dict(getattr(source, name).state_dict())
            for operation, edge, o in zip(block.operations, source.operations, cell, strict=True):
                assert isinstance(edge, MixedEdge)
                operation.load_state_dict(edge.candidates[o].state_dict())
        made.stem.load_state_dict(self.stem.state_dict())
        made.head.load_state_dict(self.end[0].state_dict())
        made.classifier.load_state_dict(self.end[1].state_dict())
        return made.train(self.training)


def _edges(width: int) -> list[nn.Module]:
    return [MixedEdge([_operation(o, width) for o in range(len(TREE_OPERATIONS))]) for _ in range(TREE_EDGES)]
