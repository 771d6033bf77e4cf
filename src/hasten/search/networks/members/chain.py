"""Chains of mobile blocks: FBNet's space (arXiv 1812.03443) as an `ArchitectureSpace`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from hasten.cost.latency.modelled import Part
from hasten.models.vision.mobile_chain import OPERATIONS, SKIP, Chain, ChainConfig, MobileChain, chain_macs
from hasten.search.networks.architecture_space import ArchitectureSpace, architecture_space
from hasten.search.parameter import Params, categorical
from hasten.search.space import Space


@architecture_space("chain", "chains of mobile blocks, one of nine at each place (FBNet)")
@dataclass(frozen=True)
class ChainSpace(ArchitectureSpace[Chain]):
    """Chains: an operation at each place.

    Args:
        config: of the networks.
        varied: whether samples differ in size (`ChainConfig.sample_varied`), or are drawn evenly, place by place, which
            makes nearly all of them take the same time.
    """

    config: ChainConfig = field(default_factory=ChainConfig)
    varied: bool = True
    graph_labels = SKIP + 4

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> ChainSpace:
        return cls(ChainConfig(last=512, resolution=size, channels=channels, classes=classes))

    @property
    def _parameters(self) -> tuple[str, ...]:
        return tuple(f"block-{i}" for i in range(1, self.config.places + 1))

    def space(self) -> Space:
        return Space([categorical(name, OPERATIONS) for name in self._parameters])

    def from_params(self, params: Params) -> Chain:
        return tuple(OPERATIONS.index(str(params[name])) for name in self._parameters)

    def to_params(self, arch: Chain) -> Params:
        return {name: OPERATIONS[o] for name, o in zip(self._parameters, arch, strict=True)}

    def sample(self, rng: random.Random) -> Chain:
        return self.config.sample_varied(rng) if self.varied else self.config.sample(rng)

    def mutate(self, arch: Chain, rng: random.Random, chance: float = 0.1) -> Chain:
        return tuple(rng.randrange(SKIP + 1) if rng.random() < chance else o for o in arch)

    def cross(self, one: Chain, other: Chain, rng: random.Random) -> Chain:
        return tuple(rng.choice(pair) for pair in zip(one, other, strict=True))

    def smallest(self) -> Chain:
        return (SKIP,) * self.config.places

    def encode(self, arch: Chain) -> list[float]:
        return self.config.encode(arch)

    def counts(self, arch: Chain) -> list[float]:
        return self.config.counts(arch)

    def graphs(self, archs: Sequence[Chain]) -> Tensor:
        return self.config.graphs(archs)

    def build(self, arch: Chain) -> nn.Module:
        return MobileChain(self.config, arch)

    def input_shape(self, arch: Chain) -> tuple[int, int, int]:
        return (self.config.channels, self.config.resolution, self.config.resolution)

    def products(self, arch: Chain) -> int:
        return chain_macs(self.config, arch)

    def parts(self, arch: Chain) -> Sequence[Part]:
        return self.config.parts(arch)

    def numbers(self, arch: Chain) -> Chain:
        return tuple(arch)

    def from_numbers(self, numbers: Sequence[int]) -> Chain:
        return self.config.check(numbers)
