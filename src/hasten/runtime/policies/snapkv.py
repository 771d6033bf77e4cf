"""SnapKV: of a long prompt, what its end attends to (arXiv 2404.14469)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.runtime.policies.attending import grouped, weights
from hasten.runtime.policies.policy import Dropping, PolicyLayer


@dataclass(frozen=True)
class SnapKVPolicy(Dropping):
    """Of a long prompt, the tokens that its last ones attend to (SnapKV, arXiv 2404.14469).

    The softmax weights of the last ``window`` queries are summed, pooled over neighbours, averaged over the query heads
    of a kv head; the best positions stay beside the window itself. Keys keep their own rotation.

    Args:
        capacity: tokens that stay, the window's included.
        window: last queries, which vote and stay.
        kernel: neighbours that share a vote, odd; wider than what is to be found again; 1 for none.
        pooling: how they share it, ``max`` or ``mean``.
    """

    compiled: ClassVar[bool] = True

    capacity: int = 1024
    window: int = 16
    kernel: int = 7
    pooling: str = "max"

    def __post_init__(self) -> None:
        if not 0 < self.window < self.capacity or self.kernel < 1 or self.kernel % 2 == 0:
            raise HastenError("SnapKV takes a window smaller than its capacity and an odd kernel")
        if self.pooling not in ("mean", "max"):
            raise HastenError(f"SnapKV pools by mean or max, not {self.pooling!r}")

    def prompt(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float, start: int) -> None:
        # Pieces of a prompt: the last queries may stand in two of them.
        held = layer.memory.get("queries")
        recent = query[:, :, -self.window :]
        if held is not None and recent.shape[2] < self.window:
            recent = torch.cat((held[:, :, recent.shape[2] - self.window :], recent), 2)
        layer.memory["queries"] = recent
        rows, length = recent.shape[2], keys.shape[2]
        columns = torch.arange(length, device=keys.device)
        mask = columns <= columns[length - rows :, None]
        layer.memory["votes"] = weights(recent, keys, scaling, mask).sum(2)

    def kept(self, layer: PolicyLayer, length: int) -> Tensor:
        votes = layer.memory["votes"][..., : length - self.window]
        pool = torch.nn.functional.avg_pool1d if self.pooling == "mean" else torch.nn.functional.max_pool1d
        smooth = pool(votes, self.kernel, stride=1, padding=self.kernel // 2)
        smooth = grouped(smooth, layer.heads)
        best = smooth.topk(self.capacity - self.window, -1).indices.sort(-1).values
        recent = torch.arange(length - self.window, length, device=best.device).expand(*best.shape[:2], -1)
        return torch.cat((best, recent), -1)
