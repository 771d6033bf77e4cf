"""Sub-networks of a once-for-all network (arXiv 1908.09791) as an `ArchitectureSpace`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from hasten.cost.latency.modelled import Part
from hasten.errors import HastenError
from hasten.models.vision.once_for_all import Architecture, OFAConfig, SubNetwork, from_params
from hasten.search.networks.architecture_space import ArchitectureSpace, architecture_space
from hasten.search.parameter import Params, ordinal
from hasten.search.space import Space


@architecture_space("once-for-all", "sub-networks of an elastic MobileNetV3 (Once-for-All)")
@dataclass(frozen=True)
class OnceForAllSpace(ArchitectureSpace[Architecture]):
    """Sub-networks: depths of stages, kernels and expansions of blocks, and the size of the input.

    Args:
        config: of the space.
        resize: chance of a mutant's resolution to be drawn anew.
    """

    config: OFAConfig = field(default_factory=OFAConfig)
    resize: float = 0.5

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> OnceForAllSpace:
        return cls(
            OFAConfig(
                widths=(8, 16, 24), strides=(2, 2, 1), activations=("relu", "h_swish", "h_swish"),
                se=(False, True, True), depths=(1, 2, 3), resolutions=(size - size // 4, size, size + size // 4),
                stem=8, final=64, last=64, channels=channels, classes=classes, dropout=0.0,
            )
        )  # fmt: skip

    def space(self) -> Space:
        """Depth of each stage, kernel and expansion of each block that is there, and resolution.

        It has as many points as the network has sub-networks.
        """
        config = self.config
        parameters = [ordinal("resolution", config.resolutions)]
        for s in range(1, len(config.widths) + 1):
            parameters.append(ordinal(f"depth-{s}", config.depths))
            for j in range(1, config.depths[-1] + 1):
                when = {f"depth-{s}": [d for d in config.depths if d >= j]}
                parameters.append(ordinal(f"kernel-{s}-{j}", config.kernels, when))
                parameters.append(ordinal(f"expand-{s}-{j}", config.expands, when))
        return Space(parameters)

    def from_params(self, params: Params) -> Architecture:
        return from_params(self.config, params)

    def to_params(self, arch: Architecture) -> Params:
        params: Params = {"resolution": arch.resolution}
        top = self.config.depths[-1]
        for s, depth in enumerate(arch.depths, 1):
            params[f"depth-{s}"] = depth
            for j in range(1, depth + 1):
                at = (s - 1) * top + j - 1
                params[f"kernel-{s}-{j}"], params[f"expand-{s}-{j}"] = arch.kernels[at], arch.expands[at]
        return params

    def sample(self, rng: random.Random) -> Architecture:
        return self.config.sample(rng)

    def mutate(self, arch: Architecture, rng: random.Random, chance: float = 0.1) -> Architecture:
        return self._mutant(arch, rng, chance, self.resize)

    def _mutant(self, arch: Architecture, rng: random.Random, chance: float, resize: float) -> Architecture:
        config = self.config

        def drawn(values: Sequence[int], choices: Sequence[int]) -> list[int]:
            return [rng.choice(choices) if rng.random() < chance else v for v in values]

        size = rng.choice(config.resolutions) if rng.random() < resize else arch.resolution
        return config.architecture(
            drawn(arch.kernels, config.kernels),
            drawn(arch.expands, config.expands),
            drawn(arch.depths, config.depths),
            size,
        )

    def cross(self, one: Architecture, other: Architecture, rng: random.Random) -> Architecture:
        def either(a: Sequence[int], b: Sequence[int]) -> list[int]:
            return [rng.choice(pair) for pair in zip(a, b, strict=True)]

        return self.config.architecture(
            either(one.kernels, other.kernels),
            either(one.expands, other.expands),
            either(one.depths, other.depths),
            rng.choice((one.resolution, other.resolution)),
        )

    def smallest(self) -> Architecture:
        c = self.config
        return c.architecture(c.kernels[0], c.expands[0], c.depths[0], c.resolutions[0])

    def near_smallest(self, rng: random.Random) -> Architecture:
        return self._mutant(self.smallest(), rng, 0.3, 0.3)

    def encode(self, arch: Architecture) -> list[float]:
        return self.config.encode(arch)

    def counts(self, arch: Architecture) -> list[float]:
        """Blocks of each kernel and of each expansion, and the number of pixels."""
        used = self.config.used(arch.depths)
        row = [float(sum(u and k == option for k, u in zip(arch.kernels, used, strict=True)))
               for option in self.config.kernels]  # fmt: skip
        row += [float(sum(u and e == option for e, u in zip(arch.expands, used, strict=True)))
                for option in self.config.expands]  # fmt: skip
        return [*row, float(arch.resolution**2)]

    def build(self, arch: Architecture) -> nn.Module:
        return SubNetwork(self.config, arch)

    def input_shape(self, arch: Architecture) -> tuple[int, int, int]:
        return (self.config.channels, arch.resolution, arch.resolution)

    def parts(self, arch: Architecture) -> Sequence[Part]:
        return self.config.parts(arch)

    def numbers(self, arch: Architecture) -> tuple[int, ...]:
        """Kernels, expansions, depths and the resolution, as HELP's published tables have them."""
        return (*arch.kernels, *arch.expands, *arch.depths, arch.resolution)

    def from_numbers(self, numbers: Sequence[int]) -> Architecture:
        blocks, stages = self.config.blocks, len(self.config.widths)
        row = [int(n) for n in numbers]
        if len(row) != 2 * blocks + stages + 1:
            raise HastenError(f"a sub-network is {2 * blocks + stages + 1} numbers: got {len(row)}")
        return self.config.architecture(row[:blocks], row[blocks : 2 * blocks], row[2 * blocks : -1], row[-1])
