"""Every so-many-th token, or block: controls that do not look."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.runtime.policies.attending import beside, middle
from hasten.runtime.policies.block_topk import tokens_of
from hasten.runtime.policies.policy import PolicyLayer, Selecting


@dataclass(frozen=True)
class Strided(Selecting):
    """Every so-many-th token, counted from the newest: what a budget buys without looking.

    Args:
        ratio: share of the cache that is read.
    """

    ratio: float = 0.2

    def budget(self, length: int) -> int:
        return max(1, math.floor(self.ratio * length))

    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        count = self.budget(length)
        chosen = length - 1 - (torch.arange(count, device=keys.device) * (length / count)).long()
        return chosen.expand(*keys.shape[:2], -1)


@dataclass(frozen=True)
class StridedBlocks(Selecting):
    """Blocks at equal distances between the sinks and the newest tokens: what `BlockTopKPolicy` reads without scores.

    The control of Kinetics (arXiv 2506.05333) at an equal budget. The first layer reads everything.

    Args:
        top: blocks read between.
        local: newest blocks always read; what is left behind the last whole block is read with them.
        block: tokens of a block.
        sinks: first tokens that are always read.

    Raises:
        HastenError: no block to read.
    """

    top: int = 24
    local: int = 4
    block: int = 16
    sinks: int = 4

    def __post_init__(self) -> None:
        if min(self.top, self.local, self.block) < 1 or self.sinks < 0:
            raise HastenError("strided blocks take at least 1 block between and 1 local one, and no fewer than 0 sinks")

    def dense(self, index: int) -> bool:
        return index == 0

    def budget(self, length: int) -> int:
        first, end = middle(length, self.sinks, self.local * self.block, self.block)
        return min(length, length - (end - first) + self.top * self.block)

    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        first, end = middle(length, self.sinks, self.local * self.block, self.block)
        count = (end - first) // self.block
        if count <= self.top:
            return None
        tokens = tokens_of(torch.arange(self.top, device=keys.device) * count // self.top, self.block) + first
        return beside(tokens.expand(*keys.shape[:2], -1), length, first, end)
