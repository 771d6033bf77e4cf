"""A key-value cache in two tiers: memory under a budget, and a file for what does not fit (ALISA, arXiv 2403.17312).

Tokens are placed one by one: the oldest are written to the slow tier, of those again the oldest are deleted and
computed again from their layer inputs when they are needed. Which tokens a step needs the sparse window decides, for
each sequence and kv head, before any of them is read.
"""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from hasten.cost.tiers import Schedule
from hasten.errors import HastenError
from hasten.runtime.cache import CacheSpec
from hasten.runtime.generation import numbers
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.policies import SparseWindow, attend

_NUMBER = 4  # bytes of fp32


class SlowTier:
    """Keys and values of all layers in a file, read and written no faster than ``bandwidth``.

    Args:
        shape: (layers, batch, kv heads, tokens, 2, head_dim).
        bandwidth: B/s; None for what the disk does.
        folder: where the file is made; a temporary one when None.

    Raises:
        HastenError: no room for the file.
    """

    def __init__(self, shape: tuple[int, ...], bandwidth: float | None = None, folder: Path | None = None) -> None:
        self.bandwidth = bandwidth
        self.moved = 0
        self._bytes = int(np.prod(shape)) * _NUMBER
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with this object
            weakref.finalize(self, self._file.close)
            # All of it now: a disk that fills up later would kill the process at a write to memory.
            os.posix_fallocate(self._file.fileno(), 0, self._bytes)
            self._map = np.memmap(self._file, np.float32, "r+", shape=shape)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise HastenError(f"no slow tier of {self._bytes} bytes ({reason}): free some space") from None

    def _check(self) -> None:
        if os.fstat(self._file.fileno()).st_size < self._bytes:
            raise HastenError("the slow tier's file has been cut short while in use: generate again")

    def _throttle(self, begun: float, count: int) -> None:
        self.moved += count
        if self.bandwidth:
            time.sleep(max(0.0, count / self.bandwidth - (time.perf_counter() - begun)))

    def write(self, layer: int, first: int, keys: Tensor, values: Tensor) -> None:
        """Tokens (batch, kv heads, n, head_dim) at positions from ``first`` on."""
        self._check()
        begun = time.perf_counter()
        part = self._map[layer, :, :, first : first + keys.shape[2]]
        part[..., 0, :], part[..., 1, :] = keys.numpy(), values.numpy()
        self._throttle(begun, part.nbytes)

    def read(self, layer: int, sequences: Tensor, heads: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (n, head_dim) of n single tokens of heads."""
        self._check()
        begun = time.perf_counter()
        found = torch.from_numpy(self._map[layer][sequences.numpy(), heads.numpy(), positions.numpy()])
        self._throttle(begun, found.nbytes)
        return found[:, 0], found[:, 1]


class _Layer(CacheLayerMixin):
    """One layer: a ring of the newest tokens, the inputs of the deleted ones, and the file between."""

    is_compileable = False

    def __init__(self, cache: TieredCache, index: int) -> None:
        super().__init__()
        self._cache, self.index = cache, index
        self.heads = cache.heads
        self.memory: dict[str, Tensor] = {}
        self.seen_length = 0
        self.is_initialized = True
        self.length = self.away = self.deleted = 0
        self.keys = self.values = torch.zeros(cache.batch, cache.heads, 0, cache.head_dim)
        self.inputs = torch.zeros(cache.batch, 0, cache.hidden)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self._cache.capacity

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Takes new tokens in; the fast tier holds those from `away` on."""
        self.keys = torch.cat((self.keys, key_states), 2)
        self.values = torch.cat((self.values, value_states), 2)
        self.length += key_states.shape[2]
        return key_states, value_states

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """Attention of new tokens to what the sparse window chooses."""
        policy, new = self._cache.policy, query.shape[2]
        self.seen_length = self.length
        if new == self.length:
            policy.prompt(self, query, keys, scaling, 0)
            mask = torch.ones(new, new, dtype=torch.bool).tril()
            found = attend(query, keys, values, scaling, mask)
        elif new == 1:
            nothing = keys.new_empty(*keys.shape[:2], self.length, 0)
            chosen = policy.choose(self, query, nothing, scaling)
            where = torch.arange(self.length).expand(*keys.shape[:2], -1) if chosen is None else chosen
            some, their_values = self._gather(where)
            policy.seen(self, chosen, query, some, scaling)
            found = attend(query, some, their_values, scaling)
        else:
            raise HastenError("a tiered cache takes a prompt at once, then one token at a time")
        self._place()
        return found

    def _gather(self, where: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, kv heads, k, head_dim) of positions (batch, kv heads, k), from wherever they are."""
        shape = (*where.shape, self.keys.shape[-1])
        place = (where - self.away).clamp(min=0)[..., None].expand(shape)
        if self.away < self.length:
            keys, values = self.keys.gather(2, place), self.values.gather(2, place)
        else:
            keys, values = self.keys.new_zeros(shape), self.values.new_zeros(shape)
        slow = (where < self.away) & (where >= self.deleted)
        if slow.any():
            sequence, head, slot = slow.nonzero(as_tuple=True)
            keys[slow], values[slow] = self._cache.slow.read(self.index, sequence, head, where[sequence, head, slot])
        gone = where < self.deleted
        if gone.any():
            needed = where[gone].unique()
            again = self._cache.recompute(self.index, self.inputs[:, needed], needed)
            sequence, head, slot = gone.nonzero(as_tuple=True)
            at = torch.searchsorted(needed, where[gone])
            keys[gone], values[gone] = again[0][sequence, head, at], again[1][sequence, head, at]
            self._cache.recomputed += len(needed)
        return keys, values

    def _place(self) -> None:
        """Moves what the schedule wants away; called when the newest token has attended."""
        cache = self._cache
        away, deleted = cache.placed(self.length)
        if away > self.away:
            count = away - self.away
            cache.slow.write(self.index, self.away, self.keys[:, :, :count], self.values[:, :, :count])
            self.keys, self.values = self.keys[:, :, count:].clone(), self.values[:, :, count:].clone()
            self.away = away
        self.deleted = max(self.deleted, min(deleted, away))
        # Inputs are kept for what is deleted or may be.
        most = cache.may_delete(self.length)
        entered = cache.entered.pop(self.index)
        self.inputs = torch.cat((self.inputs, entered), 1)[:, : max(most, self.deleted)]

    @property
    def fast_bytes(self) -> int:
        """Bytes held in memory for keys, values and the inputs of deleted tokens."""
        return self.keys.nbytes + self.values.nbytes + self.inputs[:, : self.deleted].numel() * _NUMBER


class TieredCache(Cache):
    """Two tiers under one transformers cache; use with `generate` of this module.

    Args:
        model: whose layers recompute; a plain Llama-like network.
        policy: what a step reads; ``SparseWindow(1.0)`` for everything.
        schedule: when tokens leave the fast tier.
        batch, capacity: sequences, and tokens of each.
        fast_bytes: budget for keys, values and kept inputs of all layers.
        bandwidth: B/s of the slow tier; None for the disk's own.
        prompt: tokens of the prompt, from which the schedule counts.
        folder: where the slow tier's file is made.

    Raises:
        HastenError: the budget is too small for one token, or there is no room for the slow tier.
    """

    def __init__(
        self,
        model: LanguageModel,
        policy: SparseWindow,
        schedule: Schedule,
        *,
        batch: int,
        capacity: int,
        fast_bytes: float,
        prompt: int,
        bandwidth: float | None = None,
        folder: Path | None = None,
    ) -> None:
        config = model.config
        self.policy, self.schedule = policy, schedule
        self.spec = CacheSpec(policy=policy)
        self.batch, self.capacity, self._prompt = batch, capacity, prompt
        self.heads, self.hidden = config.num_key_value_heads, config.hidden_size
        self.head_dim = int(model.layers[0].self_attn.head_dim)  # type: ignore[union-attr, arg-type]
        count = len(model.layers)
        self.token_bytes = 2 * count * batch * self.heads * self.head_dim * _NUMBER
        self.input_share = self.hidden / (2 * self.heads * self.head_dim)
        self.fast_tokens = fast_bytes / self.token_bytes
        if self.fast_tokens < 1:
            raise HastenError(
                f"a budget of {fast_bytes:.0f} bytes holds no token of this batch ({self.token_bytes} bytes): raise it"
            )
        self.slow = SlowTier((count, batch, self.heads, capacity, 2, self.head_dim), bandwidth, folder)
        self._network = model.network
        self.entered: dict[int, Tensor] = {}
        self.recomputed = 0
        self.dropped, self.members, self.decoding = [0], [0], True
        super().__init__(layers=[_Layer(self, i) for i in range(count)])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.layers[layer_idx].get_seq_length())

    def placed(self, length: int) -> tuple[int, int]:
        """(away, deleted) tokens at this length."""
        return self.schedule.placed(length, length - self._prompt, self.fast_tokens, self.input_share)

    def may_delete(self, length: int) -> int:
        """Tokens whose inputs must be kept, for now or a later step."""
        return length if self.schedule.beta else 0

    def recompute(self, index: int, inputs: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, kv heads, n, head_dim) from a layer's inputs (batch, n, hidden)."""
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        attention = self._network.model.layers[index].self_attn
        shape = (*inputs.shape[:2], self.heads, self.head_dim)
        keys = attention.k_proj(inputs).view(shape).transpose(1, 2)
        values = attention.v_proj(inputs).view(shape).transpose(1, 2)
        cosines, sines = self._network.model.rotary_emb(inputs, positions[None])
        return apply_rotary_pos_emb(keys, keys, cosines, sines)[1], values

    @property
    def row_bytes(self) -> int:
        """Bytes of attention rows that the sparse window remembers; not in the budget, as the paper counts none."""
        return sum(t.nbytes for layer in self.layers for t in layer.memory.values())

    @property
    def fast_bytes(self) -> int:
        """Bytes held in memory now."""
        return sum(layer.fast_bytes for layer in self.layers)


@torch.inference_mode()
def generate(
    model: LanguageModel, ids: Tensor, cache: TieredCache, new_tokens: int, *, end: Collection[int] = ()
) -> tuple[Tensor, list[float], int]:
    """Greedy tokens of a batch through a tiered cache.

    Args:
        model: the one that the cache was made for.
        ids: (batch, prompt) tokens.
        cache: empty.
        new_tokens: to make, at most.
        end: tokens that end a sequence; one that has ended repeats its last token until all have.

    Returns:
        (batch, tokens made) ids, the seconds of each step after the prompt, the most bytes held in memory after one.

    Raises:
        HastenError: more tokens than the cache has room for or the model positions, a used cache, another batch, no
            numbers from the model, or a slow tier that is lost.
    """
    if ids.shape[0] != cache.batch or ids.shape[1] < 1 or new_tokens < 1:
        raise HastenError(
            f"the cache is for {cache.batch} prompts of at least one token, and makes at least one new one"
        )
    if cache.get_seq_length():
        raise HastenError("the cache holds tokens of another text: make a new one")
    if ids.shape[1] + new_tokens > cache.capacity:
        raise HastenError(f"the cache has room for {cache.capacity} tokens: make it larger (capacity=)")
    model.check_fits(ids.shape[1] + new_tokens)
    handles = []
    for index, layer in enumerate(model.layers):

        def enter(module: Any, args: Any, kwargs: dict[str, Any], index: int = index) -> None:
            cache.entered[index] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        handles.append(layer.self_attn.register_forward_pre_hook(enter, with_kwargs=True))  # type: ignore[union-attr]
    ends = torch.tensor(sorted(end), dtype=torch.int64)
    ended = torch.zeros(len(ids), dtype=torch.bool)
    try:
        logits = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        made, seconds, most = [numbers(logits).argmax(-1)], [], cache.fast_bytes
        while len(made) < new_tokens:
            ended |= torch.isin(made[-1], ends)
            if ended.all():
                break
            begun = time.perf_counter()
            logits = model(made[-1][:, None], past_key_values=cache).logits[:, -1]
            made.append(torch.where(ended, made[-1], numbers(logits).argmax(-1)))
            seconds.append(time.perf_counter() - begun)
            most = max(most, cache.fast_bytes)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(made, 1), seconds, most
