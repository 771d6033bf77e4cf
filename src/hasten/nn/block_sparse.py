"""Attention over whole blocks of keys that a fixed pattern names: the sparse layers of LongGen (arXiv 2410.01485).

A pattern says for every query block which key blocks it reads; within its own block a token sees those before it. Both
patterns here let a cache drop blocks for good: what a later query block still reads, all earlier ones have read.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.errors import HastenError


class Pattern(ABC):
    """Which key blocks a query block reads, for each kv head."""

    @abstractmethod
    def reads(self, head: int, query: int, key: int) -> bool:
        """Whether query block ``query`` of a head reads key block ``key``; asked for ``key <= query``."""

    def blocks(self, head: int, query: int) -> list[int]:
        """The key blocks of a query block, rising, its own last."""
        return [j for j in range(query + 1) if self.reads(head, query, j)]

    def mask(self, heads: int, count: int) -> Tensor:
        """(heads, count, count) of all blocks: True where read."""
        rows = [[[j <= i and self.reads(h, i, j) for j in range(count)] for i in range(count)] for h in range(heads)]
        return torch.tensor(rows)

    def droppable(self, heads: int, count: int = 64) -> bool:
        """Whether a block that a query block does not read is never read again: then a cache may drop it."""
        whole = self.mask(heads, count)
        for i in range(count - 1):
            again = whole[:, i + 1, : i + 1] & ~whole[:, i, : i + 1]
            if again.any():
                return False
        return True


@dataclass(frozen=True)
class SinkWindow(Pattern):
    """The first blocks and the newest: a cache of constant size.

    Args:
        sinks: first blocks.
        local: newest blocks, the own one included.
    """

    sinks: int = 1
    local: int = 16

    def __post_init__(self) -> None:
        if self.sinks < 0 or self.local < 1:
            raise HastenError("a sink-and-window pattern has sinks >= 0 and local >= 1")

    def reads(self, head: int, query: int, key: int) -> bool:
        return key < self.sinks or query - key < self.local


@dataclass(frozen=True)
class VerticalStride(Pattern):
    """The newest blocks and every so-many-th, another one for each head, so that heads together see everything.

    Args:
        local: newest blocks, the own one included.
        stride: distance of the others.
        heads: kv heads that the pattern turns over.
        rotate: whether heads differ.
    """

    local: int = 16
    stride: int = 8
    heads: int = 1
    rotate: bool = True

    def __post_init__(self) -> None:
        if self.local < 1 or self.stride < 1 or self.heads < 1:
            raise HastenError("a stride pattern has local, stride and heads >= 1")

    def reads(self, head: int, query: int, key: int) -> bool:
        step = max(1, self.stride // self.heads)
        turned = head * step if self.rotate else 0
        return query - key < self.local or (key + turned) % self.stride == 0


def block_sparse_attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern, *, block: int = 64, scaling: float | None = None
) -> Tensor:
    """Attention of every query block to the key blocks that ``pattern`` names; no score outside them is computed.

    Args:
        query: (batch, heads, length, d).
        key, value: (batch, kv heads, length, d).
        pattern: per kv head.
        block: tokens of a block.
        scaling: of the scores; 1 / sqrt(d) when None.

    Returns:
        (batch, heads, length, d), differentiable.
    """
    heads, length = key.shape[1], query.shape[2]
    shared = query.shape[1] // heads
    out = []
    for i in range(-(-length // block)):
        rows = slice(i * block, min(length, (i + 1) * block))
        chosen = [pattern.blocks(h, i) for h in range(heads)]
        most = max(map(len, chosen))
        own = torch.ones(rows.stop - rows.start, rows.stop - rows.start, dtype=torch.bool, device=query.device).tril()
        if all(c == chosen[0] for c in chosen):
            places = torch.cat([torch.arange(j * block, min(length, (j + 1) * block)) for j in chosen[0]])
            keys, values = key[:, :, places], value[:, :, places]
            mask = torch.cat((own.new_ones(own.shape[0], len(places) - own.shape[1]), own), 1)
        else:
            # Heads of fewer blocks are filled up in front with the first, which the mask hides; the own block stays
            # last.
            filled = torch.tensor([[0] * (most - len(c)) + c for c in chosen])
            places = (filled[..., None] * block + torch.arange(block)).flatten(1)[
                :, : (most - 1) * block + own.shape[1]
            ]
            index = places[None, :, :, None].expand(key.shape[0], -1, -1, key.shape[-1])
            keys, values = key.gather(2, index), value.gather(2, index)
            seen = torch.tensor([[False] * (most - len(c)) + [True] * len(c) for c in chosen])
            wide = seen.repeat_interleave(block, 1)[:, : places.shape[1] - own.shape[1]]
            mask = torch.cat((wide[:, None].expand(-1, own.shape[0], -1), own.expand(heads, -1, -1)), 2)
            mask = mask.repeat_interleave(shared, 0)
        out.append(
            F.scaled_dot_product_attention(query[:, :, rows], keys, values, mask, scale=scaling, enable_gqa=shared != 1)
        )
    return torch.cat(out, 2)


class BlockCache:
    """Keys and values of a sparse layer (batch, kv heads, n, d) for decoding: blocks that are not read any more go.

    Args:
        pattern: of the layer; for each kv head other blocks may stay.
        heads: kv heads.
        block: tokens of a block.

    Raises:
        HastenError: a pattern that comes back to blocks it has left.
    """

    def __init__(self, pattern: Pattern, heads: int, block: int = 64) -> None:
        if not pattern.droppable(heads):
            raise HastenError("this pattern comes back to blocks it has left: its cache cannot drop any")
        self.pattern, self.heads, self.block = pattern, heads, block
        self.length = 0
        self._kept: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(heads)]

    def append(self, key: Tensor, value: Tensor) -> None:
        """Takes in the keys and values (batch, kv heads, new, d) of the newest tokens, in order."""
        at = 0
        while at < key.shape[2]:
            block, inside = divmod(self.length, self.block)
            count = min(self.block - inside, key.shape[2] - at)
            for h in range(self.heads):
                k, v = key[:, h, at : at + count], value[:, h, at : at + count]
                if inside:
                    old = self._kept[h][block]
                    k, v = torch.cat((old[0], k), 1), torch.cat((old[1], v), 1)
                self._kept[h][block] = (k.clone(), v.clone())
                if not inside:
                    self._kept[h] = {j: p for j, p in self._kept[h].items() if self.pattern.reads(h, block, j)}
            self.length += count
            at += count

    def attend(self, query: Tensor, scaling: float | None = None) -> Tensor:
        """Attention of the newest token (batch, heads, 1, d) to what is kept."""
        shared = query.shape[1] // self.heads
        out = []
        for h in range(self.heads):
            keys, values = (torch.cat([p[i] for _, p in sorted(self._kept[h].items())], 1) for i in (0, 1))
            rows = query[:, h * shared : (h + 1) * shared, 0]
            out.append(F.scaled_dot_product_attention(rows, keys, values, scale=scaling))
        return torch.cat(out, 1)[:, :, None]

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(t.nbytes for head in self._kept for pair in head.values() for t in pair)


_NAME = "hasten-block-sparse"


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **kwargs: Any
) -> tuple[Tensor, None]:
    layers = getattr(module.pattern_cache, "layers", None)
    if layers and hasattr(layers[module.layer_idx], "attend"):
        found = layers[module.layer_idx].attend(query, key, value, scaling)
    elif key.shape[2] != query.shape[2]:
        raise HastenError("block-sparse layers drop what they do not read: generate with a PatternCache")
    else:
        found = _by_document(module, query, key, value, scaling, kwargs.get("position_ids"))
    return found.transpose(1, 2).contiguous(), None


def _by_document(
    module: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float, positions: Tensor | None
) -> Tensor:
    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return whole_attention(q, k, v, module.block_pattern, block=module.pattern_block, scaling=scaling)

    # A row holds several documents, one behind the other, where positions (batch, length) begin anew.
    if positions is None or not (positions[:, 1:] <= positions[:, :-1]).any():
        return whole(query, key, value)
    rows = []
    for row, turns in enumerate(positions.expand(query.shape[0], -1)):
        starts = [0, *((turns[1:] <= turns[:-1]).nonzero()[:, 0] + 1).tolist()]
        documents = zip(starts, [*starts[1:], query.shape[2]], strict=True)
        own = [t[row : row + 1] for t in (query, key, value)]
        parts = [whole(*(t[:, :, a:b] for t in own)) for a, b in documents]
        rows.append(torch.cat(parts, 2))
    return torch.cat(rows)


def whole_attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: Pattern | None, *, block: int, scaling: float | None = None
) -> Tensor:
    """Attention within one whole text: `block_sparse_attention`, or full and causal where ``pattern`` is None."""
    if pattern is not None:
        return block_sparse_attention(query, key, value, pattern, block=block, scaling=scaling)
    shared = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=shared)


def _enter(module: Any, args: Any, kwargs: Any) -> None:
    module.pattern_cache = kwargs.get("past_key_values")


def _leave(module: Any, args: Any, output: Any) -> None:
    module.pattern_cache = None


def convert(
    network: Any, pattern: Pattern | None, full_layers: Sequence[int], *, block: int = 64, rope_scale: float = 1.0
) -> Any:
    """Gives a transformers causal LM sparse layers, and its rotary positions a longer reach; weights stay.

    It is trained and read as any other. Several documents packed into a row do not see each other when ``position_ids``
    begins anew with each; it generates with a `hasten.runtime.pattern_cache.PatternCache`.

    Args:
        network: a Llama-like one, changed in place.
        pattern: of all layers but ``full_layers``; None makes all full.
        full_layers: layers with full attention; see `hasten.methods.sliding_window.middle_third`.
        block: tokens of a block.
        rope_scale: what the base of the rotary positions is multiplied by, for longer texts.

    Raises:
        HastenError: a layer that is not there.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    layers = network.model.layers
    if any(not 0 <= i < len(layers) for i in full_layers):
        raise HastenError(f"full layers are numbers from 0 to {len(layers) - 1}")
    AttentionInterface.register(_NAME, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, lambda *a, **k: None)
    for i, layer in enumerate(layers):
        layer.self_attn.block_pattern = None if i in full_layers else pattern
        layer.self_attn.pattern_block = block
        if not hasattr(layer.self_attn, "pattern_cache"):
            layer.self_attn.register_forward_pre_hook(_enter, with_kwargs=True)
            layer.self_attn.register_forward_hook(_leave, always_call=True)
            layer.self_attn.pattern_cache = None
    network.config._attn_implementation = _NAME
    if rope_scale != 1.0:
        network.config.rope_parameters["rope_theta"] *= rope_scale
        network.model.rotary_emb = type(network.model.rotary_emb)(network.config)
    return network


@contextlib.contextmanager
def patterned(network: Any, pattern: Pattern | None, full_layers: Sequence[int], *, block: int = 64) -> Iterator[Any]:
    """Within, ``network`` has the sparse layers of `convert`; afterwards its own attention again."""
    before = network.config._attn_implementation
    kept = [
        (getattr(layer.self_attn, "block_pattern", None), getattr(layer.self_attn, "pattern_block", block))
        for layer in network.model.layers
    ]
    try:
        yield convert(network, pattern, full_layers, block=block)
    finally:
        network.config._attn_implementation = before
        for layer, (old, size) in zip(network.model.layers, kept, strict=True):
            layer.self_attn.block_pattern, layer.self_attn.pattern_block = old, size
