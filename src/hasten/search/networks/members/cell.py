"""Networks of one repeated cell: NAS-Bench-201's space (arXiv 2001.00326) as an `ArchitectureSpace`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from hasten.cost.latency.modelled import Part
from hasten.models.vision.cell_network import LABELS, OPERATIONS, SKIP, Cell, CellConfig, CellNetwork
from hasten.search.networks.architecture_space import ArchitectureSpace, architecture_space


@architecture_space("cell")
@dataclass(frozen=True)
class CellSpace(ArchitectureSpace[Cell]):
    """Cells: six operations, one an edge.

    Args:
        config: of the networks around the cell.
    """

    config: CellConfig = field(default_factory=CellConfig)
    graph_labels = LABELS + 1
    prefers_graphs = True

    def sample(self, rng: random.Random) -> Cell:
        return self.config.sample(rng)

    def mutate(self, arch: Cell, rng: random.Random, chance: float = 0.1) -> Cell:
        return tuple(rng.randrange(len(OPERATIONS)) if rng.random() < chance else o for o in arch)

    def cross(self, one: Cell, other: Cell, rng: random.Random) -> Cell:
        return tuple(rng.choice(pair) for pair in zip(one, other, strict=True))

    def smallest(self) -> Cell:
        """The input goes straight to the output."""
        return (0, 0, 0, SKIP, 0, 0)

    def encode(self, arch: Cell) -> list[float]:
        return self.config.flat(arch)

    def counts(self, arch: Cell) -> list[float]:
        return self.config.counts(arch)

    def graphs(self, archs: Sequence[Cell]) -> Tensor:
        return self.config.codes(archs)

    def build(self, arch: Cell) -> nn.Module:
        return CellNetwork(self.config, arch)

    def input_shape(self, arch: Cell) -> tuple[int, int, int]:
        return (self.config.channels, self.config.resolution, self.config.resolution)

    def products(self, arch: Cell) -> int:
        return self.config.macs(arch)

    def parts(self, arch: Cell) -> Sequence[Part]:
        return self.config.parts(arch)

    def numbers(self, arch: Cell) -> Cell:
        return tuple(arch)

    def from_numbers(self, numbers: Sequence[int]) -> Cell:
        return self.config.check(numbers)
