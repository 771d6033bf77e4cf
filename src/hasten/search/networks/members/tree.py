"""ProxylessNAS' pyramids of trees for small images (arXiv 1812.00332, section 4.1) as an `ArchitectureSpace`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from hasten.cost.latency.modelled import Part
from hasten.models.vision.pyramid_tree import (
    TREE_EDGES,
    TREE_OPERATIONS,
    PyramidTreeConfig,
    PyramidTreeNet,
    PyramidTreeSuperNet,
    TreeChoices,
)
from hasten.search.networks.architecture_space import architecture_space
from hasten.search.networks.gene_space import GeneSpace
from hasten.search.parameter import Params, categorical
from hasten.search.space import Space


@architecture_space("tree", "pyramids of residual blocks around trees of operations (ProxylessNAS, small images)")
@dataclass(frozen=True)
class TreeSpace(GeneSpace[TreeChoices]):
    """Operations: one of seven on each of twelve edges of each block's tree.

    Args:
        config: of the networks.
    """

    config: PyramidTreeConfig = field(default_factory=PyramidTreeConfig)

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> TreeSpace:
        return cls(PyramidTreeConfig((1, 1, 1), 4, 8, 8, size, channels, classes))

    def super_network(self) -> PyramidTreeSuperNet:
        """Every operation on every edge, for searches by gradient."""
        return PyramidTreeSuperNet(self.config)

    @property
    def _names(self) -> tuple[str, ...]:
        blocks = range(1, sum(self.config.depths) + 1)
        return tuple(f"block-{b}-edge-{e}" for b in blocks for e in range(1, TREE_EDGES + 1))

    def genes(self) -> Space:
        return Space([categorical(name, TREE_OPERATIONS) for name in self._names])

    def from_params(self, params: Params) -> TreeChoices:
        return tuple(TREE_OPERATIONS.index(str(params[name])) for name in self._names)

    def to_params(self, arch: TreeChoices) -> Params:
        return {name: TREE_OPERATIONS[o] for name, o in zip(self._names, self.config.check(arch), strict=True)}

    def smallest(self) -> TreeChoices:
        """Nothing on every edge."""
        return (0,) * len(self._names)

    def counts(self, arch: TreeChoices) -> list[float]:
        """How often a network has each operation."""
        return [float(arch.count(o)) for o in range(len(TREE_OPERATIONS))]

    def build(self, arch: TreeChoices) -> nn.Module:
        return PyramidTreeNet(self.config, arch)

    def input_shape(self, arch: TreeChoices) -> tuple[int, int, int]:
        return (self.config.channels, self.config.resolution, self.config.resolution)

    def products(self, arch: TreeChoices) -> int:
        return self.config.macs(arch)

    def parts(self, arch: TreeChoices) -> Sequence[Part]:
        return self.config.parts(arch)
