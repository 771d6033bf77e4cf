"""DARTS' super-network (arXiv 1806.09055), with PC-DARTS' partial channels and edge weights (1907.05737, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.vision.darts import (
    EDGES,
    KINDS,
    NODES,
    OPERATIONS,
    CellKind,
    CellPlace,
    Choice,
    DartsConfig,
    Genotype,
    cell_end,
    cell_entry,
    cell_operation,
    cell_stem,
    genotype,
)
from hasten.nn.block import Block
from hasten.nn.mixed_edge import MixedEdge, mixed_edges


def edge_weights(betas: Tensor | None) -> Tensor:
    """Weights of a cell's edges (14,): a softmax over the edges of each node; ones without ``betas`` (14,)."""
    if betas is None:
        return torch.ones(len(EDGES))
    return torch.cat([part.softmax(0) for part in betas.split([2 + node for node in range(NODES)])])


class DartsSuperCell(Block):
    """A cell with every operation on every edge.

    Args:
        place: where it stands.
        part: the operations get 1/part of each edge's channels.
        random: which channels: drawn, or the first.

    Shapes: the maps of two cells, logits of operations (14, 8), weights of edges (14,) to (batch, 4 width, inner,
    inner).
    """

    edges: nn.ModuleList

    def __init__(self, place: CellPlace, part: int = 1, random: bool = False) -> None:
        super().__init__()
        self.place = place
        self.first = cell_entry(place.before, place.width, place.halved, False)
        self.second = cell_entry(place.last, place.width, False, False)
        self.edges = nn.ModuleList(_mixed(place.width, place.stride(start), part, random) for start, _ in EDGES)

    def forward(self, before: Tensor, last: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
        maps = [self.first(before), self.second(last)]
        for k, (start, node) in enumerate(EDGES):
            x = weights[k] * self.edges[k](maps[start], logits[k])
            if node < len(maps):
                maps[node] = maps[node] + x
            else:
                maps.append(x)
        return torch.cat(maps[2:], 1)

    if TYPE_CHECKING:
        __call__ = forward


def _mixed(width: int, stride: int, part: int, random: bool) -> MixedEdge:
    if width % part:
        raise HastenError(f"{width} channels are not {part} equal parts: give another width or part")
    candidates = []
    for name in OPERATIONS:
        made = cell_operation(name, width // part, stride, False)
        # Pools have no norm of their own, and would weigh more or less than convolutions by the size of the map.
        pools = "pool" in name
        candidates.append(nn.Sequential(made, nn.BatchNorm2d(width // part, affine=False)) if pools else made)
    bypass = nn.Identity() if stride == 1 else nn.MaxPool2d(2, 2, ceil_mode=True)
    return MixedEdge(candidates, part, bypass, random, own=False)


class DartsSuperNet(Block):
    """Cells with every operation on every edge: DARTS' at a part of 1 without normalized edges, else PC-DARTS'.

    Args:
        config: sizes; 16 channels and 8 cells when None, as the paper searches.
        part: the operations get 1/part of each edge's channels.
        normalized: whether each edge has a weight, a softmax over those of its node.
        random: which channels: drawn by `draw`, or the first, shuffled behind each edge.

    Shapes: (batch, channels, height, width) to (batch, classes).

    Raises:
        HastenError: a width that is not that many equal parts.

    >>> net = DartsSuperNet(DartsConfig(8, 3, resolution=8, channels=1))
    >>> tuple(net(torch.zeros(2, 1, 8, 8)).shape), tuple(net.alphas["normal"].shape)
    ((2, 10), (14, 8))
    """

    cells: nn.ModuleList

    def __init__(
        self, config: DartsConfig | None = None, part: int = 4, normalized: bool = True, random: bool = False
    ) -> None:
        super().__init__()
        self.config = config = config or DartsConfig(16, 8)
        self.part, self.normalized, self.random = part, normalized, random
        layout = config.layout()
        self.stem = cell_stem(config)
        self.cells = nn.ModuleList(DartsSuperCell(place, part, random) for place in layout)
        self.end = cell_end(NODES * layout[-1].width, config.classes)
        self.alphas = nn.ParameterDict({k: nn.Parameter(torch.empty(len(EDGES), len(OPERATIONS))) for k in KINDS})
        self.betas = nn.ParameterDict({k: nn.Parameter(torch.empty(len(EDGES))) for k in KINDS if normalized})
        self._start()

    def _start(self) -> None:
        for parameter in self.logits():
            nn.init.normal_(parameter, std=1e-3)

    @property
    def super_cells(self) -> list[DartsSuperCell]:
        """Its cells in their order."""
        return [cell for cell in self.cells if isinstance(cell, DartsSuperCell)]

    def logits(self) -> list[nn.Parameter]:
        """What the cells are learned by: of operations and of edges, shared by all cells of a kind."""
        return [*self.alphas.values(), *self.betas.values()]

    def weights(self) -> Iterator[nn.Parameter]:
        """All parameters but `logits`."""
        own = {id(p) for p in self.logits()}
        return (p for p in self.parameters() if id(p) not in own)

    def edge_weights(self, kind: CellKind) -> Tensor:
        """Of a kind of cell's edges (14,), those of each node summing to 1; ones where they are not normalized."""
        found = edge_weights(self.betas[kind] if self.normalized else None)
        return found.to(self.alphas[kind])

    def forward(self, images: Tensor) -> Tensor:
        before, last = self.stem(images)
        weights = {kind: self.edge_weights(kind) for kind in KINDS}
        for cell in self.super_cells:
            kind = cell.place.kind
            before, last = last, cell(before, last, self.alphas[kind], weights[kind])
        logits: Tensor = self.end(last)
        return logits

    if TYPE_CHECKING:
        __call__ = forward

    def draw(self, generator: torch.Generator | None = None) -> None:
        """Draws anew which channels the operations get, where that is random."""
        for cell in self.super_cells:
            for edge in mixed_edges(cell):
                edge.draw("mixture", generator, channels=cell.place.width, logits=self.alphas["normal"][0])

    @torch.no_grad()
    def scores(self, kind: CellKind) -> Tensor:
        """Of each edge and operation (14, 8): the product of their weights."""
        return self.alphas[kind].softmax(1) * self.edge_weights(kind)[:, None]

    def derive(self) -> Genotype:
        """The genotype: of each node the two edges with the best operation that is not ``none``, each with that."""
        return genotype(*(best_pairs(self.scores(kind)) for kind in KINDS))


def best_pairs(scores: Tensor) -> list[Choice]:
    """The pairs of a cell by scores of edges and operations (14, 8), ``none`` aside."""
    values, chosen = scores[:, 1:].max(1)
    pairs: list[Choice] = []
    for node in range(2, 2 + NODES):
        edges = [k for k, (_, end) in enumerate(EDGES) if end == node]
        best = sorted(edges, key=lambda k: -float(values[k]))[:2]
        pairs += [(OPERATIONS[1 + int(chosen[k])], EDGES[k][0]) for k in best]
    return pairs
