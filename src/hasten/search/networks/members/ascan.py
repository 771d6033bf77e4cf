"""Layouts of convolutions and transformer layers (arXiv 2411.04967) as an `ArchitectureSpace`."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from hasten.cost.latency.modelled import Part
from hasten.errors import HastenError
from hasten.models.vision.ascan import AsCAN, AsCANConfig, StageLayout
from hasten.search.networks.architecture_space import ArchitectureSpace, architecture_space
from hasten.search.parameter import Params, integer
from hasten.search.space import Space

_TRIES = 100


@architecture_space("ascan", "hybrids of convolution and attention, by how many blocks of each stage are which (AsCAN)")
@dataclass(frozen=True)
class LayoutSpace(ArchitectureSpace[StageLayout]):
    """Layouts with convolutions before transformer layers: how many of each stage's blocks are transformer layers.

    Args:
        config: of the networks; its layout says the blocks of each stage alone.
        ruled: whether the paper's other rules hold: the share of transformer layers falls nowhere, and the first half
            of the stages has none.
    """

    config: AsCANConfig = field(default_factory=AsCANConfig)
    ruled: bool = False

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> LayoutSpace:
        layout = StageLayout(("CC", "CCC", "CCC"))
        return cls(AsCANConfig(layout, (8, 16, 32), head_size=8, image=size, channels=channels, classes=classes))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Of each stage."""
        return tuple(len(stage) for stage in self.config.layout.stages)

    def _layout(self, layers: Sequence[int]) -> StageLayout:
        return StageLayout(tuple("C" * (n - t) + "T" * t for n, t in zip(self.blocks, layers, strict=True)))

    def _drawn(self, draw: Callable[[], Sequence[int]], otherwise: StageLayout) -> StageLayout:
        for _ in range(_TRIES):
            made = self._layout(draw())
            if not self.ruled or not made.why_uneven():
                return made
        return otherwise

    def sample(self, rng: random.Random) -> StageLayout:
        early = len(self.blocks) // 2 if self.ruled else 0
        return self._drawn(
            lambda: [0 if i < early else rng.randint(0, n) for i, n in enumerate(self.blocks)], self.smallest()
        )

    def mutate(self, arch: StageLayout, rng: random.Random, chance: float = 0.1) -> StageLayout:
        return self._drawn(
            lambda: [
                rng.randint(0, n) if rng.random() < chance else t
                for n, t in zip(self.blocks, self.numbers(arch), strict=True)
            ],
            arch,
        )

    def cross(self, one: StageLayout, other: StageLayout, rng: random.Random) -> StageLayout:
        pairs = list(zip(self.numbers(one), self.numbers(other), strict=True))
        return self._drawn(lambda: [rng.choice(pair) for pair in pairs], one)

    def smallest(self) -> StageLayout:
        """Convolutions alone: which layout is fastest depends on the device and on the widths."""
        return self._layout([0] * len(self.blocks))

    def near_smallest(self, rng: random.Random) -> StageLayout:
        return self.mutate(self.smallest(), rng, 0.5)

    def space(self) -> Space:
        return Space([integer(f"transformers-{i}", 0, n) for i, n in enumerate(self.blocks, 1)])

    def from_params(self, params: Params) -> StageLayout:
        return self.from_numbers([int(params[f"transformers-{i}"]) for i in range(1, len(self.blocks) + 1)])  # type: ignore[arg-type]

    def to_params(self, arch: StageLayout) -> Params:
        return {f"transformers-{i}": t for i, t in enumerate(self.numbers(arch), 1)}

    def encode(self, arch: StageLayout) -> list[float]:
        """Of each stage the share of transformer layers."""
        return list(arch.shares)

    def counts(self, arch: StageLayout) -> list[float]:
        """Convolutions and transformer layers of each stage."""
        return [float(stage.count(kind)) for stage in arch.stages for kind in "CT"]

    def build(self, arch: StageLayout) -> nn.Module:
        return AsCAN(replace(self.config, layout=arch))

    def input_shape(self, arch: StageLayout) -> tuple[int, int, int]:
        return (self.config.channels, self.config.image, self.config.image)

    def parts(self, arch: StageLayout) -> Sequence[Part]:
        return replace(self.config, layout=arch).parts()

    def numbers(self, arch: StageLayout) -> tuple[int, ...]:
        """Transformer layers of each stage."""
        return tuple(stage.count("T") for stage in arch.stages)

    def from_numbers(self, numbers: Sequence[int]) -> StageLayout:
        row = list(numbers)
        if len(row) != len(self.blocks) or any(not 0 <= t <= n for t, n in zip(row, self.blocks, strict=True)):
            raise HastenError(f"a layout is transformer layers of each stage, at most {self.blocks}: got {row!r:.80}")
        made = self._layout(row)
        if self.ruled and (why := made.why_uneven()):
            raise HastenError(f"{made} is no layout of this space: {why}")
        return made
