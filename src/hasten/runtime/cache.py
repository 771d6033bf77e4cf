"""A key-value cache in static buffers, shared by the compiled step and transformers' ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from hasten.errors import HastenError
from hasten.kernels import kv_cache as kernel
from hasten.nn.attention import turned_by
from hasten.runtime.policies.attending import attend
from hasten.runtime.policies.policy import Policy


@dataclass(frozen=True)
class CacheSpec:
    """What a cache keeps, and how.

    Args:
        dtype: ``fp32``, ``fp16`` (as llama.cpp keeps it), ``bf16``, ``int8`` or ``int4``.
        window: newest tokens that a token attends to, itself included; None for all.
        sinks: first tokens that stay visible behind the window (StreamingLLM, arXiv 2309.17453). Keys
            keep the rotation of their own positions.
        full_layers: layers that see everything all the same (LongGen, arXiv 2410.01485).
        policy: which cached tokens a step reads, see `hasten.runtime.policies`; None for all.
        capped: positions count within the cache: no sink is further away than sinks + window - 1, however long the text
            (Λ-shaped attention, arXiv 2505.03745 and 2308.16137). Steps then run in plain torch.
    """

    dtype: str = "fp32"
    window: int | None = None
    sinks: int = 0
    full_layers: tuple[int, ...] = ()
    policy: Policy | None = None
    capped: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in kernel.BITS:
            raise HastenError(f"unknown cache format {self.dtype!r}: choose one of {', '.join(kernel.BITS)}")
        if self.window is not None and self.window < 1:
            raise HastenError(f"a window of {self.window} tokens sees nothing: give at least 1")
        if self.sinks < 0 or (self.sinks and self.window is None):
            raise HastenError("attention sinks go with a window: give both, or neither")
        if self.full_layers and self.window is None:
            raise HastenError("without a window all layers see everything: give a window, or no full layers")
        if self.capped and self.window is None:
            raise HastenError("positions are capped by a window: give one")
        if self.policy is not None and not isinstance(self.policy, Policy):
            raise HastenError(f"a cache's policy is one of hasten.runtime.policies, not a {type(self.policy).__name__}")
        if self.policy is not None and self.window is not None:
            raise HastenError("a window and a policy both say what is read: give one of them")

    @property
    def bits(self) -> int:
        return kernel.BITS[self.dtype]

    @property
    def quantized(self) -> bool:
        return self.bits < 16

    @property
    def uniform(self) -> bool:
        """Whether every layer sees the same, by position alone: then one mask serves all."""
        return not self.full_layers and self.policy is None and not self.capped

    @property
    def whole(self) -> bool:
        """Whether every token attends to all before it: what is the cache's own is the format alone."""
        return self.uniform and self.window is None

    def of_layer(self, index: int) -> CacheSpec:
        """What layer ``index`` keeps."""
        if index in self.full_layers:
            return replace(self, window=None, sinks=0, full_layers=())
        return replace(self, full_layers=()) if self.full_layers else self

    @property
    def ring(self) -> kernel.Ring:
        return kernel.Ring.of(self.window, self.sinks)

    def layout(
        self, batch: int, heads: int, head_dim: int, capacity: int, recent: int = kernel.RECENT
    ) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor of one layer, by name; see `hasten.kernels.kv_cache.layout`."""
        return kernel.layout(self.dtype, batch, heads, head_dim, capacity, self.ring, recent)


class CacheLayer(CacheLayerMixin):
    """One layer's buffers. Lengths are the cache's own: every layer holds the same positions."""

    is_compileable = False
    is_croppable = True

    def __init__(self, cache: KVCache, tensors: dict[str, Tensor], index: int, heads: int) -> None:
        super().__init__()
        self._cache = cache
        self.index = index
        self.heads = heads
        self.spec = cache.spec.of_layer(index)
        self.memory: dict[str, Tensor] = {}
        self.seen_length = 0
        self._start = 0
        self.tensors = tensors
        self.hold(tensors)
        self.is_initialized = True

    @property
    def own_window(self) -> int | None:
        """Newest tokens that the model's own layer attends to, whatever the cache's spec; None: all."""
        own = self._cache.own_windows
        return own[self.index] if own else None

    def hold(self, tensors: dict[str, Tensor]) -> None:
        """Uses these buffers from now on."""
        self.tensors = tensors
        self.keys, self.values = tensors["keys"], tensors["values"]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers exist from the start."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Writes new keys and values (batch, heads, new, head_dim); returns all that they may attend to."""
        start = self._start = self._cache.get_seq_length()
        found = self._enter("key", key_states, start), self._enter("value", value_states, start)
        if "pooled" in self.tensors:
            self._pool(start + key_states.shape[2], found[0])
        return found

    def _pool(self, length: int, keys: Tensor) -> None:
        """Mean keys of the blocks that are complete, for the compiled step."""
        whole = length // kernel.BLOCK
        known = self._cache.quantized_blocks
        if whole > known:
            part = keys[:, :, known * kernel.BLOCK : whole * kernel.BLOCK].float()
            self.tensors["pooled"][:, :, known:whole] = part.unflatten(2, (whole - known, kernel.BLOCK)).mean(3)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        scaling: float,
        *,
        cap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Attention of the newest tokens (batch, heads, new, d) to what `update` returned, by this layer's rule.

        Args:
            query, keys, values: keys and values are (batch, kv heads, seen, d).
            scaling: of scores.
            cap, sinks: what the model does with its scores, see `hasten.runtime.policies.attending.attend`.

        Raises:
            HastenError: the rule is one that knows nothing of ``cap`` or ``sinks``.
        """
        also: dict[str, Any] = {"cap": cap, "sinks": sinks}
        new, start, policy = query.shape[2], self._start, self.spec.policy
        if policy is not None or self.spec.capped:
            for given, what in ((cap, "cap on scores"), (sinks, "attention sinks of the model's own")):
                if given is not None:
                    raise HastenError(f"this cache's rule knows no {what}: use a window or a format alone")
        length = start + new
        self.seen_length = length
        first, low = kernel.visible(length, new, self.spec.window, self.spec.sinks) if start else (0, 0)
        every = torch.arange(length, device=query.device)
        columns = torch.cat((every[:first], every[low:]))
        rows = every[start:, None]
        mask = columns <= rows
        if self.spec.window is not None:
            mask &= (columns > rows - self.spec.window) | (columns < self.spec.sinks)
        own = self.own_window
        if own is not None:
            mask &= columns > rows - own
        if self.spec.capped:
            return self._capped(query, keys, values, scaling, rows, columns, mask)
        if policy is None:
            return attend(query, keys, values, scaling, None if new == 1 and own is None else mask, **also)
        if new > self._cache.most_new or not start or not self._cache.decoding:
            policy.prompt(self, query, keys, scaling, start)
            return attend(query, keys, values, scaling, mask)
        found = []
        for i in range(new):
            self.seen_length = start + i + 1
            until = slice(0, start + i + 1)
            # Users' policies need not know of windows that only some models have.
            least = {} if own is None else {"first": max(0, start + i + 1 - own)}
            row = policy.row(self, query[:, :, i : i + 1], keys[:, :, until], values[:, :, until], scaling, **least)
            found.append(row)
        return torch.cat(found, 2)

    def _enter(self, which: str, new: Tensor, start: int) -> Tensor:
        """Writes ``new`` behind ``start`` tokens; returns what its rows attend to."""
        spec, count = self.spec, new.shape[2]
        # What is kept carries no gradients; a prompt attends to its own fresh keys, which may.
        if start == 0:
            self._write(which, new, start)
            return new
        stored = self.tensors[f"{which}s"]
        if spec.window is None and stored.dtype == new.dtype:
            self._write(which, new, start)
            return stored[:, :, : start + count]
        sinks, low = kernel.visible(start + count, count, spec.window, spec.sinks)
        if count <= self._cache.most_new:
            self._write(which, new, start)
            quantized = kernel.quantized_after(start, count, self._cache.recent)
            return self._read(which, sinks, low, start + count, quantized).to(new.dtype)
        # A long chunk takes the place, in the ring or among the codes, of what it attends to: read first.
        old = self._read(which, min(sinks, start), min(low, start), start, self._cache.quantized_blocks)
        self._write(which, new, start)
        return torch.cat((old.to(new.dtype), new[:, :, max(0, low - start) :]), 2)

    def _capped(
        self, query: Tensor, keys: Tensor, values: Tensor, scaling: float, rows: Tensor, columns: Tensor, mask: Tensor
    ) -> Tensor:
        """Sinks at no more than the longest distance: a row's query is turned back for them by what is too far."""
        assert self.spec.window is not None
        most = self.spec.sinks + self.spec.window - 1
        back = (rows[:, 0] - most).clamp(min=0)
        shared = query.shape[1] // keys.shape[1]
        wide = keys.repeat_interleave(shared, 1)
        plain = query @ wide.transpose(-1, -2) * scaling
        turned = _turned(query, -back, self._cache.frequencies) @ wide.transpose(-1, -2) * scaling
        scores = torch.where(columns < self.spec.sinks, turned, plain).masked_fill(~mask, -torch.inf)
        return torch.softmax(scores.float(), -1).to(values.dtype) @ values.repeat_interleave(shared, 1)

    def _parts(self, which: str) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        t = self.tensors
        return t[f"{which}s"], t.get(f"{which}_scales"), t.get(f"{which}_mins"), t.get(f"recent_{which}s")

    def _write(self, which: str, new: Tensor, start: int) -> None:
        spec, new = self.spec, new.detach()
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
        spec = self.spec
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

    def reorder_cache(self, beam_idx: Tensor) -> None:
        for tensor in self.tensors.values():
            tensor.copy_(tensor.index_select(0, beam_idx.to(tensor.device)))
        for name, known in self.memory.items():
            self.memory[name] = known.index_select(0, beam_idx.to(known.device))


def _turned(x: Tensor, by: Tensor, frequencies: Tensor | None) -> Tensor:
    """Rotary positions (batch, heads, n, d) moved by ``by`` (n)."""
    if frequencies is None:
        raise HastenError("capped positions need the model's rotary frequencies: make the cache by its new_cache")
    return turned_by(x, by[:, None].float() * frequencies)


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
        recent: newest tokens of a quantized cache that are no codes, see `hasten.kernels.kv_cache.layout`.

    Raises:
        HastenError: more recent tokens in a cache with a window, whose ring has room for `MOST_NEW` new ones.
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
        recent: int = kernel.RECENT,
    ) -> None:
        if recent != kernel.RECENT and spec.window is not None:
            raise HastenError(f"a cache with a window has {kernel.RECENT} recent tokens, not {recent}")
        self.recent = recent
        self._made: dict[str, Any] = {
            "layers": layers, "batch": batch, "heads": heads, "head_dim": head_dim, "device": device
        }  # fmt: skip
        tensors = self._buffers(spec, capacity)
        self._open(spec, capacity, tensors, [0] * batch, [0] * batch, list(range(batch)))

    def _buffers(self, spec: CacheSpec, capacity: int) -> list[dict[str, Tensor]]:
        made = self._made
        batch, heads, dim, device = made["batch"], made["heads"], made["head_dim"], made["device"]
        found = []
        for index in range(made["layers"]):
            shapes = spec.of_layer(index).layout(batch, heads, dim, capacity, self.recent)
            tensors = {n: torch.zeros(shape, dtype=dtype, device=device) for n, (shape, dtype) in shapes.items()}
            if spec.policy is not None:
                blocks = -(-capacity // kernel.BLOCK)
                own = spec.policy.tensors(index, batch, heads, blocks, dim)
                tensors |= {n: t.to(device) for n, t in own.items()}
            found.append(tensors)
        return found

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
        # Tokens of each sequence that have left the cache: positions run on behind them.
        self.dropped = [0] * len(lengths)
        self.decoding = True
        self.version = 0
        self.frequencies: Tensor | None = None
        # Of each layer the window that the model itself has; empty: none has one.
        self.own_windows: tuple[int | None, ...] = ()
        # What policies keep of each sequence, once sequences go their own ways.
        self._apart: list[list[dict[str, Tensor]]] = []
        heads = self._made["heads"]
        super().__init__(layers=[CacheLayer(self, t, i, heads) for i, t in enumerate(tensors)])

    def sequence(self, index: int) -> KVCache:
        """The part of this cache that belongs to one sequence: shared memory, batch 1."""
        view = KVCache.__new__(KVCache)
        view._made, view.recent = {**self._made, "batch": 1}, self.recent
        tensors = [{n: t[index : index + 1] for n, t in layer.tensors.items()} for layer in self.layers]
        view._open(self.spec, self.capacity, tensors, self.lengths, self.quantized, [self.members[index]])
        view.dropped, view.decoding, view.frequencies = self.dropped, self.decoding, self.frequencies
        view.own_windows = self.own_windows
        if len(self.members) == 1:
            memories = [layer.memory for layer in self.layers]
        else:
            if not self._apart:
                self._apart = [
                    [{n: t[i : i + 1].clone() for n, t in layer.memory.items()} for layer in self.layers]
                    for i in range(len(self.members))
                ]
            memories = self._apart[index]
        for mine, memory in zip(view.layers, memories, strict=True):
            mine.memory = memory
        return view

    @property
    def apart(self) -> bool:
        """Whether policies remember each sequence by itself: then they are read one by one (`sequence`)."""
        return any(memory for sequence in self._apart for memory in sequence)

    @property
    def uniform(self) -> bool:
        """Whether one mask by position serves all layers, see `CacheSpec.uniform`."""
        return self.spec.uniform and (self.spec.window is None or not any(self.own_windows))

    @property
    def most_new(self) -> int:
        """Tokens of one sequence that may be written in one step without overwriting what the step still reads."""
        return self.recent - kernel.BLOCK

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
            if (self.spec.quantized or self.spec.policy is not None) and count:
                self.quantized[member] = kernel.quantized_after(self.lengths[member], count, self.recent)
            self.lengths[member] += count

    def take_back(self, tokens: int) -> None:
        """Forgets the newest ``tokens`` of each sequence.

        Raises:
            HastenError: some of them are codes already, or gone from a window's ring.
        """
        for member in self.members:
            length = self.lengths[member] - tokens
            if length < self.quantized[member] * kernel.BLOCK or (self.spec.window is not None and tokens):
                raise HastenError("this cache cannot give tokens back: use an fp32, fp16 or bf16 one without a window")
            self.lengths[member] = length

    def crop(self, tokens_to_remove: int) -> None:
        """As transformers takes rejected drafts back: the newest ``-tokens_to_remove`` of each sequence go."""
        self.take_back(abs(tokens_to_remove))

    def retract(self, tokens: int | Sequence[int]) -> None:
        """Forgets the newest ``tokens`` of the step just made, as many of each sequence or a number for each: drafts
        that were not accepted.

        They were never turned to codes, and a ring has room for one step, so any cache can.
        """
        counts = [tokens] * len(self.members) if isinstance(tokens, int) else tokens
        for member, count in zip(self.members, counts, strict=True):
            self.lengths[member] -= count

    def clear(self) -> None:
        """Empties the cache; the buffers stay."""
        if any(self.dropped):
            for layer, tensors in zip(self.layers, self._buffers(self.spec, self.capacity), strict=True):
                layer.hold(tensors)
            self.version += 1
        for layer in self.layers:
            layer.memory.clear()
        self._apart = []
        for member in self.members:
            self.lengths[member] = self.quantized[member] = self.dropped[member] = 0

    def keep(self, kept: list[Tensor]) -> None:
        """Keeps some tokens of every layer, the others leave: the buffers shrink by as many.

        Args:
            kept: for each layer positions (batch, heads, n), rising, as many everywhere.

        Raises:
            HastenError: a part of a batch, or a cache with a window.
        """
        if self.spec.window is not None or len(self.members) != len(self.lengths):
            raise HastenError("tokens leave a whole cache without a window: give one, or keep all")
        length, count = self.get_seq_length(), kept[0].shape[-1]
        room = self.capacity - length + count
        spec = self.spec
        fresh = self._buffers(spec, room)
        for layer, tensors, chosen in zip(self.layers, fresh, kept, strict=True):
            read = []
            for which in ("key", "value"):
                whole = layer._read(which, 0, 0, length, self.quantized_blocks)
                read.append(whole.gather(2, chosen[..., None].expand(*chosen.shape, whole.shape[-1])))
            layer.hold(tensors)
            for which, new in zip(("key", "value"), read, strict=True):
                torch.ops.hasten.kv_append(
                    *layer._parts(which), new, 0, 0, spec.bits, which == "key", 0, 0
                )  # fmt: skip
        for member in self.members:
            self.dropped[member] += length - count
            self.lengths[member] = count
            self.quantized[member] = kernel.quantized_after(0, count, self.recent) if spec.quantized else 0
        self.version += 1
