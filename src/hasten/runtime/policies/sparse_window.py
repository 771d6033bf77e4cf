"""The sparse window of ALISA: what is new, and what mattered to the last steps (arXiv 2403.17312)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.cost.serving.tiers import window_split
from hasten.errors import HastenError
from hasten.runtime.policies.attending import grouped, weights, widened
from hasten.runtime.policies.policy import PolicyLayer, Selecting


@dataclass(frozen=True)
class SparseWindowPolicy(Selecting):
    """Sparse window attention of ALISA (arXiv 2403.17312): local tokens and those that mattered to the last steps.

    Of n cached tokens ``ratio`` n are read: half the newest ones, half those older ones to which the last steps gave
    the most weight, summed over as many steps as there are local tokens. Each kv head chooses for itself.

    Args:
        ratio: share of the cache that is read, in (0, 1].
        history: over how many of the last steps weights are summed; 0: as many as there are local tokens,
            -1: over all of them (the heavy hitters of H2O, arXiv 2306.14048).
    """

    remembers: ClassVar[bool] = True

    ratio: float = 0.5
    history: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1 or self.history < -1:
            raise HastenError("a sparse window reads a share in (0, 1] of the cache")

    def budget(self, length: int) -> int:
        return sum(self.split(length))

    def split(self, length: int) -> tuple[int, int]:
        """(local, global) tokens of a budget."""
        return window_split(self.ratio, length)

    def prompt(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float, start: int) -> None:
        length = keys.shape[2]
        rows = query.shape[2] if self.history == -1 else min(query.shape[2], self._rows(length + 1))
        columns = torch.arange(length, device=keys.device)
        mask = columns <= columns[length - rows :, None]
        found = grouped(weights(query[:, :, -rows:], keys, scaling, mask), keys.shape[1])
        if self.history == -1:
            past = layer.memory.get("total")
            total = found.sum(2)
            layer.memory["total"] = total if past is None else widened(past, length) + total
        else:
            # Of a prompt in pieces the last rows may stand in several of them.
            held = layer.memory.get("rows") if start else None
            if held is not None:
                found = torch.cat((widened(held, length), found), 2)
            layer.memory["rows"] = found[:, :, -self._rows(length + 1) :].clone()

    def _rows(self, length: int) -> int:
        """Steps whose weights count for the token that makes ``length``: those of the tokens before it."""
        return self.history or self.split(length)[0]

    def choose(self, layer: PolicyLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        local, others = self.split(length)
        if local + others >= length:
            return None
        older = length - local
        scores = self.scores(layer, length)
        chosen = scores[..., :older].topk(others, -1).indices
        recent = torch.arange(older, length, device=chosen.device).expand(*chosen.shape[:2], -1)
        return torch.cat((chosen, recent), -1)

    def scores(self, layer: PolicyLayer, length: int) -> Tensor:
        """Weight that each of ``length`` tokens got in the steps that count: (batch, kv heads, length)."""
        if self.history == -1:
            return widened(layer.memory["total"], length)
        return widened(layer.memory["rows"][:, :, -self._rows(length) :].sum(2), length)

    def seen(self, layer: PolicyLayer, chosen: Tensor | None, query: Tensor, keys: Tensor, scaling: float) -> None:
        found = grouped(weights(query, keys, scaling), keys.shape[1])[:, :, 0]
        length = layer.seen_length
        if chosen is not None:
            found = found.new_zeros(*found.shape[:2], length).scatter_(-1, chosen, found)
        if self.history == -1:
            past = layer.memory.get("total")
            layer.memory["total"] = found if past is None else widened(past, length) + found
            return
        rows = layer.memory.get("rows")
        if rows is None:
            layer.memory["rows"] = found[:, :, None]
            return
        wanted = self._rows(length + 1) - 1
        kept = rows[:, :, -wanted:] if wanted else rows[:, :, :0]
        layer.memory["rows"] = torch.cat((widened(kept, length), found[:, :, None]), 2)
