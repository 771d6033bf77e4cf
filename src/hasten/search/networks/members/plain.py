"""Plain convolutional networks by layer: the first space of EAS (arXiv 1707.04873)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hasten.cost.latency.modelled import Part
from hasten.errors import HastenError
from hasten.models.vision.plain import PlainLayers, PlainNet, plain_parts
from hasten.search.networks.architecture_space import architecture_space
from hasten.search.networks.growing_space import GrowingSpace, Grown
from hasten.search.parameter import Params, ordinal
from hasten.search.space import Space


@architecture_space("plain", "plain convolutional networks, of any layers a block (EAS)")
@dataclass(frozen=True)
class PlainSpace(GrowingSpace[PlainLayers]):
    """Blocks of convolutions and linear layers; by default the paper's sizes.

    Args:
        blocks: of convolutions.
        depth: convolutions of a block, at most.
        dense: linear layers before the last, at most; at least one.
        filters, kernels, units: what layers may be.
        image, channels, classes: of the images.

    Raises:
        HastenError: images that cannot be halved between the blocks.
    """

    blocks: int = 4
    depth: int = 10
    dense: int = 4
    filters: tuple[int, ...] = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 576, 640)
    kernels: tuple[int, ...] = (1, 3, 5)
    units: tuple[int, ...] = (64, 128, 256, 384, 512, 640, 768, 896, 1024, 1152, 1280)
    image: int = 32
    channels: int = 3
    classes: int = 10

    def __post_init__(self) -> None:
        if min(self.blocks, self.depth, self.dense) < 1 or self.image < 2 ** (self.blocks - 1):
            raise HastenError("a plain network has blocks, layers in each, and images that are halved between them")

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> PlainSpace:
        return cls(3, 3, 2, (8, 16, 24, 32, 48), (1, 3, 5), (16, 32, 64), size, channels, classes)

    @property
    def _sizes(self) -> list[int]:
        """Layers of each block at most, the linear ones last."""
        return [self.depth] * self.blocks + [self.dense]

    def genes(self) -> Space:
        parameters = []
        for b, most in enumerate(self._sizes):
            name = f"block-{b + 1}" if b < self.blocks else "dense"
            parameters.append(ordinal(name, range(1, most + 1)))
            for i in range(1, most + 1):
                when = {name: list(range(i, most + 1))} if i > 1 else None
                if b < self.blocks:
                    parameters.append(ordinal(f"kernel-{b + 1}-{i}", self.kernels, when))
                    parameters.append(ordinal(f"filters-{b + 1}-{i}", self.filters, when))
                else:
                    parameters.append(ordinal(f"units-{i}", self.units, when))
        return Space(parameters)

    def from_params(self, params: Params) -> PlainLayers:
        at: dict[str, Any] = dict(params)
        return PlainLayers(
            tuple(
                tuple((at[f"kernel-{b}-{i}"], at[f"filters-{b}-{i}"]) for i in range(1, at[f"block-{b}"] + 1))
                for b in range(1, self.blocks + 1)
            ),
            tuple(at[f"units-{i}"] for i in range(1, at["dense"] + 1)),
        )

    def to_params(self, arch: PlainLayers) -> Params:
        found: Params = {}
        for b, block in enumerate(arch.blocks, 1):
            found[f"block-{b}"] = len(block)
            for i, (kernel, filters) in enumerate(block, 1):
                found |= {f"kernel-{b}-{i}": kernel, f"filters-{b}-{i}": filters}
        return {**found, "dense": len(arch.units), **{f"units-{i}": u for i, u in enumerate(arch.units, 1)}}

    def smallest(self) -> PlainLayers:
        """One narrow convolution a block, where its kernel is not 1."""
        kernel = min((k for k in self.kernels if k > 1), default=self.kernels[0])
        return PlainLayers((((kernel, self.filters[0]),),) * self.blocks, (self.units[0],))

    def counts(self, arch: PlainLayers) -> list[float]:
        """Layers of each block, and filters of each in all."""
        rows = [[f for _, f in block] for block in arch.blocks] + [list(arch.units)]
        return [float(n) for row in rows for n in (len(row), sum(row))]

    def build(self, arch: PlainLayers) -> nn.Module:
        return PlainNet(arch, self.channels, self.classes)

    def input_shape(self, arch: PlainLayers) -> tuple[int, int, int]:
        return (self.channels, self.image, self.image)

    def products(self, arch: PlainLayers) -> int:
        return arch.products(self.channels, self.classes, self.image)

    def parts(self, arch: PlainLayers) -> Sequence[Part]:
        return plain_parts(arch, self.channels, self.image, self.classes)

    # -- growing ---------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        return 2 + len(self.kernels) * len(self.filters) + len(self.units)

    def _places(self, arch: PlainLayers) -> list[tuple[int, int] | None]:
        """Of each token its block and layer; None for a pooling."""
        found: list[tuple[int, int] | None] = []
        for b, block in enumerate(arch.blocks):
            found += [*((b, i) for i in range(len(block))), None]
        return [*found, *((self.blocks, i) for i in range(len(arch.units)))]

    def sequence(self, arch: PlainLayers) -> list[int]:
        row = []
        for place in self._places(arch):
            if place is None:
                row.append(1)
            elif place[0] < self.blocks:
                kernel, filters = arch.blocks[place[0]][place[1]]
                row.append(2 + self.kernels.index(kernel) * len(self.filters) + self.filters.index(filters))
            else:
                unit = self.units.index(arch.units[place[1]])
                row.append(2 + len(self.kernels) * len(self.filters) + unit)
        return row

    def _larger(self, arch: PlainLayers, place: tuple[int, int] | None) -> int | None:
        """The next size of a layer; None where there is none."""
        if place is None:
            return None
        block, layer = place
        sizes = self.filters if block < self.blocks else self.units
        size = arch.blocks[block][layer][1] if block < self.blocks else arch.units[layer]
        return next((s for s in sizes if s > size), None)

    def widenable(self, arch: PlainLayers) -> list[bool]:
        return [self._larger(arch, place) is not None for place in self._places(arch)]

    @property
    def most(self) -> int:
        return max(self._sizes)

    def layers(self, arch: PlainLayers) -> list[int]:
        rows = [len(block) for block in arch.blocks] + [len(arch.units)]
        return [n if n < most else 0 for n, most in zip(rows, self._sizes, strict=True)]

    def has_kernel(self, arch: PlainLayers, block: int) -> bool:
        return block < self.blocks

    def widened(
        self, arch: PlainLayers, network: nn.Module, which: Sequence[bool], *, noise: float, seed: int
    ) -> Grown:
        wanted = {
            place: size
            for place, chosen in zip(self._places(arch), which, strict=True)
            if chosen and place is not None and (size := self._larger(arch, place)) is not None
        }
        assert isinstance(network, PlainNet)
        made = network.widened(wanted, noise=noise, seed=seed) if wanted else network
        return Grown(made.layers, made)

    def deepened(
        self, arch: PlainLayers, network: nn.Module, block: int, layer: int, kernel: int, *, noise: float, seed: int
    ) -> Grown:
        assert isinstance(network, PlainNet)
        made = network.deepened(block, layer, kernel, noise=noise, seed=seed)
        return Grown(made.layers, made)
