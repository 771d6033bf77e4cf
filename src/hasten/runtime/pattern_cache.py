"""Generating with the layers of `hasten.nn.block_sparse`: full ones keep everything, sparse ones what is still read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from hasten.models.decoder import decoder_of
from hasten.nn.block_sparse import BlockCache, Pattern, whole_attention
from hasten.runtime.policies import attend


class _Layer(CacheLayerMixin):
    """One layer: all keys and values, or the blocks that its pattern still reads.

    Where a batch has padding, each row is a layer by itself, and what is padding is not kept.
    """

    is_compileable = False

    def __init__(self, pattern: Pattern | None, heads: int, block: int) -> None:
        super().__init__()
        self.pattern, self.heads, self.block, self.length = pattern, heads, block, 0
        # Whether the pattern leaves blocks for good the whole cache has found out.
        self.blocks = None if pattern is None else BlockCache(pattern, heads, block, 0)
        self.is_initialized = True
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.rows: list[_Layer] = []

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The new ones as they are: `attend` takes them in, token by token where blocks may go in between."""
        return key_states, value_states

    def taken(self, rows: Tensor) -> _Layer:
        """A layer of these rows of the batch, some of them perhaps several times."""
        found = _Layer(self.pattern, self.heads, self.block)
        found.length = self.length
        found.blocks = None if self.blocks is None else self.blocks.taken(rows)
        if self.keys is not None and self.values is not None:
            found.keys, found.values = self.keys[rows], self.values[rows]
        one = torch.zeros(1, dtype=torch.int64)
        found.rows = [self.rows[i].taken(one) for i in rows.tolist()] if self.rows else []
        return found

    def reorder_cache(self, beam_idx: Tensor) -> None:
        found = self.taken(beam_idx)
        self.blocks, self.keys, self.values, self.rows = found.blocks, found.keys, found.values, found.rows

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, real: Tensor | None = None) -> Tensor:
        """Takes in new tokens (batch, kv heads, new, d); attention (batch, heads, new, d) of their queries.

        Args:
            query, key, value: of the new tokens.
            scaling: of the scores.
            real: (batch, new), False for padding, which is not kept and has zeros for attention; None: all are tokens.
        """
        if real is not None and not self.rows and not bool(real.all()):
            self.rows = [self.taken(torch.tensor([i])) for i in range(len(query))]
            self.keys = self.values = self.blocks = None
        first, self.length = self.length == 0, self.length + key.shape[2]
        if self.rows:
            out = query.new_zeros(*query.shape[:3], value.shape[-1])
            for i, row in enumerate(self.rows):
                columns = torch.arange(query.shape[2]) if real is None else real[i].nonzero()[:, 0]
                if len(columns):
                    q, k, v = (t[i : i + 1, :, columns] for t in (query, key, value))
                    out[i, :, columns] = row.attend(q, k, v, scaling)[0]
            return out
        if first:
            self._keep(key, value)
            return whole_attention(query, key, value, self.pattern, block=self.block, scaling=scaling)
        rows = []
        for i in range(key.shape[2]):
            now = slice(i, i + 1)
            self._keep(key[:, :, now], value[:, :, now])
            if self.blocks is not None:
                rows.append(self.blocks.attend(query[:, :, now], scaling))
            else:
                assert self.keys is not None
                assert self.values is not None
                rows.append(attend(query[:, :, now], self.keys, self.values, scaling))
        return torch.cat(rows, 2)

    def _keep(self, key: Tensor, value: Tensor) -> None:
        if self.blocks is not None:
            self.blocks.append(key, value)
        else:
            self.keys = key if self.keys is None else torch.cat((self.keys, key), 2)
            self.values = value if self.values is None else torch.cat((self.values, value), 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    @property
    def nbytes(self) -> int:
        if self.rows:
            return sum(row.nbytes for row in self.rows)
        if self.blocks is not None:
            return self.blocks.nbytes
        return 0 if self.keys is None or self.values is None else self.keys.nbytes + self.values.nbytes


class PatternCache(Cache):
    """A transformers cache for a network that `hasten.nn.block_sparse.convert` changed.

    Keys are kept as they were turned, so positions stay true whatever leaves. A prompt is read at once and whole. Rows
    of a batch may be padded, and none has room for its padding.

    Args:
        network: converted, and still with the layers that it shall generate with.

    Raises:
        HastenError: a pattern that comes back to blocks it has left, anywhere in as long a text as the network has
            positions for; in a longer text when that is reached.

    Example:
        ``network.generate(ids, past_key_values=PatternCache(network), max_new_tokens=32)``
    """

    def __init__(self, network: Any) -> None:
        heads = int(network.config.num_key_value_heads)
        decoder = decoder_of(network)
        modules = [decoder.layer(i).attention for i in range(len(decoder.layers))]
        # Once for all layers that share a pattern.
        patterns = {(id(m.block_pattern), m.pattern_block): m.block_pattern for m in modules}
        for (_, block), pattern in patterns.items():
            if pattern is not None:
                BlockCache(pattern, heads, block, -(-network.config.max_position_embeddings // block))
        super().__init__(layers=[_Layer(m.block_pattern, heads, m.pattern_block) for m in modules])

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values that are kept."""
        return sum(layer.nbytes for layer in self.layers)
