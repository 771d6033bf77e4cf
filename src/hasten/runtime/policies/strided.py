"""Every so-many-th token: a control that does not look."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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
        chosen = length - 1 - (torch.arange(count) * (length / count)).long()
        return chosen.expand(*keys.shape[:2], -1)
