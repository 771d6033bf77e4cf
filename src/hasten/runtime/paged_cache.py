"""A key-value cache of many sequences in one pool of blocks, read by the compiled step through block tables.

Sequences need not be given room for the longest text, and those that begin alike can read the same blocks
(PagedAttention, arXiv 2309.06180, section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.kernels import kv_cache as kernel
from hasten.runtime.cache import CacheSpec


@dataclass(frozen=True)
class PagedLayer:
    """One layer's part of the pool.

    Attributes:
        tensors: by name as `hasten.kernels.kv_cache.layout` says, for one sequence as long as the pool; of a quantized
            cache the recent tokens are each sequence's own.
        spec: format.
    """

    tensors: dict[str, Tensor]
    spec: CacheSpec


class PagedCache:
    """Keys and values in a pool of blocks of `hasten.kernels.kv_cache.BLOCK` (32) tokens, and who has which block.

    Which blocks are free, and which are shared by how many, is the caller's to keep. A block may stand in the tables
    of several sequences as long as none writes into it: whole blocks before the place where their texts part.

        cache = model.new_paged_cache(sequences=16, capacity=4096, blocks=2048)
        step = CompiledStep(model.network, cache)
        cache.set_table(0, [7, 3, 12])               # room for 96 tokens of sequence 0
        logits = step(prompt, [0] * 70, list(range(70)), answered=[69])
        cache.advance({0: 70})                       # committed: 70 tokens, blocks 7 and 3 are whole
        cache.set_table(5, [7, 3, 40])               # another text with the same first 64 tokens ...
        cache.start(5, 64)                           # ... which are read already
        rows = [token, *rest]                        # a token of sequence 0 beside a piece of sequence 5's prompt
        sequences = [0] + [5] * len(rest)
        positions = [70, *range(64, 64 + len(rest))]
        logits = step(rows, sequences, positions, answered=[0, len(rest)])
        cache.advance({0: 1, 5: len(rest)})
        cache.copy_block(12, 41)                     # to write behind a shared part of a block, take a copy
        cache.set_table(6, [7, 3, 41])
        cache.start(6, 70)
        cache.clear(5)                               # blocks 7, 3 and 40 are the caller's again

    Args:
        spec: format; no window and no policy.
        layers: number of decoder layers.
        sequences: texts at a time; each has a number below this.
        heads: key-value heads.
        head_dim: channels of a head.
        capacity: tokens of one sequence at most.
        blocks: of the pool.
        recent: newest tokens of a quantized cache that are no codes, see `hasten.kernels.kv_cache.layout`.

    Raises:
        HastenError: a cache whose tokens do not all see all before them, or one without blocks.
    """

    def __init__(
        self,
        spec: CacheSpec,
        *,
        layers: int,
        sequences: int,
        heads: int,
        head_dim: int,
        capacity: int,
        blocks: int,
        recent: int = kernel.RECENT,
    ) -> None:
        if not spec.whole:
            raise HastenError("a cache in a shared pool of blocks keeps everything: give it no window and no policy")
        if blocks < 1 or sequences < 1 or capacity < 1:
            raise HastenError(f"{blocks} blocks for {sequences} sequences of {capacity} tokens hold nothing")
        self.spec = spec
        self.recent = recent
        self.blocks = blocks
        self.table_blocks = -(-capacity // kernel.BLOCK)
        self.capacity = self.table_blocks * kernel.BLOCK
        self.version = 0
        self.lengths = [0] * sequences
        # Blocks of each sequence that are codes, where the cache is quantized.
        self.quantized = [0] * sequences
        shapes = spec.layout(1, heads, head_dim, blocks * kernel.BLOCK, recent)
        self._pooled = [name for name in shapes if not name.startswith("recent")]
        made = []
        for _ in range(layers):
            tensors = {
                name: torch.zeros(shape if name in self._pooled else (sequences, *shape[1:]), dtype=dtype, device="cpu")
                for name, (shape, dtype) in shapes.items()
            }
            made.append(PagedLayer(tensors, spec))
        self.layers = tuple(made)
        # Entries behind a sequence's own are 0.
        self.tables = torch.zeros(sequences, self.table_blocks, dtype=torch.int32, device="cpu")
        self._tables: list[list[int]] = [[] for _ in range(sequences)]

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.nbytes for layer in self.layers for t in layer.tensors.values()) + self.tables.nbytes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in all layers."""
        shares = (layer.tensors[name].nbytes // self.blocks for layer in self.layers for name in self._pooled)
        return sum(shares)

    def table(self, sequence: int) -> list[int]:
        """The blocks of a sequence, in order."""
        return list(self._tables[self._known(sequence)])

    def set_table(self, sequence: int, blocks: Sequence[int]) -> None:
        """Gives a sequence these blocks, in the order of its text, in place of those that it had.

        Raises:
            IndexError: a sequence or a block that does not exist.
            ValueError: a block twice, more than a sequence may have, or fewer than hold what is committed.
        """
        given = [int(block) for block in blocks]
        for block in given:
            if not 0 <= block < self.blocks:
                raise IndexError(f"block {block} is not one of the pool's {self.blocks}")
        if len(set(given)) < len(given):
            raise ValueError("a sequence's table has a block twice")
        if not self.lengths[self._known(sequence)] <= len(given) * kernel.BLOCK <= self.capacity:
            length = self.lengths[sequence]
            raise ValueError(f"{len(given)} blocks are not for a text of {length} to {self.capacity} tokens")
        self._tables[sequence] = given
        row = self.tables[sequence]
        row.zero_()
        row[: len(given)] = torch.tensor(given, dtype=torch.int32)

    def start(self, sequence: int, length: int) -> None:
        """Says that a sequence's first ``length`` tokens are in its blocks already, others' work.

        Raises:
            ValueError: more than its blocks hold, or of a quantized cache a part of a block.
        """
        if not 0 <= length <= len(self._tables[self._known(sequence)]) * kernel.BLOCK:
            raise ValueError(f"the blocks of sequence {sequence} do not hold {length} tokens")
        if self.spec.quantized and length % kernel.BLOCK:
            raise ValueError("of a quantized cache whole blocks can be shared: their tokens alone are codes")
        self.lengths[sequence] = length
        self.quantized[sequence] = length // kernel.BLOCK if self.spec.quantized else 0

    def advance(self, counts: dict[int, int]) -> None:
        """Commits new tokens of some sequences, number -> how many, all of whose keys and values are written."""
        for sequence, count in counts.items():
            length = self.lengths[self._known(sequence)]
            if count < 0 or length + count > len(self._tables[sequence]) * kernel.BLOCK:
                raise ValueError(f"the blocks of sequence {sequence} do not hold {length + count} tokens")
            if self.spec.quantized and count:
                self.quantized[sequence] = kernel.quantized_after(length, count, self.recent)
            self.lengths[sequence] += count

    def retract(self, sequence: int, tokens: int) -> None:
        """Forgets the newest ``tokens`` of a sequence.

        Raises:
            ValueError: there are fewer, or some are codes already.
        """
        length = self.lengths[self._known(sequence)] - tokens
        if tokens < 0 or length < self.quantized[sequence] * kernel.BLOCK:
            raise ValueError(f"sequence {sequence} cannot give {tokens} tokens back")
        self.lengths[sequence] = length

    def clear(self, sequence: int) -> None:
        """Empties a sequence; its blocks are in no table of it any more."""
        self.lengths[self._known(sequence)] = self.quantized[sequence] = 0
        self.set_table(sequence, [])

    def copy_block(self, source: int, target: int) -> None:
        """Copies a block's keys and values, in all layers, so that a sequence may write behind a shared part of it.

        Raises:
            IndexError: a block that does not exist.
        """
        for block in (source, target):
            if not 0 <= block < self.blocks:
                raise IndexError(f"block {block} is not one of the pool's {self.blocks}")
        for layer in self.layers:
            for name in self._pooled:
                # (1, heads, blocks * rows of a block, ...)
                parts = layer.tensors[name].unflatten(2, (self.blocks, -1))
                parts[:, :, target] = parts[:, :, source]

    def tables_for(self, sequences: Sequence[int], positions: Sequence[int]) -> Tensor:
        """The block tables (sequences, table_blocks) int32, checked for a step with these rows.

        Raises:
            IndexError: a sequence without a block for one of its positions.
            ValueError: an entry outside the pool, or a block that two sequences would write into.
        """
        writers: dict[int, int] = {}
        for sequence, position in zip(sequences, positions, strict=True):
            own = self._tables[self._known(sequence)]
            number = position // kernel.BLOCK
            if not 0 <= number < len(own):
                raise IndexError(f"sequence {sequence} has no block for position {position}: give it one by set_table")
            if writers.setdefault(own[number], sequence) != sequence:
                raise ValueError(f"two sequences, one of them {sequence}, would write into block {own[number]}")
        tables = self.tables
        if tables.dtype is not torch.int32 or tables.shape != (len(self.lengths), self.table_blocks):
            raise ValueError(f"the block tables are {tuple(tables.shape)} {tables.dtype}")
        low, high = torch.aminmax(tables)
        if int(low) < 0 or int(high) >= self.blocks:
            raise ValueError(f"the block tables name blocks {int(low)} to {int(high)} of a pool of {self.blocks}")
        return tables

    def _known(self, sequence: int) -> int:
        if not 0 <= sequence < len(self.lengths):
            raise IndexError(f"sequence {sequence} is not one of the cache's {len(self.lengths)}")
        return sequence
