"""Networks of two learned cells: DARTS' space (arXiv 1806.09055) as an `ArchitectureSpace`."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from hasten.cost.latency.modelled import Part
from hasten.errors import HastenError
from hasten.models.vision.darts import (
    EDGES,
    KINDS,
    NODES,
    OPERATIONS,
    CellKind,
    Choice,
    DartsConfig,
    DartsNetwork,
    Genotype,
    genotype,
)
from hasten.search.networks.architecture_space import ArchitectureSpace, architecture_space
from hasten.search.networks.darts_super_net import DartsSuperNet
from hasten.search.parameter import Params, categorical
from hasten.search.space import Space

_USED = OPERATIONS[1:]
# Of each node: every two inputs that it may read.
_PAIRS = tuple(tuple(itertools.combinations(range(node + 2), 2)) for node in range(NODES))
Node = tuple[Choice, Choice]


@architecture_space("darts", "two learned cells of four nodes, seven operations on their edges (DARTS, PC-DARTS)")
@dataclass(frozen=True)
class DartsSpace(ArchitectureSpace[Genotype]):
    """Genotypes: two inputs of every node, and an operation on each.

    Args:
        config: sizes of the networks.
    """

    config: DartsConfig = field(default_factory=DartsConfig)

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> DartsSpace:
        return cls(DartsConfig(16, 4, resolution=size, channels=channels, classes=classes))

    def super_network(self, part: int = 4, normalized: bool = True, random: bool = False) -> DartsSuperNet:
        """Every operation on every edge, for searches by gradient: the arguments are those of `DartsSuperNet`."""
        return DartsSuperNet(self.config, part, normalized, random)

    def _nodes(self, arch: Genotype) -> list[Node]:
        """Of both cells, node by node, its pairs."""
        return [(cell[2 * n], cell[2 * n + 1]) for cell in (arch.normal, arch.reduce) for n in range(NODES)]

    def _of_nodes(self, nodes: Sequence[Node]) -> Genotype:
        pairs = [pair for node in nodes for pair in node]
        return genotype(pairs[: 2 * NODES], pairs[2 * NODES :])

    def _drawn(self, node: int, rng: random.Random) -> Node:
        first, second = rng.choice(_PAIRS[node])
        return (rng.choice(_USED), first), (rng.choice(_USED), second)

    def sample(self, rng: random.Random) -> Genotype:
        return self._of_nodes([self._drawn(n, rng) for _ in KINDS for n in range(NODES)])

    def mutate(self, arch: Genotype, rng: random.Random, chance: float = 0.1) -> Genotype:
        """Each node's inputs and each operation are drawn anew with this chance."""
        made: list[Node] = []
        for k, node in enumerate(self._nodes(arch)):
            inputs = rng.choice(_PAIRS[k % NODES]) if rng.random() < chance else (node[0][1], node[1][1])
            first, second = (rng.choice(_USED) if rng.random() < chance else o for o, _ in node)
            made.append(((first, inputs[0]), (second, inputs[1])))
        return self._of_nodes(made)

    def cross(self, one: Genotype, other: Genotype, rng: random.Random) -> Genotype:
        """Each node is that of one or the other."""
        return self._of_nodes([rng.choice(p) for p in zip(self._nodes(one), self._nodes(other), strict=True)])

    def smallest(self) -> Genotype:
        """Maps passed on wherever that costs nothing, else pooled."""

        def cell(kind: CellKind) -> list[Node]:
            def cheapest(start: int) -> Choice:
                return ("max_pool_3x3" if kind == "reduce" and start < 2 else "skip_connect", start)

            return [(cheapest(n), cheapest(n + 1)) for n in range(NODES)]

        return self._of_nodes([*cell("normal"), *cell("reduce")])

    def _places(self) -> list[tuple[str, CellKind, int]]:
        return [(f"{kind}-{n + 2}", kind, n) for kind in KINDS for n in range(NODES)]

    def space(self) -> Space:
        parameters = []
        for name, _, node in self._places():
            if len(_PAIRS[node]) > 1:
                parameters.append(categorical(f"{name}-inputs", [f"{a}+{b}" for a, b in _PAIRS[node]]))
            parameters += [categorical(f"{name}-{which}", _USED) for which in ("first", "second")]
        return Space(parameters)

    def from_params(self, params: Params) -> Genotype:
        nodes: list[Node] = []
        for name, _, _ in self._places():
            first, second = map(int, str(params.get(f"{name}-inputs", "0+1")).split("+"))
            nodes.append(((str(params[f"{name}-first"]), first), (str(params[f"{name}-second"]), second)))
        return self._of_nodes(nodes)

    def to_params(self, arch: Genotype) -> Params:
        params: dict[str, str | int | float | bool | None] = {}
        for (name, _, number), node in zip(self._places(), self._nodes(arch), strict=True):
            if len(_PAIRS[number]) > 1:
                params[f"{name}-inputs"] = f"{node[0][1]}+{node[1][1]}"
            params |= {f"{name}-first": node[0][0], f"{name}-second": node[1][0]}
        return params

    def encode(self, arch: Genotype) -> list[float]:
        """Of each cell's fourteen edges the operation one-hot; zeros where the edge is not there."""
        row: list[float] = []
        for kind in KINDS:
            cell = arch.of(kind)
            used = {(start, 2 + k // 2): o for k, (o, start) in enumerate(cell)}
            row += [float(used.get(edge) == o) for edge in EDGES for o in _USED]
        return row

    def counts(self, arch: Genotype) -> list[float]:
        """How often each cell has each operation."""
        return [float(sum(o == name for o, _ in arch.of(kind))) for kind in KINDS for name in _USED]

    def build(self, arch: Genotype) -> nn.Module:
        return DartsNetwork(self.config, arch)

    def input_shape(self, arch: Genotype) -> tuple[int, int, int]:
        return (self.config.channels, self.config.resolution, self.config.resolution)

    def products(self, arch: Genotype) -> int:
        return self.config.macs(arch)

    def parts(self, arch: Genotype) -> Sequence[Part]:
        return self.config.parts(arch)

    def numbers(self, arch: Genotype) -> tuple[int, ...]:
        """Of both cells, pair by pair, the operation's number and the input."""
        return tuple(n for cell in (arch.normal, arch.reduce) for o, i in cell for n in (OPERATIONS.index(o), i))

    def from_numbers(self, numbers: Sequence[int]) -> Genotype:
        row = [int(n) for n in numbers]
        if len(row) != 8 * NODES or any(not 0 < o < len(OPERATIONS) for o in row[::2]):
            raise HastenError(
                f"a genotype is {8 * NODES} numbers, an operation from 1 to {len(OPERATIONS) - 1} and an input in "
                f"turn: got {row!r:.80}"
            )
        pairs = [(OPERATIONS[o], i) for o, i in zip(row[::2], row[1::2], strict=True)]
        return genotype(pairs[: 2 * NODES], pairs[2 * NODES :])
