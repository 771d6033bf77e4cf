"""ProxylessNAS' blocks, one of several or none at each place (arXiv 1812.00332), as an `ArchitectureSpace`."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from hasten.cost.latency.modelled import Part
from hasten.cost.latency.part_tables import part_key
from hasten.errors import HastenError
from hasten.models.vision.proxyless import BlockChoices, ProxylessConfig, ProxylessNet, ProxylessSuperNet
from hasten.search.networks.architecture_space import ArchitectureSpace, architecture_space
from hasten.search.parameter import Params, categorical
from hasten.search.space import Space


@architecture_space("proxyless", "inverted bottlenecks, one of six or none at each place (ProxylessNAS)")
@dataclass(frozen=True)
class ProxylessSpace(ArchitectureSpace[BlockChoices]):
    """Blocks: the kernel and expansion at each place, or none where the shape stays.

    Args:
        config: of the networks.
    """

    config: ProxylessConfig = field(default_factory=ProxylessConfig)

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> ProxylessSpace:
        return cls(
            ProxylessConfig(
                (16, 32), (3, 3), (2, 2), stem=16, first=8, last=128, stem_stride=1, resolution=size,
                channels=channels, classes=classes,
            )
        )  # fmt: skip

    @property
    def _parameters(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        names = self.config.operations
        return tuple((f"block-{i}", names[:n]) for i, n in enumerate(self.config.choices(), 1))

    def super_network(self) -> ProxylessSuperNet:
        """Every choice at every place, for searches by gradient."""
        return ProxylessSuperNet(self.config)

    def space(self) -> Space:
        return Space([categorical(name, choices) for name, choices in self._parameters])

    def from_params(self, params: Params) -> BlockChoices:
        return tuple(choices.index(str(params[name])) for name, choices in self._parameters)

    def to_params(self, arch: BlockChoices) -> Params:
        return {name: choices[o] for (name, choices), o in zip(self._parameters, arch, strict=True)}

    def sample(self, rng: random.Random) -> BlockChoices:
        return tuple(rng.randrange(n) for n in self.config.choices())

    def mutate(self, arch: BlockChoices, rng: random.Random, chance: float = 0.1) -> BlockChoices:
        choices = self.config.choices()
        return tuple(rng.randrange(n) if rng.random() < chance else o for n, o in zip(choices, arch, strict=True))

    def cross(self, one: BlockChoices, other: BlockChoices, rng: random.Random) -> BlockChoices:
        return tuple(rng.choice(pair) for pair in zip(one, other, strict=True))

    def smallest(self) -> BlockChoices:
        config = self.config
        least = min(range(config.none), key=lambda i: config.blocks[i])
        return tuple(config.none if n > config.none else least for n in config.choices())

    def encode(self, arch: BlockChoices) -> list[float]:
        """One-hot kernel and expansion of each place; zeros for none."""
        kernels, expands = self.config.kernels, self.config.expands
        row: list[float] = []
        for o in arch:
            kernel, expand = (0, 0) if o == self.config.none else self.config.blocks[o]
            row += [float(kernel == k) for k in kernels] + [float(expand == e) for e in expands]
        return row

    def counts(self, arch: BlockChoices) -> list[float]:
        """How often a network has each choice."""
        return [float(arch.count(o)) for o in range(self.config.none + 1)]

    def build(self, arch: BlockChoices) -> nn.Module:
        return ProxylessNet(self.config, arch)

    def input_shape(self, arch: BlockChoices) -> tuple[int, int, int]:
        return (self.config.channels, self.config.resolution, self.config.resolution)

    def products(self, arch: BlockChoices) -> int:
        return self.config.macs(arch)

    def parts(self, arch: BlockChoices) -> Sequence[Part]:
        return self.config.parts(arch)

    def published_latency(self, table: Mapping[str, float]) -> Callable[[BlockChoices], float]:
        """Latency of a network as the sum of a published table's parts.

        Args:
            table: of `hasten.cost.latency.part_tables`; `pixel_1_parts` is of the paper's space, the default `config`.

        Returns:
            Seconds of a network. It raises a `HastenError` where the table lacks a part.
        """
        config, places = self.config, self.config.places()
        half, size = places[0].size, -(-places[-1].size // places[-1].stride)
        whole = (config.resolution, config.resolution, config.channels)
        first, last = (half, half, config.stem), (size, size, config.last)
        block = partial(part_key, "expanded_conv")
        fixed = (
            part_key("Conv", whole, first),
            block(first, (half, half, config.first), expand=1, kernel=3, stride=1, idskip=0),
            part_key("Conv_1", (size, size, config.widths[-1]), last),
            part_key("Logits", last, (config.classes,)),
        )

        def latency(arch: BlockChoices) -> float:
            keys = list(fixed)
            for o, place in zip(arch, places, strict=True):
                if o == config.none:
                    continue
                (kernel, expand), out = config.blocks[o], -(-place.size // place.stride)
                given, made = (place.size, place.size, place.inputs), (out, out, place.outputs)
                keys.append(
                    block(given, made, expand=expand, kernel=kernel, stride=place.stride, idskip=int(place.skips))
                )
            if missing := [key for key in keys if key not in table]:
                raise HastenError(f"the table lacks {missing[0]}: it is of networks of other shapes")
            return sum(table[key] for key in keys)

        return latency

    def numbers(self, arch: BlockChoices) -> BlockChoices:
        return tuple(arch)

    def from_numbers(self, numbers: Sequence[int]) -> BlockChoices:
        return self.config.check(numbers)
