"""Networks of one repeated cell with four nodes and five operations: NAS-Bench-201's space (arXiv 2001.00326)."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.nn.block import Block

OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP = 0, 1
# Edges (from, to) between nodes, in the order that the published names have them.
EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
# Labels of a code's nodes: what goes in, the operations, what comes out.
LABELS = 7

Cell = tuple[int, ...]


@dataclass(frozen=True)
class CellConfig:
    """The space: by default three stages of one cell each.

    Args:
        width: channels of the first stage, twice as many in each further one.
        repeats: cells a stage.
        resolution: height and width of the input, halved from stage to stage.
        channels, classes: of images and of the output.
    """

    width: int = 16
    repeats: int = 1
    resolution: int = 32
    channels: int = 3
    classes: int = 10

    def check(self, cell: Sequence[int]) -> Cell:
        """The cell, as a tuple.

        Raises:
            HastenError: it has not six operations, or one that does not exist.
        """
        made = tuple(int(o) for o in cell)
        if len(made) != len(EDGES) or any(not 0 <= o < len(OPERATIONS) for o in made):
            raise HastenError(f"a cell is {len(EDGES)} numbers from 0 to {len(OPERATIONS) - 1}: got {list(cell)}")
        return made

    @property
    def count(self) -> int:
        """Cells of the space."""
        return int(len(OPERATIONS) ** len(EDGES))

    def cell(self, index: int) -> Cell:
        """The cell of that number, from 0 to `count` - 1."""
        return tuple(index // len(OPERATIONS) ** i % len(OPERATIONS) for i in range(len(EDGES)))

    def sample(self, rng: random.Random) -> Cell:
        """A cell drawn evenly."""
        return self.cell(rng.randrange(self.count))

    def build(self, cell: Sequence[int]) -> tuple[nn.Module, Tensor]:
        """A network with random weights, for inference, and one image."""
        image = torch.randn(1, self.channels, self.resolution, self.resolution)
        return CellNetwork(self, cell).eval(), image

    def counts(self, cell: Sequence[int]) -> list[float]:
        """How often a network has each operation that is not left out: a coarse description, (4,)."""
        made = self.check(cell)
        used = live_edges(made)
        return [float(sum(u and o == k for u, o in zip(used, made, strict=True))) for k in range(1, len(OPERATIONS))]

    def flat(self, cell: Sequence[int]) -> list[float]:
        """One-hot operations of all edges, (30,)."""
        return [float(o == k) for o in self.check(cell) for k in range(len(OPERATIONS))]

    def macs(self, cell: Sequence[int]) -> int:
        """Multiply-accumulates of a network's convolutions and classifier, for one image."""
        _, small, large, _ = self.counts(cell)
        size, width = self.resolution, self.width
        total = 9 * self.channels * width * size**2
        for stage in range(3):
            if stage:
                size, width = (size + 1) // 2, 2 * width
                total += (9 * width * width // 2 + 9 * width * width + width * width // 2) * size**2
            total += self.repeats * int(small + 9 * large) * width * width * size**2
        return total + width * self.classes

    def parts(self, cell: Sequence[int]) -> list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]]:
        """What a network is a sum of: a key, the part, and the shape of its input for one image."""
        made = self.check(cell)
        used = live_edges(made)
        size, width = self.resolution, self.width
        found: list[tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]] = [
            ("stem", partial(_stem, self.channels, width), (self.channels, size, size))
        ]
        joined = sum(used) - len({end for u, (_, end) in zip(used, EDGES, strict=True) if u})
        for stage in range(3):
            if stage:
                found.append((("reduction", width), partial(_Reduction, width), (width, size, size)))
                size, width = (size + 1) // 2, 2 * width
            for _ in range(self.repeats):
                for operation, u in zip(made, used, strict=True):
                    if u and operation != SKIP:
                        make = partial(_operation, operation, width)
                        found.append(((operation, width), make, (width, size, size)))
                found += [(("add", width), _Twice, (width, size, size))] * joined
        found.append(("final", partial(_Final, width, self.classes), (width, size, size)))
        return found

    def encode(self, cell: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A graph with an operation a node: features (9, 8) and adjacency (9, 9), as HELP has them (arXiv 2106.08630).

        The nodes are the input, six operations, the output, and one that hears all others; features are one-hot. Row i
        of the adjacency marks the nodes that node i hears, itself among them.
        """
        made = self.check(cell)
        nodes = len(EDGES) + 2
        features, heard = torch.zeros(nodes + 1, LABELS + 1), torch.eye(nodes + 1)
        features[0, 0] = features[nodes - 1, LABELS - 1] = features[nodes, LABELS] = 1
        for i, (operation, (start, end)) in enumerate(zip(made, EDGES, strict=True), 1):
            features[i, 1 + operation] = 1
            if start == 0:
                heard[i, 0] = 1
            if end == 3:
                heard[nodes - 1, i] = 1
            for j, (_, before) in enumerate(EDGES, 1):
                if before == start:
                    heard[i, j] = 1
        heard[nodes] = 1
        return features, heard

    def codes(self, cells: Sequence[Sequence[int]]) -> Tensor:
        """Codes (count, 9, 17): features and adjacency side by side."""
        return torch.stack([torch.cat(self.encode(c), 1) for c in cells])


def cell_name(cell: Sequence[int]) -> str:
    """The name that NAS-Bench-201 gives a cell.

    >>> cell_name((4, 2, 1, 2, 1, 1))[:44]
    '|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connec'
    """
    parts = {end: "|" for _, end in EDGES}
    for operation, (start, end) in zip(cell, EDGES, strict=True):
        parts[end] += f"{OPERATIONS[operation]}~{start}|"
    return "+".join(parts[end] for end in (1, 2, 3))


def named_cell(name: str) -> Cell:
    """The cell of a published name.

    Raises:
        HastenError: it names none.
    """
    try:
        made = tuple(
            OPERATIONS.index(part.split("~")[0]) for group in name.split("+") for part in group.strip("|").split("|")
        )
    except ValueError:
        made = ()
    if len(made) != len(EDGES) or cell_name(made) != name:
        raise HastenError(f"no cell is called {name!r}")
    return made


def _operation(operation: int, width: int) -> nn.Module:
    """A pooling, or activation, convolution and batch norm."""
    if OPERATIONS[operation] == "avg_pool_3x3":
        return nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    kernel = 1 if OPERATIONS[operation] == "nor_conv_1x1" else 3
    conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(nn.ReLU(), conv, nn.BatchNorm2d(width))


def _stem(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))


class _Twice(nn.Module):
    """The sum of two tensors, as where edges meet."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x


class _Final(nn.Module):
    """Batch norm, activation, the mean over the picture, the classifier."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(x).mean((2, 3)))
        return logits


class _Cell(nn.Module):
    """One cell; what the output does not depend on is left out, as every exporter does."""

    def __init__(self, width: int, cell: Cell) -> None:
        super().__init__()
        used = live_edges(cell)
        self.edges = [(start, end, i) for i, (start, end) in enumerate(EDGES) if used[i]]
        made: dict[str, nn.Module] = {}
        for _, _, i in self.edges:
            if cell[i] != SKIP:
                made[str(i)] = _operation(cell[i], width)
        self.operations = nn.ModuleDict(made)

    def forward(self, x: Tensor) -> Tensor:
        nodes: list[Tensor | None] = [x, None, None, None]
        for start, end, i in self.edges:
            value = nodes[start]
            assert value is not None
            made = self.operations[str(i)](value) if str(i) in self.operations else value
            held = nodes[end]
            nodes[end] = made if held is None else held + made
        # Nothing reaches the output: zeros.
        return torch.zeros_like(x) if nodes[3] is None else nodes[3]


def live_edges(cell: Sequence[int]) -> list[bool]:
    """Of every edge, whether it lies on a path from the input to the output that no ``none`` breaks."""
    reached, needed = {0}, {3}
    for (start, end), operation in zip(EDGES, cell, strict=True):
        if operation != NONE and start in reached:
            reached.add(end)
    for (start, end), operation in reversed(list(zip(EDGES, cell, strict=True))):
        if operation != NONE and end in needed:
            needed.add(start)
    return [o != NONE and s in reached and e in needed for (s, e), o in zip(EDGES, cell, strict=True)]


class _Reduction(nn.Module):
    """Halves the picture and doubles the channels: two 3x3 convolutions beside a pooled 1x1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(2 * width),
        )
        self.side = nn.Sequential(nn.AvgPool2d(2, 2), nn.Conv2d(width, 2 * width, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.main(x) + self.side(x)
        return made


class CellNetwork(Block):
    """A network of the space.

    Args:
        config: of the space.
        cell: indices into `OPERATIONS`, one an edge.

    Shapes: (batch, channels, resolution, resolution) to (batch, classes).
    """

    def __init__(self, config: CellConfig, cell: Sequence[int]) -> None:
        super().__init__()
        self.config, self.cell = config, config.check(cell)
        width = config.width
        layers: list[nn.Module] = [_stem(config.channels, width)]
        for stage in range(3):
            if stage:
                layers.append(_Reduction(width))
                width *= 2
            layers += [_Cell(width, self.cell) for _ in range(config.repeats)]
        self.layers = nn.Sequential(*layers)
        self.final = _Final(width, config.classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.final(self.layers(images))
        return logits

    if TYPE_CHECKING:
        __call__ = forward
