"""Block top-k: the blocks whose mean key fits the query (Kinetics, arXiv 2506.05333)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.kv_cache import BLOCK
from hasten.runtime.policies.attending import grouped
from hasten.runtime.policies.policy import PolicyLayer, Selecting


@dataclass(frozen=True)
class BlockTopKPolicy(Selecting):
    """The blocks whose mean key has the largest product with the query (Kinetics, arXiv 2506.05333).

    Read are the first block (sinks), the newest blocks, and ``top`` of those between, chosen for each key-value head by
    the mean over its query heads. The first layer reads everything.

    Args:
        top: blocks chosen by score.
        local: newest blocks always read, at least 2.
        block: tokens of a block; the compiled step takes 32.
    """

    top: int = 24
    local: int = 4
    block: int = BLOCK

    def __post_init__(self) -> None:
        if self.top < 1 or self.local < 2 or self.block < 1:
            raise HastenError("block top-k takes at least 1 chosen block and 2 local ones")

    @property
    def compiled(self) -> bool:  # type: ignore[override]
        return self.block == BLOCK

    def dense(self, index: int) -> bool:
        return index == 0

    def tensors(self, index: int, batch: int, heads: int, blocks: int, head_dim: int) -> dict[str, Tensor]:
        if self.dense(index) or not self.compiled:
            return {}
        return {"pooled": torch.zeros(batch, heads, blocks, head_dim)}

    def budget(self, length: int) -> int:
        return min(length, self.block * (1 + self.top + self.local))

    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length, block = keys.shape[2], self.block
        local = (length - 1) // block + 1 - self.local
        if local - 1 <= self.top:
            return None
        pooled = keys[:, :, block : local * block].float().unflatten(2, (local - 1, block)).mean(3)
        scores = grouped(query.float(), keys.shape[1]) @ pooled.transpose(-1, -2)
        blocks = scores[:, :, 0].topk(self.top, -1).indices + 1
        tokens = (blocks[..., None] * block + torch.arange(block)).flatten(2)
        fixed = torch.cat((torch.arange(block), torch.arange(local * block, length)))
        return torch.cat((tokens, fixed.expand(*tokens.shape[:2], -1)), -1)
