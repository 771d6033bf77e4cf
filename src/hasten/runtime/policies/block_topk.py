"""Block top-k: the blocks whose mean key fits the query (Kinetics, arXiv 2506.05333)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.kv_cache import BLOCK
from hasten.runtime.policies.attending import beside, grouped, middle
from hasten.runtime.policies.policy import PolicyLayer, Selecting


@dataclass(frozen=True)
class BlockTopKPolicy(Selecting):
    """The blocks whose mean key has the largest product with the query (Kinetics, arXiv 2506.05333).

    Read are sinks at the start, the newest tokens, and ``top`` of the blocks between, chosen for each key-value head by
    the mean over its query heads. The first layer reads everything.

    Where blocks begin is a choice. With ``sinks`` a number, as in the paper: that many tokens at the start, then
    blocks from there on, and what is left behind the last whole block is local beside ``local`` blocks of tokens. With
    None, as the compiled step does it: blocks lie as the cache's do, the first one is the sinks, and the newest
    ``local``, the incomplete one among them, are local.

    Args:
        top: blocks chosen by score.
        local: newest blocks always read, at least 2 without ``sinks``.
        block: tokens of a block; the compiled step takes 32.
        sinks: first tokens that are always read; None for the whole first block.

    Raises:
        HastenError: no block to choose, or too few local ones.
    """

    top: int = 24
    local: int = 4
    block: int = BLOCK
    sinks: int | None = None

    def __post_init__(self) -> None:
        if self.top < 1 or self.block < 1 or (self.local < 2 if self.sinks is None else self.local < 1):
            raise HastenError("block top-k takes at least 1 chosen block and 2 local ones, or 1 beside sinks")
        if self.sinks is not None and self.sinks < 0:
            raise HastenError("block top-k takes 0 or more sinks, or None for the first block")

    @property
    def compiled(self) -> bool:  # type: ignore[override]
        return self.block == BLOCK and self.sinks is None

    def dense(self, index: int) -> bool:
        return index == 0

    def tensors(self, index: int, batch: int, heads: int, blocks: int, head_dim: int) -> dict[str, Tensor]:
        if self.dense(index) or not self.compiled:
            return {}
        return {"pooled": torch.zeros(batch, heads, blocks, head_dim)}

    def budget(self, length: int) -> int:
        if self.sinks is None:
            return min(length, self.block * (1 + self.top + self.local))
        first, end = self._middle(length)
        return min(length, length - (end - first) + self.top * self.block)

    def _middle(self, length: int) -> tuple[int, int]:
        """Where the blocks that are chosen from begin and end."""
        if self.sinks is None:
            return self.block, ((length - 1) // self.block + 1 - self.local) * self.block
        return middle(length, self.sinks, self.local * self.block, self.block)

    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length, block = keys.shape[2], self.block
        first, end = self._middle(length)
        if end - first <= self.top * block:
            return None
        pooled = keys[:, :, first:end].float().unflatten(2, (-1, block)).mean(3)
        scores = grouped(query.float(), keys.shape[1]) @ pooled.transpose(-1, -2)
        blocks = scores[:, :, 0].topk(self.top, -1).indices
        return beside(tokens_of(blocks, block) + first, length, first, end)


def tokens_of(blocks: Tensor, block: int) -> Tensor:
    """Tokens (..., k * block) of blocks (..., k), counted from where block 0 begins."""
    return (blocks[..., None] * block + torch.arange(block, device=blocks.device)).flatten(-2)
