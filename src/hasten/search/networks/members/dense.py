"""Dense networks by layer: the second space of EAS (arXiv 1707.04873)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from hasten.cost.growing import WIDER_NOISE
from hasten.cost.latency.modelled import Part
from hasten.errors import HastenError
from hasten.models.vision.densenet import FIRST, DenseLayers, DenseNet, dense_parts
from hasten.search.networks.architecture_space import architecture_space
from hasten.search.networks.growing_space import GrowingSpace, Grown
from hasten.search.parameter import Params, integer, ordinal
from hasten.search.space import Space


@architecture_space("dense", "dense networks with bottlenecks, each layer of its own growth (EAS)")
@dataclass(frozen=True)
class DenseSpace(GrowingSpace[DenseLayers]):
    """Blocks of layers with growths of their own, and the width of the first convolution; by default the paper's.

    Args:
        blocks: of layers.
        depth: layers of a block, at most.
        sizes: growths that a layer may have.
        image, channels, classes: of the images.

    Raises:
        HastenError: images that cannot be halved between the blocks.
    """

    blocks: int = 3
    depth: int = 20
    sizes: tuple[int, ...] = tuple(range(4, 49, 2))
    image: int = 32
    channels: int = 3
    classes: int = 10

    widenings: ClassVar[int] = 10
    # What is put in is a copy of the layer before it, as what is widened is of itself.
    deepening_noise: ClassVar[float] = WIDER_NOISE

    def __post_init__(self) -> None:
        if min(self.blocks, self.depth) < 1 or self.image < 2 ** (self.blocks - 1):
            raise HastenError("a dense network has blocks, layers in each, and images that are halved between them")

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> DenseSpace:
        return cls(2, 5, (4, 6, 8, 12, 16), size, channels, classes)

    def genes(self) -> Space:
        parameters = [integer("first", FIRST * self.sizes[0], FIRST * self.sizes[-1])]
        for b in range(1, self.blocks + 1):
            parameters.append(ordinal(f"block-{b}", range(1, self.depth + 1)))
            for i in range(1, self.depth + 1):
                when = {f"block-{b}": list(range(i, self.depth + 1))} if i > 1 else None
                parameters.append(ordinal(f"growth-{b}-{i}", self.sizes, when))
        return Space(parameters)

    def from_params(self, params: Params) -> DenseLayers:
        at: dict[str, Any] = dict(params)
        return DenseLayers(
            at["first"],
            tuple(
                tuple(at[f"growth-{b}-{i}"] for i in range(1, at[f"block-{b}"] + 1)) for b in range(1, self.blocks + 1)
            ),
        )

    def to_params(self, arch: DenseLayers) -> Params:
        found: Params = {"first": arch.first}
        for b, row in enumerate(arch.growths, 1):
            found[f"block-{b}"] = len(row)
            found |= {f"growth-{b}-{i}": growth for i, growth in enumerate(row, 1)}
        return found

    def smallest(self) -> DenseLayers:
        return DenseLayers(FIRST * self.sizes[0], ((self.sizes[0],),) * self.blocks)

    def counts(self, arch: DenseLayers) -> list[float]:
        """Channels of the first convolution; layers of each block, and growth in all."""
        return [float(arch.first), *(float(n) for row in arch.growths for n in (len(row), sum(row)))]

    def build(self, arch: DenseLayers) -> nn.Module:
        return DenseNet(arch, self.channels, self.classes)

    def input_shape(self, arch: DenseLayers) -> tuple[int, int, int]:
        return (self.channels, self.image, self.image)

    def parts(self, arch: DenseLayers) -> Sequence[Part]:
        return dense_parts(arch, self.channels, self.image, self.classes)

    # -- growing ---------------------------------------------------------------------------------

    @property
    def tokens(self) -> int:
        return 2 + len(self.sizes)

    def _places(self, arch: DenseLayers) -> list[tuple[int, int] | None]:
        """Of each token its block and layer; None for a transition."""
        found: list[tuple[int, int] | None] = []
        for b, row in enumerate(arch.growths):
            found += [*([None] if b else []), *((b, i) for i in range(len(row)))]
        return found

    def sequence(self, arch: DenseLayers) -> list[int]:
        return [1 if p is None else 2 + self.sizes.index(arch.growths[p[0]][p[1]]) for p in self._places(arch)]

    def _larger(self, arch: DenseLayers, place: tuple[int, int] | None) -> int | None:
        return None if place is None else next((s for s in self.sizes if s > arch.growths[place[0]][place[1]]), None)

    def widenable(self, arch: DenseLayers) -> list[bool]:
        return [self._larger(arch, place) is not None for place in self._places(arch)]

    @property
    def kernels(self) -> tuple[int, ...]:
        return (3,)

    @property
    def most(self) -> int:
        return self.depth

    def layers(self, arch: DenseLayers) -> list[int]:
        return [len(row) if len(row) < self.depth else 0 for row in arch.growths]

    def has_kernel(self, arch: DenseLayers, block: int) -> bool:
        return False

    def widened(
        self, arch: DenseLayers, network: nn.Module, which: Sequence[bool], *, noise: float, seed: int
    ) -> Grown:
        wanted = {
            place: size
            for place, chosen in zip(self._places(arch), which, strict=True)
            if chosen and place is not None and (size := self._larger(arch, place)) is not None
        }
        assert isinstance(network, DenseNet)
        made = network.widened(wanted, noise=noise, seed=seed) if wanted else network
        return Grown(made.layers, made)

    def deepened(
        self, arch: DenseLayers, network: nn.Module, block: int, layer: int, kernel: int, *, noise: float, seed: int
    ) -> Grown:
        assert isinstance(network, DenseNet)
        made = network.deepened(block, layer, noise=noise, seed=seed)
        return Grown(made.layers, made)
