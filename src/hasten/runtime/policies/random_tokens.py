"""Any tokens between the first and the newest ones: a control that does not look."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.runtime.policies.attending import attend, beside, middle, taken
from hasten.runtime.policies.policy import PolicyLayer, Selecting


@dataclass(frozen=True)
class RandomTokens(Selecting):
    """``top`` tokens drawn anew at every step and for every key-value head, between sinks and the newest tokens.

    What a step draws depends on the seed, the layer and the length alone, so a step taken back and made again reads the
    same. The first layer reads everything (Kinetics, arXiv 2506.05333).

    Args:
        top: tokens drawn, without repeats.
        local, sinks: newest and first tokens always read.
        weighted: let a drawn token stand for those that were not: log(tokens to draw from / tokens drawn) is added to
            its logit. Without, the middle counts as little as what was drawn of it.
        seed: of the draws.

    Raises:
        HastenError: no token to draw.
    """

    top: int = 256
    local: int = 64
    sinks: int = 4
    weighted: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.top < 1 or self.local < 1 or self.sinks < 0:
            raise HastenError("random tokens take at least 1 drawn and 1 local token, and no fewer than 0 sinks")

    def dense(self, index: int) -> bool:
        return index == 0

    def budget(self, length: int) -> int:
        return min(length, self.top + self.local + self.sinks)

    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        batch, heads, length, _ = keys.shape
        first, end = middle(length, self.sinks, self.local)
        if end - first <= self.top:
            return None
        generator = torch.Generator().manual_seed((self.seed * 1009 + layer.index) * 1_000_003 + length)
        drawn = torch.rand(batch, heads, end - first, generator=generator).topk(self.top, -1).indices
        return beside(drawn + first, length, first, end)

    def row(
        self, layer: PolicyLayer, query: Tensor, keys: Tensor, values: Tensor, scaling: float, first: int = 0
    ) -> Tensor:
        chosen = None if self.dense(layer.index) or not self.weighted else self.choose(layer, query, keys, scaling)
        if chosen is None:
            return super().row(layer, query, keys, values, scaling, first)
        begin, end = middle(keys.shape[2], self.sinks, self.local)
        stands_for = math.log((end - begin) / self.top)
        added = torch.where((chosen >= begin) & (chosen < end), stands_for, 0.0)
        added = added.masked_fill(chosen < first, -torch.inf).to(query.dtype)
        mask = added.repeat_interleave(query.shape[1] // keys.shape[1], 1)[:, :, None]
        return attend(query, taken(keys, chosen), taken(values, chosen), scaling, mask)
