"""Top-k: the tokens whose keys fit the query, every one of them scored."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hasten.runtime.policies.attending import beside, grouped, middle
from hasten.runtime.policies.policy import PolicyLayer, Selecting


@dataclass(frozen=True)
class TopK(Selecting):
    """The ``top`` tokens of the largest products, between sinks and a local window: an upper bound, as it scores all.

    Args:
        top: tokens chosen.
        local, sinks: newest and first tokens always read.
    """

    top: int = 256
    local: int = 64
    sinks: int = 4

    def dense(self, index: int) -> bool:
        return index == 0

    def budget(self, length: int) -> int:
        return min(length, self.top + self.local + self.sinks)

    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        first, end = middle(length, self.sinks, self.local)
        if end - first <= self.top:
            return None
        scores = grouped(query.float(), keys.shape[1]) @ keys[:, :, first:end].float().transpose(-1, -2)
        return beside(scores[:, :, 0].topk(self.top, -1).indices + first, length, first, end)
