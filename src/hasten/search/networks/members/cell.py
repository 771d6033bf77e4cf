"""Networks of one repeated cell: NAS-Bench-201's space (arXiv 2001.00326) as an `ArchitectureSpace`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from hasten.cost.latency.modelled import Part
from hasten.models.vision.cell_network import EDGES, LABELS, OPERATIONS, SKIP, Cell, CellConfig, CellNetwork
from hasten.search.networks.architecture_space import ArchitectureSpace, architecture_space
from hasten.search.parameter import Params, categorical
from hasten.search.space import Space

_PARAMETERS = tuple(f"edge-{start}-{end}" for start, end in EDGES)


@architecture_space("cell", "networks of one repeated cell of six operations (NAS-Bench-201)")
@dataclass(frozen=True)
class CellSpace(ArchitectureSpace[Cell]):
    """Cells: six operations, one an edge.

    Args:
        config: of the networks around the cell.
    """

    config: CellConfig = field(default_factory=CellConfig)
    graph_labels = LABELS + 1
    prefers_graphs = True

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> CellSpace:
        return cls(CellConfig(width=8, resolution=size, channels=channels, classes=classes))

    def space(self) -> Space:
        return Space([categorical(name, OPERATIONS) for name in _PARAMETERS])

    def from_params(self, params: Params) -> Cell:
        return tuple(OPERATIONS.index(str(params[name])) for name in _PARAMETERS)

    def to_params(self, arch: Cell) -> Params:
        return {name: OPERATIONS[o] for name, o in zip(_PARAMETERS, arch, strict=True)}

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
