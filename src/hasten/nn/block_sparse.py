"""Attention over whole blocks of keys that a fixed pattern names: the sparse layers of LongGen (arXiv 2410.01485).

A pattern says for every query block which key blocks it reads; within its own block a token sees those before it. Both
patterns here let a cache drop blocks for good: what a later query block still reads, all earlier ones have read.
"""

from __future__ import annotations

import contextlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
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
        """Whether no query block among the first ``count`` reads what an earlier one, behind it, has not read.

        Then a cache may drop what is not read. A pattern that can say so of all blocks at once overrides this.
        """
        for head in range(heads):
            before: set[int] = set()
            for query in range(count):
                read = set(self.blocks(head, query))
                if not read <= before | {query}:
                    return False
                before = read
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

    def blocks(self, head: int, query: int) -> list[int]:
        first = max(0, query + 1 - self.local)
        return [*range(min(self.sinks, first)), *range(first, query + 1)]

    def droppable(self, heads: int, count: int = 64) -> bool:
        # What falls out of the window only moves further away from it.
        return True


@dataclass(frozen=True)
class VerticalStride(Pattern):
    """The newest blocks and every so-many-th, another one for each head, so that heads together see everything.

    Args:
        local: newest blocks, the own one included.
        stride: distance of the others.
        heads: kv heads that the pattern turns over.
        rotate: whether heads differ.
        offset: how many blocks before each multiple of the stride the first head's blocks stand.
        dense: kv heads that read everything.
    """

    local: int = 16
    stride: int = 8
    heads: int = 1
    rotate: bool = True
    offset: int = 0
    dense: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.local < 1 or self.stride < 1 or self.heads < 1:
            raise HastenError("a stride pattern has local, stride and heads >= 1")
        if any(not 0 <= h < self.heads for h in self.dense):
            raise HastenError(f"dense heads are kv heads, numbers from 0 to {self.heads - 1}: give heads= all that are")

    def _turned(self, head: int) -> int:
        return self.offset + (head * max(1, self.stride // self.heads) if self.rotate else 0)

    def reads(self, head: int, query: int, key: int) -> bool:
        return head in self.dense or query - key < self.local or (key + self._turned(head)) % self.stride == 0

    def blocks(self, head: int, query: int) -> list[int]:
        if head in self.dense:
            return list(range(query + 1))
        first = max(0, query + 1 - self.local)
        return [*range(-self._turned(head) % self.stride, first, self.stride), *range(first, query + 1)]

    def droppable(self, heads: int, count: int = 64) -> bool:
        # Whether a block behind the window is read depends on the block alone.
        return True


def block_sparse_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    *,
    block: int = 64,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of every query block to the key blocks that ``pattern`` names; no score outside them is computed.

    Args:
        query: (batch, heads, length, d).
        key, value: (batch, kv heads, length, d).
        pattern: per kv head.
        block: tokens of a block.
        scaling: of the scores; 1 / sqrt(d) when None.
        dropout: share of the weights that are set to zero.

    Returns:
        (batch, heads, length, d), differentiable.
    """
    heads, shared = key.shape[1], query.shape[1] // key.shape[1]
    count = -(-query.shape[2] // block)
    chosen = [[pattern.blocks(h, i) for i in range(count)] for h in range(heads)]
    # Heads that read everything are computed apart, so that the others need not.
    dense = [h for h in range(heads) if all(len(c) == i + 1 for i, c in enumerate(chosen[h]))]
    sparse = [h for h in range(heads) if h not in dense]
    parts = []
    for group in (g for g in (dense, sparse) if g):
        q, k, v = query, key, value
        if len(group) < heads:
            q, k, v = query[:, [h * shared + s for h in group for s in range(shared)]], key[:, group], value[:, group]
        if group is dense:
            found = F.scaled_dot_product_attention(
                q, k, v, None, dropout, is_causal=True, scale=scaling, enable_gqa=shared != 1
            )
        else:
            found = _by_block(q, k, v, [chosen[h] for h in group], block, scaling, dropout)
        parts.append(found)
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([h * shared + s for h in dense + sparse for s in range(shared)], device=query.device).argsort()
    return torch.cat(parts, 1)[:, order]


def _by_block(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chosen: list[list[list[int]]],
    block: int,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """`block_sparse_attention` of heads whose blocks are chosen: kv head, query block -> key blocks."""
    shared = query.shape[1] // key.shape[1]
    # Split once: the gradient of a slice is as large as what it is a slice of.
    queries, keys, values = (t.split(block, 2) for t in (query, key, value))
    out = []
    for i, q in enumerate(queries):
        names = [head[i] for head in chosen]
        most, new = max(map(len, names)), q.shape[2]
        own = torch.ones(new, new, dtype=torch.bool, device=q.device).tril()
        if all(n == names[0] for n in names):
            k, v = (torch.cat([t[j] for j in names[0]], 2) for t in (keys, values))
            mask = torch.cat((own.new_ones(new, k.shape[2] - new), own), 1)
        else:
            # Heads of fewer blocks are filled up in front with the first, which the mask hides; the own stays last.
            filled = [[0] * (most - len(n)) + n for n in names]
            k, v = (
                torch.stack([torch.cat([t[j][:, h] for j in row], 1) for h, row in enumerate(filled)], 1)
                for t in (keys, values)
            )
            seen = torch.tensor([[False] * (most - len(n)) + [True] * (len(n) - 1) for n in names], device=q.device)
            wide = seen.repeat_interleave(block, 1)[:, None].expand(-1, new, -1)
            # With a dimension for the batch, or torch takes its slow way.
            mask = torch.cat((wide, own.expand(len(names), -1, -1)), 2).repeat_interleave(shared, 0)[None]
        out.append(F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=scaling, enable_gqa=shared != 1))
    return torch.cat(out, 2)


_COMES_BACK = "this pattern comes back to blocks it has left: its cache cannot drop any"


class BlockCache:
    """Keys and values of a sparse layer (batch, kv heads, n, d) for decoding: blocks that are not read any more go.

    Args:
        pattern: of the layer; for each kv head other blocks may stay.
        heads: kv heads.
        block: tokens of a block.
        count: blocks of which it is found out at once whether the pattern leaves them for good; of those behind, when
            they come.

    Raises:
        HastenError: a pattern that comes back to blocks it has left; from `append` where it is behind ``count``.
    """

    def __init__(self, pattern: Pattern, heads: int, block: int = 64, count: int = 64) -> None:
        if not pattern.droppable(heads, count):
            raise HastenError(_COMES_BACK)
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
                    read = self.pattern.blocks(h, block)
                    if not self._kept[h].keys() >= set(read):
                        raise HastenError(_COMES_BACK)
                    self._kept[h] = {j: self._kept[h][j] for j in read}
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

    def taken(self, rows: Tensor) -> BlockCache:
        """A cache of these rows of the batch, some of them perhaps several times."""
        found = BlockCache(self.pattern, self.heads, self.block, 0)
        found.length = self.length
        found._kept = [{j: (k[rows], v[rows]) for j, (k, v) in head.items()} for head in self._kept]
        return found

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept."""
        return sum(t.nbytes for head in self._kept for pair in head.values() for t in pair)


_NAME = "hasten-block-sparse"


def _mask(*args: Any, attention_mask: Tensor | None = None, **kwargs: Any) -> Tensor | None:
    """What the layers are given of a mask (batch, all tokens so far), True: a token; None where all are tokens."""
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    for name in ("sliding_window", "softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise HastenError(f"block-sparse layers have no {name}, and this model's attention has: convert another")
    if mask is not None and mask.ndim != 2:
        raise HastenError("block-sparse layers take a mask of padding (batch, length), none of four dimensions")
    positions = kwargs.get("position_ids")
    layers = getattr(module.pattern_cache, "layers", None)
    if layers and hasattr(layers[module.layer_idx], "attend"):
        real = mask if mask is None else mask[:, mask.shape[1] - query.shape[2] :]
        if query.shape[2] > 1 and len(documents_of(query, real, positions)) > query.shape[0]:
            raise HastenError("a cache goes on with one text a row: read several documents in a row without one")
        found = layers[module.layer_idx].attend(query, key, value, scaling, real)
    elif key.shape[2] != query.shape[2]:
        raise HastenError("block-sparse layers drop what they do not read: generate with a PatternCache")
    else:

        def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return whole_attention(
                q, k, v, module.block_pattern, block=module.pattern_block, scaling=scaling, dropout=dropout
            )

        found = _by_document(whole, query, key, value, mask, positions)
    return found.transpose(1, 2).contiguous(), None


def documents_of(query: Tensor, real: Tensor | None, positions: Tensor | None) -> list[tuple[int, Tensor]]:
    """(row, its columns) of every text in a batch of queries (batch, heads, length, d).

    Args:
        query: for its sizes.
        real: (batch, length), True for tokens and False for padding; None: all are tokens.
        positions: (1 or batch, length); a row holds several texts, one behind the other, where they begin anew.
    """
    found = []
    for row in range(query.shape[0]):
        columns = torch.arange(query.shape[2], device=query.device)
        if real is not None:
            columns = columns[real[row]]
        starts = [0]
        if positions is not None:
            turns = positions[row if positions.shape[0] > 1 else 0][columns]
            starts += ((turns[1:] <= turns[:-1]).nonzero()[:, 0] + 1).tolist()
        found += [(row, columns[a:b]) for a, b in itertools.pairwise([*starts, len(columns)]) if a < b]
    return found


def _by_document(
    whole: Callable[[Tensor, Tensor, Tensor], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """Attention within each text of each row; where there is padding, zeros or what nothing reads."""
    # Padding behind a text is seen by nothing before it.
    padded = mask is not None and not bool((mask[:, 1:] <= mask[:, :-1]).all())
    packed = positions is not None and bool((positions[:, 1:] <= positions[:, :-1]).any())
    if not padded and not packed:
        return whole(query, key, value)
    batch, heads, length, _ = query.shape
    texts = documents_of(query, mask, positions)
    if not texts:
        return query.new_zeros(batch, heads, length, value.shape[-1])
    parts = [whole(*(t[row : row + 1, :, columns] for t in (query, key, value)))[0] for row, columns in texts]
    places = torch.cat([row * length + columns for row, columns in texts])
    found = torch.cat(parts, 1)
    out = found.new_zeros(heads, batch * length, value.shape[-1]).index_copy(1, places, found)
    return out.unflatten(1, (batch, length)).transpose(0, 1)


def whole_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern | None,
    *,
    block: int,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention within one whole text: `block_sparse_attention`, or full and causal where ``pattern`` is None."""
    if pattern is not None:
        return block_sparse_attention(query, key, value, pattern, block=block, scaling=scaling, dropout=dropout)
    shared = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=shared
    )


def _enter(module: Any, args: Any, kwargs: Any) -> None:
    module.pattern_cache = kwargs.get("past_key_values")


def _leave(module: Any, args: Any, output: Any) -> None:
    module.pattern_cache = None


def convert(
    network: Any, pattern: Pattern | None, full_layers: Sequence[int], *, block: int = 64, rope_scale: float = 1.0
) -> Any:
    """Gives a transformers causal LM sparse layers, and its rotary positions a longer reach; weights stay.

    It is trained and read as any other. Several documents packed into a row do not see each other when ``position_ids``
    begins anew with each; padding of an ``attention_mask`` (batch, length) is left out, so that every text has its own
    blocks from its first token on. It generates with a `hasten.runtime.pattern_cache.PatternCache`.

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
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, _mask)
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
