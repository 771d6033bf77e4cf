"""A key-value cache in static buffers, shared by the compiled step and transformers' ``generate``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from hasten.errors import HastenError
from hasten.kernels import kv_cache as kernel


@dataclass(frozen=True)
class CacheSpec:
    """What a cache keeps, and how.

    Args:
        dtype: ``fp32``, ``bf16``, ``int8`` or ``int4``.
        window: newest tokens that a token attends to, itself included; None for all.
        sinks: first tokens that stay visible behind the window (StreamingLLM, arXiv 2309.17453). Keys
            keep the rotation of their own positions.
    """

    dtype: str = "fp32"
    window: int | None = None
    sinks: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in kernel.BITS:
            raise HastenError(f"unknown cache format {self.dtype!r}: choose one of {', '.join(kernel.BITS)}")
        if self.window is not None and self.window < 1:
            raise HastenError(f"a window of {self.window} tokens sees nothing: give at least 1")
        if self.sinks < 0 or (self.sinks and self.window is None):
            raise HastenError("attention sinks go with a window: give both, or neither")

    @property
    def bits(self) -> int:
        return kernel.BITS[self.dtype]

    @property
    def quantized(self) -> bool:
        return self.bits < 16

    @property
    def ring(self) -> kernel.Ring:
        return kernel.Ring.of(self.window, self.sinks)

    def layout(
        self, batch: int, heads: int, head_dim: int, capacity: int
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor of one layer, by name; see `hasten.kernels.kv_cache.layout`."""
        return kernel.layout(self.dtype, batch, heads, head_dim, capacity, self.ring)


class CacheLayer(CacheLayerMixin):
    """One layer's buffers. Lengths are the cache's own: every layer holds the same positions."""

    is_compileable = False
    is_croppable = True

    def __init__(self, cache: KVCache, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self._cache = cache
        self.tensors = tensors
        self.keys = tensors["keys"]
        self.values = tensors["values"]
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes new keys and values (batch, heads, new, head_dim); returns all that they may attend to."""
        start = self._cache.get_seq_length()
        return self._enter("key", key_states, start), self._enter("value", value_states, start)

    def _enter(self, which: str, new: Tensor, start: int) -> Tensor:
        """Writes ``new`` behind ``start`` tokens; returns what its rows attend to."""
        spec, count = self._cache.spec, new.shape[2]
        if start == 0:
            self._write(which, new, start)
            return new
        stored = self.tensors[f"{which}s"]
        if spec.window is None and stored.dtype == new.dtype:
            self._write(which, new, start)
            return stored[:, :, : start + count]
        sinks, low = kernel.visible(start + count, count, spec.window, spec.sinks)
        if count <= kernel.MOST_NEW:
            self._write(which, new, start)
            quantized = kernel.quantized_after(start, count)
            return self._read(which, sinks, low, start + count, quantized).to(new.dtype)
        # A long chunk takes the place, in the ring or among the codes, of what it attends to: read first.
        old = self._read(which, min(sinks, start), min(low, start), start, self._cache.quantized_blocks)
        self._write(which, new, start)
        return torch.cat((old.to(new.dtype), new[:, :, max(0, low - start) :]), 2)

    def _parts(self, which: str) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        t = self.tensors
        return t[f"{which}s"], t.get(f"{which}_scales"), t.get(f"{which}_mins"), t.get(f"recent_{which}s")

    def _write(self, which: str, new: Tensor, start: int) -> None:
        spec = self._cache.spec
        torch.ops.hasten.kv_append(
            *self._parts(which),
            new,
            start,
            self._cache.quantized_blocks,
            spec.bits,
            which == "key",
            spec.ring.sink_blocks,
            spec.ring.ring_blocks,
        )

    def _read(self, which: str, sinks: int, low: int, length: int, quantized: int) -> Tensor:
        spec = self._cache.spec
        return torch.ops.hasten.kv_read(
            *self._parts(which),
            sinks,
            low,
            length,
            quantized,
            spec.bits,
            which == "key",
            spec.ring.sink_blocks,
            spec.ring.ring_blocks,
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        length = self._cache.get_seq_length() + query_length
        seen = self._cache.seen(length, query_length)
        return seen, length - seen

    def get_seq_length(self) -> int:
        return self._cache.get_seq_length()

    def get_max_length(self) -> int:
        return self._cache.capacity

    def reset(self) -> None:
        self._cache.clear()

    def crop(self, tokens_to_remove: int) -> None:
        self._cache.take_back(tokens_to_remove)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for tensor in self.tensors.values():
            tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))


class KVCache(Cache):
    """Keys and values of a batch of sequences, in buffers made once.

    It is transformers' ``Cache``: hand it over as ``past_key_values``. There all sequences have one
    length (a padded batch); hasten's own loop keeps a length for each.

    Args:
        spec: format and window.
        layers: number of decoder layers.
        batch: sequences.
        heads: key-value heads.
        head_dim: channels of a head.
        capacity: positions to make room for.
        device: where the buffers live.
    """

    def __init__(
        self,
        spec: CacheSpec,
        *,
        layers: int,
        batch: int,
        heads: int,
        head_dim: int,
        capacity: int,
        device: torch.device | str = "cpu",
    ) -> None:
        shapes = spec.layout(batch, heads, head_dim, capacity)
        tensors = [
            {name: torch.zeros(shape, dtype=dtype, device=device) for name, (shape, dtype) in shapes.items()}
            for _ in range(layers)
        ]
        self._open(spec, capacity, tensors, [0] * batch, [0] * batch, list(range(batch)))

    def _open(
        self,
        spec: CacheSpec,
        capacity: int,
        tensors: list[dict[str, Tensor]],
        lengths: list[int],
        quantized: list[int],
        members: list[int],
    ) -> None:
        self.spec = spec
        self.capacity = capacity
        self.lengths, self.quantized, self.members = lengths, quantized, members
        super().__init__(layers=[CacheLayer(self, t) for t in tensors])

    def sequence(self, index: int) -> KVCache:
        """The part of this cache that belongs to one sequence: shared memory, batch 1."""
        view = KVCache.__new__(KVCache)
        tensors = [{n: t[index : index + 1] for n, t in layer.tensors.items()} for layer in self.layers]
        view._open(self.spec, self.capacity, tensors, self.lengths, self.quantized, [self.members[index]])
        return view

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(t.nbytes for layer in self.layers for t in layer.tensors.values())

    @property
    def quantized_blocks(self) -> int:
        """Blocks of each sequence that are codes, where all have as many."""
        return self.quantized[self.members[0]]

    def seen(self, length: int, new: int) -> int:
        """Positions that the last ``new`` of ``length`` positions attend to together."""
        if length == new:
            return new
        sinks, low = kernel.visible(length, new, self.spec.window, self.spec.sinks)
        return sinks + length - low

    def get_seq_length(self, layer_idx: int = 0) -> int:
        length = self.lengths[self.members[0]]
        if any(self.lengths[m] != length for m in self.members):
            raise HastenError("the sequences of this cache differ in length: read them one by one (sequence(i))")
        return length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        new = key_states.shape[2]
        length = self.get_seq_length() + new
        if length > self.capacity:
            raise HastenError(f"the cache holds {self.capacity} tokens, not {length}: make it larger (capacity=)")
        found = self.layers[layer_idx].update(key_states, value_states)
        if layer_idx == len(self.layers) - 1:
            self.advance([new] * len(self.members))
        return found

    def advance(self, counts: list[int]) -> None:
        """Commits ``counts`` new tokens of each sequence, all of whose keys and values are written."""
        for member, count in zip(self.members, counts, strict=True):
            if self.spec.quantized and count:
                self.quantized[member] = kernel.quantized_after(self.lengths[member], count)
            self.lengths[member] += count

    def take_back(self, tokens: int) -> None:
        """Forgets the newest ``tokens`` of each sequence.

        Raises:
            HastenError: some of them are codes already, or gone from a window's ring.
        """
        for member in self.members:
            length = self.lengths[member] - tokens
            if length < self.quantized[member] * kernel.BLOCK or (self.spec.window is not None and tokens):
                raise HastenError("this cache cannot give tokens back: use an fp32 or bf16 one without a window")
            self.lengths[member] = length

    def retract(self, tokens: int) -> None:
        """Forgets the newest ``tokens`` of the step just made: a draft that was not accepted.

        They were never turned to codes, and a ring has room for one step, so any cache can.
        """
        for member in self.members:
            self.lengths[member] -= tokens

    def clear(self) -> None:
        """Empties the cache; the buffers stay."""
        for member in self.members:
            self.lengths[member] = self.quantized[member] = 0
