"""The newest tokens beside the first ones: a share of the cache, or a fixed number."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.runtime.policies.policy import PolicyLayer, Selecting


@dataclass(frozen=True)
class LocalShare(Selecting):
    """The newest tokens, and the first ones if asked: a window that grows with the text.

    Args:
        ratio: share of the cache that is read.
        sinks: first tokens among them.
    """

    ratio: float = 0.2
    sinks: int = 0

    def budget(self, length: int) -> int:
        return max(self.sinks + 1, math.floor(self.ratio * length))

    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        if self.budget(length) >= length:
            return None
        recent = torch.arange(length - self.budget(length) + self.sinks, length, device=keys.device)
        return torch.cat((torch.arange(self.sinks, device=keys.device), recent)).expand(*keys.shape[:2], -1)


@dataclass(frozen=True)
class LocalWindow(Selecting):
    """The newest tokens and the first ones, a fixed number.

    Args:
        size: tokens read.
        sinks: first tokens among them.
    """

    size: int = 256
    sinks: int = 4

    def dense(self, index: int) -> bool:
        return index == 0

    def budget(self, length: int) -> int:
        return min(length, self.size)

    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        if length <= self.size:
            return None
        recent = torch.arange(length - self.size + self.sinks, length, device=keys.device)
        return torch.cat((torch.arange(self.sinks, device=keys.device), recent)).expand(*keys.shape[:2], -1)
