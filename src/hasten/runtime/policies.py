"""Which cached tokens a new token attends to, chosen while decoding or once after the prompt.

A policy stands in `hasten.runtime.CacheSpec` and sees every layer's queries and cached keys. What decides at every step
keeps the whole cache and reads a part of it (`BlockTopK`, `TopK`, `SparseWindow`, `HeavyHitters`, `Strided`);
`SnapKV` and `RandomKeep` drop tokens once, after the prompt. Prompts are read with full attention.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels.kv_cache import BLOCK

if TYPE_CHECKING:
    from hasten.runtime.cache import CacheLayer, KVCache


def attend(query: Tensor, keys: Tensor, values: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Attention of (batch, heads, new, d) queries to (batch, kv heads, n, d) keys; mask (..., new, n), True: seen."""
    return torch.nn.functional.scaled_dot_product_attention(
        query, keys, values, mask, scale=scaling, enable_gqa=query.shape[1] != keys.shape[1]
    )


def weights(query: Tensor, keys: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """The softmax that `attend` would weigh values by: (batch, heads, new, n)."""
    shared = query.shape[1] // keys.shape[1]
    scores = torch.matmul(query.float(), keys.float().repeat_interleave(shared, 1).transpose(-1, -2)) * scaling
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return torch.softmax(scores, -1)


class Policy(ABC):
    """A rule for what is read. Subclasses are frozen dataclasses; a layer's memory is in ``layer.memory``.

    Class attributes:
        compiled: whether the compiled step follows it.
        drops: whether tokens leave the cache after the prompt.
        remembers: whether what is read depends on earlier steps: then no draft can be computed and taken back.
    """

    compiled: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    drops: ClassVar[bool] = False

    def tensors(self, index: int, batch: int, heads: int, blocks: int, head_dim: int) -> dict[str, Tensor]:
        """What layer ``index`` keeps beside keys and values."""
        return {}

    def dense(self, index: int) -> bool:
        """Whether layer ``index`` reads everything."""
        return False

    @abstractmethod
    def budget(self, length: int) -> int:
        """Tokens that a step reads of ``length`` cached ones."""

    @abstractmethod
    def row(self, layer: CacheLayer, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Attention of one new token, query (batch, heads, 1, d), to the cache up to itself (batch, kv heads, n, d)."""

    def prompt(self, layer: CacheLayer, query: Tensor, keys: Tensor, scaling: float, start: int) -> None:  # noqa: B027
        """Sees a piece of the prompt: its queries (batch, heads, new, d) at ``start`` on, and all keys so far."""

    def prefilled(self, cache: KVCache) -> None:  # noqa: B027
        """The prompt is in the cache."""


def _grouped(scores: Tensor, kv_heads: int) -> Tensor:
    """(batch, heads, ...) averaged over the query heads of a kv head."""
    return scores.unflatten(1, (kv_heads, -1)).mean(2)


def _taken(tensor: Tensor, chosen: Tensor) -> Tensor:
    """Rows (batch, kv heads, k) of (batch, kv heads, n, d)."""
    return tensor.gather(2, chosen[..., None].expand(*chosen.shape, tensor.shape[-1]))


class _Selecting(Policy):
    """A policy that picks positions at every step."""

    @abstractmethod
    def choose(self, layer: CacheLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        """Positions (batch, kv heads, k) that are read, without repeats; None for all."""

    def row(self, layer: CacheLayer, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        chosen = None if self.dense(layer.index) else self.choose(layer, query, keys, scaling)
        if chosen is None:
            self.seen(layer, None, query, keys, scaling)
            return attend(query, keys, values, scaling)
        some = _taken(keys, chosen)
        self.seen(layer, chosen, query, some, scaling)
        return attend(query, some, _taken(values, chosen), scaling)

    def seen(self, layer: CacheLayer, chosen: Tensor | None, query: Tensor, keys: Tensor, scaling: float) -> None:
        """What was read and by what: for policies that remember weights."""


@dataclass(frozen=True)
class BlockTopK(_Selecting):
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

    def choose(self, layer: CacheLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length, block = keys.shape[2], self.block
        local = (length - 1) // block + 1 - self.local
        if local - 1 <= self.top:
            return None
        pooled = keys[:, :, block : local * block].float().unflatten(2, (local - 1, block)).mean(3)
        scores = _grouped(query.float(), keys.shape[1]) @ pooled.transpose(-1, -2)
        blocks = scores[:, :, 0].topk(self.top, -1).indices + 1
        tokens = (blocks[..., None] * block + torch.arange(block)).flatten(2)
        fixed = torch.cat((torch.arange(block), torch.arange(local * block, length)))
        return torch.cat((tokens, fixed.expand(*tokens.shape[:2], -1)), -1)


@dataclass(frozen=True)
class TopK(_Selecting):
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

    def choose(self, layer: CacheLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        end = length - self.local
        if length <= self.budget(length):
            return None
        middle = _grouped(query.float(), keys.shape[1]) @ keys[:, :, self.sinks : end].float().transpose(-1, -2)
        chosen = middle[:, :, 0].topk(self.top, -1).indices + self.sinks
        fixed = torch.cat((torch.arange(self.sinks), torch.arange(end, length)))
        return torch.cat((chosen, fixed.expand(*chosen.shape[:2], -1)), -1)


@dataclass(frozen=True)
class SparseWindow(_Selecting):
    """Sparse window attention of ALISA (arXiv 2403.17312): local tokens and those that mattered to the last steps.

    Of n cached tokens ``ratio`` n are read: half the newest ones, half those older ones to which the last steps gave
    the most weight, summed over as many steps as there are local tokens. Each kv head chooses for itself.

    Args:
        ratio: share of the cache that is read, in (0, 1].
        history: over how many of the last steps weights are summed; 0: as many as there are local tokens,
            -1: over all of them (the heavy hitters of H2O, arXiv 2306.14048).
    """

    remembers: ClassVar[bool] = True

    ratio: float = 0.2
    history: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1 or self.history < -1:
            raise HastenError("a sparse window reads a share in (0, 1] of the cache")

    def budget(self, length: int) -> int:
        return max(2, math.floor(self.ratio * length)) if length > 2 else length

    def split(self, length: int) -> tuple[int, int]:
        """(local, global) tokens of a budget."""
        budget = self.budget(length)
        local = max(1, budget // 2)
        return local, budget - local

    def prompt(self, layer: CacheLayer, query: Tensor, keys: Tensor, scaling: float, start: int) -> None:
        length = keys.shape[2]
        rows = query.shape[2] if self.history == -1 else min(query.shape[2], self._rows(length))
        mask = torch.arange(length) <= torch.arange(length - rows, length)[:, None]
        found = _grouped(weights(query[:, :, -rows:], keys, scaling, mask), keys.shape[1])
        if self.history == -1:
            past = layer.memory.get("total")
            total = found.sum(2)
            layer.memory["total"] = total if past is None else _widened(past, length) + total
        else:
            layer.memory["rows"] = found

    def _rows(self, length: int) -> int:
        return self.history or self.split(length)[0]

    def choose(self, layer: CacheLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        local, others = self.split(length)
        if local + others >= length:
            return None
        older = length - local
        scores = self.scores(layer, length)
        chosen = scores[..., :older].topk(others, -1).indices
        recent = torch.arange(older, length).expand(*chosen.shape[:2], -1)
        return torch.cat((chosen, recent), -1)

    def scores(self, layer: CacheLayer, length: int) -> Tensor:
        """Weight that each of ``length`` tokens got in the steps that count: (batch, kv heads, length)."""
        if self.history == -1:
            return _widened(layer.memory["total"], length)
        return _widened(layer.memory["rows"][:, :, -self._rows(length) :].sum(2), length)

    def seen(self, layer: CacheLayer, chosen: Tensor | None, query: Tensor, keys: Tensor, scaling: float) -> None:
        found = _grouped(weights(query, keys, scaling), keys.shape[1])[:, :, 0]
        length = layer.seen_length
        if chosen is not None:
            found = found.new_zeros(*found.shape[:2], length).scatter_(-1, chosen, found)
        if self.history == -1:
            past = layer.memory.get("total")
            layer.memory["total"] = found if past is None else _widened(past, length) + found
            return
        rows = layer.memory.get("rows")
        if rows is None:
            layer.memory["rows"] = found[:, :, None]
            return
        kept = rows[:, :, -(self._rows(length + 1) - 1) :] if self._rows(length + 1) > 1 else rows[:, :, :0]
        layer.memory["rows"] = torch.cat((_widened(kept, length), found[:, :, None]), 2)


def _widened(tensor: Tensor, length: int) -> Tensor:
    """Zeros behind what is known, up to ``length`` columns."""
    return torch.nn.functional.pad(tensor, (0, length - tensor.shape[-1]))


@dataclass(frozen=True)
class Strided(_Selecting):
    """Every so-many-th token, counted from the newest: what a budget buys without looking.

    Args:
        ratio: share of the cache that is read.
    """

    ratio: float = 0.2

    def budget(self, length: int) -> int:
        return max(1, math.floor(self.ratio * length))

    def choose(self, layer: CacheLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        count = self.budget(length)
        chosen = length - 1 - (torch.arange(count) * (length / count)).long()
        return chosen.expand(*keys.shape[:2], -1)


@dataclass(frozen=True)
class LocalShare(_Selecting):
    """The newest tokens, and the first ones if asked: a window that grows with the text.

    Args:
        ratio: share of the cache that is read.
        sinks: first tokens among them.
    """

    ratio: float = 0.2
    sinks: int = 0

    def budget(self, length: int) -> int:
        return max(self.sinks + 1, math.floor(self.ratio * length))

    def choose(self, layer: CacheLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        if self.budget(length) >= length:
            return None
        recent = torch.arange(length - self.budget(length) + self.sinks, length)
        return torch.cat((torch.arange(self.sinks), recent)).expand(*keys.shape[:2], -1)


@dataclass(frozen=True)
class LocalWindow(_Selecting):
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

    def choose(self, layer: CacheLayer, query: Tensor, keys: Tensor, scaling: float) -> Tensor | None:
        length = keys.shape[2]
        if length <= self.size:
            return None
        recent = torch.arange(length - self.size + self.sinks, length)
        return torch.cat((torch.arange(self.sinks), recent)).expand(*keys.shape[:2], -1)


class _Dropping(Policy):
    """A policy that keeps ``capacity`` tokens of a prompt, and all that follow."""

    drops: ClassVar[bool] = True
    capacity: int

    def budget(self, length: int) -> int:
        return min(length, self.capacity)

    def row(self, layer: CacheLayer, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        return attend(query, keys, values, scaling)

    @abstractmethod
    def kept(self, layer: CacheLayer, length: int) -> Tensor:
        """The positions (batch, kv heads, capacity) that stay, rising."""

    def prefilled(self, cache: KVCache) -> None:
        length = cache.get_seq_length()
        if length > self.capacity:
            cache.keep([self.kept(layer, length) for layer in cache.layers])
        for layer in cache.layers:
            layer.memory.clear()


@dataclass(frozen=True)
class SnapKV(_Dropping):
    """Of a long prompt, the tokens that its last ones attend to (SnapKV, arXiv 2404.14469).

    The softmax weights of the last ``window`` queries are summed, pooled over neighbours, averaged over the query heads
    of a kv head; the best positions stay beside the window itself. Keys keep their own rotation.

    Args:
        capacity: tokens that stay, the window's included.
        window: last queries that vote.
        kernel: width of the pooling, odd; 1 for none.
        pooling: ``mean`` or ``max``.
    """

    compiled: ClassVar[bool] = True

    capacity: int = 1024
    window: int = 32
    kernel: int = 5
    pooling: str = "mean"

    def __post_init__(self) -> None:
        if not 0 < self.window < self.capacity or self.kernel < 1 or self.kernel % 2 == 0:
            raise HastenError("SnapKV takes a window smaller than its capacity and an odd kernel")
        if self.pooling not in ("mean", "max"):
            raise HastenError(f"SnapKV pools by mean or max, not {self.pooling!r}")

    def prompt(self, layer: CacheLayer, query: Tensor, keys: Tensor, scaling: float, start: int) -> None:
        # Pieces of a prompt: the last queries may stand in two of them.
        held = layer.memory.get("queries")
        recent = query[:, :, -self.window :]
        if held is not None and recent.shape[2] < self.window:
            recent = torch.cat((held[:, :, recent.shape[2] - self.window :], recent), 2)
        layer.memory["queries"] = recent
        rows, length = recent.shape[2], keys.shape[2]
        mask = torch.arange(length) <= torch.arange(length - rows, length)[:, None]
        layer.memory["votes"] = weights(recent, keys, scaling, mask).sum(2)

    def kept(self, layer: CacheLayer, length: int) -> Tensor:
        votes = layer.memory["votes"][..., : length - self.window]
        pool = torch.nn.functional.avg_pool1d if self.pooling == "mean" else torch.nn.functional.max_pool1d
        smooth = pool(votes, self.kernel, stride=1, padding=self.kernel // 2)
        smooth = _grouped(smooth, layer.heads)
        best = smooth.topk(self.capacity - self.window, -1).indices.sort(-1).values
        recent = torch.arange(length - self.window, length).expand(*best.shape[:2], -1)
        return torch.cat((best, recent), -1)


@dataclass(frozen=True)
class RandomKeep(_Dropping):
    """Any tokens of the prompt, and its last ones: the control for `SnapKV`.

    Args:
        capacity: tokens that stay, the window's included.
        window: last tokens among them.
        seed: of the choice.
    """

    compiled: ClassVar[bool] = True

    capacity: int = 1024
    window: int = 32
    seed: int = 0

    def kept(self, layer: CacheLayer, length: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1000 + layer.index)
        shape = (layer.keys.shape[0], layer.heads, length - self.window)
        best = torch.rand(shape, generator=generator).topk(self.capacity - self.window, -1).indices.sort(-1).values
        recent = torch.arange(length - self.window, length).expand(*best.shape[:2], -1)
        return torch.cat((best, recent), -1)


@dataclass(frozen=True)
class KeepEnds(_Dropping):
    """The first tokens of the prompt and its last ones: StreamingLLM's choice at `SnapKV`'s budget.

    Args:
        capacity: tokens that stay.
        sinks: first tokens among them.
    """

    compiled: ClassVar[bool] = True

    capacity: int = 1024
    sinks: int = 4

    def kept(self, layer: CacheLayer, length: int) -> Tensor:
        ends = torch.cat((torch.arange(self.sinks), torch.arange(length - self.capacity + self.sinks, length)))
        return ends.expand(layer.keys.shape[0], layer.heads, -1)
