"""Hierarchical transformers of plain blocks, any width and depth a stage: TurboViT's space (arXiv 2308.11421)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from hasten.cost.latency.modelled import Part
from hasten.errors import HastenError
from hasten.models.vision.hiera import Hiera, HieraConfig
from hasten.search.networks.architecture_space import architecture_space
from hasten.search.networks.gene_space import GeneSpace
from hasten.search.parameter import Params, categorical, ordinal
from hasten.search.space import Space


@dataclass(frozen=True)
class HieraGenes:
    """What is chosen of a network.

    Args:
        widths, depths, ratios, local: of each stage, as of `HieraConfig`.
        head: channels of a head of attention, nearly: a stage has as many heads as divide its width.
        pools: the stages, from 1, whose first block pools.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    ratios: tuple[int, ...]
    local: tuple[bool, ...]
    head: int
    pools: tuple[int, ...]

    def config(self, like: HieraConfig) -> HieraConfig:
        """Sizes with these genes, the rest as in others."""
        return replace(
            like, widths=self.widths, heads=tuple(heads_of(w, self.head) for w in self.widths), depths=self.depths,
            ratios=self.ratios, local=self.local, pool=tuple(i in self.pools for i in range(len(self.widths))),
        )  # fmt: skip


def heads_of(width: int, head: int) -> int:
    """Heads of about ``head`` channels or more that divide a width.

    >>> [heads_of(w, 32) for w in (16, 80, 96, 144)]
    [1, 2, 3, 4]
    """
    return next(n for n in range(max(1, width // head), 0, -1) if width % n == 0)


def _step(low: int, high: int) -> tuple[int, ...]:
    return tuple(range(low, high + 1, 16))


@dataclass(frozen=True)
class HieraChoices:
    """What each gene may be; by default for networks of Hiera-T's size class and below.

    Args:
        widths, depths: of each stage.
        ratios, heads: of all stages.
    """

    widths: tuple[tuple[int, ...], ...] = (_step(16, 128), _step(32, 256), _step(32, 384), _step(64, 640))
    depths: tuple[tuple[int, ...], ...] = ((1, 2, 3, 4), (1, 2, 3, 4), tuple(range(1, 13)), (1, 2, 3, 4))
    ratios: tuple[int, ...] = (2, 3, 4)
    heads: tuple[int, ...] = (16, 32, 64, 96)


@architecture_space("hiera", "hierarchical transformers of plain blocks, any width and depth a stage (TurboViT)")
@dataclass(frozen=True)
class HieraSpace(GeneSpace[HieraGenes]):
    """Hiera's networks by stage: width, depth, feed-forward, local or global attention; head size; which stages pool.

    Args:
        config: of the networks; of its stages' sizes the number alone counts.
        choices: what each gene may be.

    Raises:
        HastenError: choices for another number of stages.
    """

    config: HieraConfig = field(default_factory=HieraConfig)
    choices: HieraChoices = field(default_factory=HieraChoices)

    def __post_init__(self) -> None:
        if not len(self.choices.widths) == len(self.choices.depths) == len(self.config.widths):
            raise HastenError("choices of widths and depths are one a stage of the networks")

    @classmethod
    def for_images(cls, channels: int, size: int, classes: int) -> HieraSpace:
        # 8 x 8 tokens, units of 4 x 4, two pools at most.
        like = HieraConfig(
            (16, 16, 16), (1, 1, 1), (1, 1, 1), (False, True, True), (True, True, False), (2, 2, 2), 4,
            3, max(1, size // 8), size, channels, classes,
        )  # fmt: skip
        return cls(like, HieraChoices((_step(16, 96),) * 3, ((1, 2, 3, 4),) * 3, heads=(16, 32)))

    @property
    def _pools(self) -> list[tuple[int, ...]]:
        """Sets of stages that may pool: as many as halve a mask unit to one token, or fewer."""
        most, unit = 0, self.config.unit
        while unit % 2 == 0:
            most, unit = most + 1, unit // 2
        stages = range(1, len(self.config.widths))
        return [s for n in range(len(stages) + 1) for s in itertools.combinations(stages, n) if n <= most]

    def genes(self) -> Space:
        choices = self.choices
        parameters = []
        for i, (widths, depths) in enumerate(zip(choices.widths, choices.depths, strict=True), 1):
            parameters += [
                ordinal(f"width-{i}", widths), ordinal(f"depth-{i}", depths), ordinal(f"ratio-{i}", choices.ratios),
                categorical(f"local-{i}", (True, False)),
            ]  # fmt: skip
        parameters.append(ordinal("head", choices.heads))
        parameters.append(categorical("pools", [_written(s) for s in self._pools]))
        return Space(parameters)

    def from_params(self, params: Params) -> HieraGenes:
        stages = range(1, len(self.config.widths) + 1)
        at: dict[str, Any] = dict(params)
        widths, depths, ratios, local = (
            tuple(at[f"{gene}-{i}"] for i in stages) for gene in ("width", "depth", "ratio", "local")
        )
        pools = next(s for s in self._pools if _written(s) == at["pools"])
        return HieraGenes(widths, depths, ratios, local, at["head"], pools)

    def to_params(self, arch: HieraGenes) -> Params:
        found: Params = {}
        rows = zip(arch.widths, arch.depths, arch.ratios, arch.local, strict=True)
        for i, (width, depth, ratio, local) in enumerate(rows, 1):
            found |= {f"width-{i}": width, f"depth-{i}": depth, f"ratio-{i}": ratio, f"local-{i}": local}
        return {**found, "head": arch.head, "pools": _written(arch.pools)}

    def smallest(self) -> HieraGenes:
        """The narrowest and shallowest, pooled as often as can be."""
        choices, stages = self.choices, len(self.config.widths)
        return HieraGenes(
            tuple(w[0] for w in choices.widths), tuple(d[0] for d in choices.depths), (choices.ratios[0],) * stages,
            (True,) * stages, choices.heads[-1], self._pools[-1],
        )  # fmt: skip

    def build(self, arch: HieraGenes) -> nn.Module:
        return Hiera(arch.config(self.config))

    def input_shape(self, arch: HieraGenes) -> tuple[int, int, int]:
        return (self.config.channels, self.config.image, self.config.image)

    def parameters(self, arch: HieraGenes) -> int:
        return arch.config(self.config).parameters

    def products(self, arch: HieraGenes) -> int:
        return arch.config(self.config).products

    def parts(self, arch: HieraGenes) -> Sequence[Part]:
        return arch.config(self.config).parts()


def _written(pools: Sequence[int]) -> str:
    return " ".join(str(i + 1) for i in pools) or "none"
