"""A key-value cache in two tiers: memory under a budget, and a file for what does not fit (ALISA, arXiv 2403.17312).

Tokens are placed one by one: the oldest are written to the slow tier, of those again the oldest are deleted and
computed again when they are needed. Of a deleted token memory holds the layer inputs that it is computed from; until it
is deleted they wait in the slow tier. Which tokens a step needs the sparse window decides, for each sequence and kv
head, before any of them is read. In int8 both tiers hold codes of 8 bits: every channel of a group of 64 tokens has a
range of its own, and only the newest group, not complete yet, stays in fp32.
"""

from __future__ import annotations

import os
import tempfile
import time
import weakref
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from hasten.cost.serving.tiers import Job, Schedule
from hasten.errors import HastenError
from hasten.models.decoder_form import check_llama_like
from hasten.nn.attention import half, turned
from hasten.runtime.cache import CacheSpec
from hasten.runtime.generation_loop import numbers
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.policies import SparseWindowPolicy, attend
from hasten.workload.decoder import DecoderSizes

GROUP = 64  # tokens whose channels share a scale in int8


def encode(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric 8-bit codes of whole groups, channel by channel.

    Args:
        x: (..., groups * 64, channels), fp32.

    Returns:
        uint8 codes of x's shape, steps and least values (..., groups, channels): x is ``least + step * code`` to half a
        step.
    """
    grouped = x.unflatten(-2, (-1, GROUP))
    least = grouped.amin(-2)
    step = ((grouped.amax(-2) - least) / 255).clamp_min(1e-12)
    return _codes(grouped, step[..., None, :], least[..., None, :]).flatten(-3, -2), step, least


def _codes(x: Tensor, step: Tensor, least: Tensor) -> Tensor:
    return ((x - least) / step).round().clamp(0, 255).to(torch.uint8)


class SlowTier:
    """Keys and values of all layers in a file, read and written no faster than ``bandwidth``, and layer inputs.

    Args:
        shape: (layers, batch, kv heads, tokens, 2, head_dim).
        bandwidth: B/s; None for what the disk does.
        folder: where the file is made; a temporary one when None.
        dtype: of keys and values, ``float32`` or ``uint8``.
        inputs: (layers, batch, tokens, hidden) of layer inputs, in fp32.

    Raises:
        HastenError: no room for the file.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        bandwidth: float | None = None,
        folder: Path | None = None,
        dtype: Literal["float32", "uint8"] = "float32",
        inputs: tuple[int, ...] = (0, 0, 0, 0),
    ) -> None:
        self.bandwidth = bandwidth
        self.moved = 0
        # The inputs stand first, where their numbers are aligned.
        behind = int(np.prod(inputs)) * 4
        self._bytes = behind + int(np.prod(shape)) * np.dtype(dtype).itemsize
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with this object
            weakref.finalize(self, self._file.close)
            # All of it now: a disk that fills up later would kill the process at a write to memory.
            os.posix_fallocate(self._file.fileno(), 0, self._bytes)
            self._map = np.memmap(self._file, dtype, "r+", behind, shape)
            self._inputs = np.memmap(self._file, "float32", "r+", 0, inputs) if behind else np.zeros(inputs, "float32")
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

    def write_inputs(self, layer: int, first: int, inputs: Tensor) -> None:
        """Layer inputs (batch, n, hidden) of tokens at positions from ``first`` on."""
        self._check()
        begun = time.perf_counter()
        part = self._inputs[layer, :, first : first + inputs.shape[1]]
        part[:] = inputs.numpy()
        self._throttle(begun, part.nbytes)

    def read_inputs(self, layer: int, first: int, end: int) -> Tensor:
        """Layer inputs (batch, n, hidden) of the tokens at positions from ``first`` to before ``end``."""
        self._check()
        begun = time.perf_counter()
        found = torch.from_numpy(self._inputs[layer, :, first:end].copy())
        self._throttle(begun, found.nbytes)
        return found

    def read(self, layer: int, sequences: Tensor, heads: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (n, head_dim) of n single tokens of heads."""
        self._check()
        begun = time.perf_counter()
        found = torch.from_numpy(self._map[layer][sequences.numpy(), heads.numpy(), positions.numpy()])
        self._throttle(begun, found.nbytes)
        return found[:, 0], found[:, 1]


class _Layer(CacheLayerMixin):
    """One layer: the newest tokens, what the deleted ones are computed from, and the file between.

    ``keys`` and ``values`` are the tokens from `first` on, in fp32; in int8 those from `away` to there are ``codes``.
    """

    is_compileable = False

    def __init__(self, cache: TieredCache, index: int) -> None:
        super().__init__()
        self._cache, self.index = cache, index
        self.heads = cache.heads
        self.memory: dict[str, Tensor] = {}
        self.seen_length = 0
        self.is_initialized = True
        self.length = self.away = self.deleted = self.first = 0
        self.keys = self.values = torch.zeros(cache.batch, cache.heads, 0, cache.head_dim)
        nothing = self.keys.to(torch.uint8)
        self.codes = [nothing, nothing]
        # Steps and least values of all groups, keys' and values': small, so that they stay in fast memory.
        self.scales = [(self.keys, self.keys), (self.keys, self.keys)]
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
        """Takes new tokens in."""
        self.keys = torch.cat((self.keys, key_states), 2)
        self.values = torch.cat((self.values, value_states), 2)
        self.length += key_states.shape[2]
        return key_states, value_states

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
        """Attention of new tokens to what the sparse window chooses.

        Raises:
            HastenError: the model caps its scores or has sinks of its own, of which the window knows nothing.
        """
        if cap is not None or sinks is not None:
            raise HastenError("a tiered cache knows no cap on scores and no attention sinks of the model's own")
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
        keys, values = (self._in_memory(i, where) for i in (0, 1))
        slow = (where < self.away) & (where >= self.deleted)
        if slow.any():
            sequence, head, slot = slow.nonzero(as_tuple=True)
            positions = where[sequence, head, slot]
            read = self._cache.slow.read(self.index, sequence, head, positions)
            keys[slow], values[slow] = (self._decoded(i, x, sequence, head, positions) for i, x in enumerate(read))
        gone = where < self.deleted
        if gone.any():
            needed = where[gone].unique()
            again = self._cache.recompute(self.index, self.inputs, needed, self.deleted)
            sequence, head, slot = gone.nonzero(as_tuple=True)
            positions = where[sequence, head, slot]
            at = torch.searchsorted(needed, positions)
            found = (x[sequence, head, at] for x in again)
            keys[gone], values[gone] = (self._as_stored(i, x, sequence, head, positions) for i, x in enumerate(found))
            self._cache.recomputed += len(needed)
        return keys, values

    def _in_memory(self, which: int, where: Tensor) -> Tensor:
        """Keys (0) or values (1) of positions, those in fast memory right, the others anything."""
        shape = (*where.shape, self.keys.shape[-1])

        def picked(tensor: Tensor, at: Tensor) -> Tensor:
            last = tensor.shape[2] - 1
            if last < 0:
                return tensor.new_zeros(shape)
            return tensor.gather(2, at.clamp(0, last)[..., None].expand(shape))

        plain = picked((self.keys, self.values)[which], where - self.first)
        if not self.codes[which].shape[2]:
            return plain
        step, least = (picked(t, where // GROUP) for t in self.scales[which])
        coded = least + step * picked(self.codes[which], where - self.away)
        return torch.where((where < self.first)[..., None], coded, plain)

    def _scale(self, which: int, sequence: Tensor, head: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        step, least = (t[sequence, head, positions // GROUP] for t in self.scales[which])
        return step, least

    def _decoded(self, which: int, x: Tensor, sequence: Tensor, head: Tensor, positions: Tensor) -> Tensor:
        """Numbers (n, head_dim) of what the slow tier holds of n tokens."""
        if not self._cache.quantized:
            return x
        step, least = self._scale(which, sequence, head, positions)
        return least + step * x

    def _as_stored(self, which: int, x: Tensor, sequence: Tensor, head: Tensor, positions: Tensor) -> Tensor:
        """Numbers (n, head_dim) computed again as they were before they were deleted: rounded as then."""
        if not self._cache.quantized:
            return x
        step, least = self._scale(which, sequence, head, positions)
        return least + step * _codes(x, step, least)

    def _place(self) -> None:
        """Moves what the schedule wants away; called when the newest token has attended."""
        cache = self._cache
        if cache.quantized:
            self._quantize()
        away, deleted = cache.placed(self.length)
        away, deleted = max(away, self.away), max(deleted, self.deleted)
        if away > self.away:
            count = away - self.away
            held = self.codes if cache.quantized else (self.keys, self.values)
            cache.slow.write(self.index, self.away, *(t[:, :, :count] for t in held))
            rest = [t[:, :, count:].clone() for t in held]
            if cache.quantized:
                self.codes = rest
            else:
                (self.keys, self.values), self.first = rest, away
            self.away = away
        self._keep_inputs(deleted)
        self.deleted = deleted
        if self.index == len(cache.layers) - 1:
            cache.step_done()

    def _keep_inputs(self, deleted: int) -> None:
        """Holds the inputs of tokens that now are deleted, and writes those of new ones that are deleted later."""
        cache, entered = self._cache, self._cache.entered.pop(self.index)
        if not cache.may_delete:
            return
        begun = self.length - entered.shape[1]
        later = slice(max(begun, deleted), min(self.length, cache.may_delete))
        if later.start < later.stop:
            cache.slow.write_inputs(self.index, later.start, entered[:, later.start - begun : later.stop - begun])
        found = [self.inputs]
        if self.deleted < min(deleted, begun):
            found.append(cache.slow.read_inputs(self.index, self.deleted, min(deleted, begun)))
        if deleted > begun:
            found.append(entered[:, max(0, self.deleted - begun) : deleted - begun])
        if len(found) > 1:
            self.inputs = torch.cat(found, 1)

    def _quantize(self) -> None:
        """Turns groups that are complete into codes."""
        whole = (self.length - self.first) // GROUP * GROUP
        if not whole:
            return
        for which, plain in enumerate((self.keys, self.values)):
            codes, step, least = encode(plain[:, :, :whole])
            known = self.scales[which]
            self.codes[which] = torch.cat((self.codes[which], codes), 2)
            self.scales[which] = (torch.cat((known[0], step), 2), torch.cat((known[1], least), 2))
        self.keys, self.values = self.keys[:, :, whole:].clone(), self.values[:, :, whole:].clone()
        self.first += whole

    @property
    def fast_bytes(self) -> int:
        """Bytes held in memory for keys, values, their scales, and the inputs of deleted tokens."""
        held = [self.keys, self.values, *self.codes, *self.scales[0], *self.scales[1], self.inputs]
        return sum(t.untyped_storage().nbytes() for t in held)


class _Beginning:
    """How far a step has run the deleted tokens: hidden states (batch, deleted, hidden) before a layer."""

    def __init__(self) -> None:
        self.step = (-1, 0)
        self.layer = 0
        self.hidden = torch.zeros(0)


class TieredCache(Cache):
    """Two tiers under one transformers cache; use with `generate` of this module.

    Args:
        model: whose layers recompute; a plain Llama-like network.
        policy: what a step reads; ``SparseWindowPolicy(1.0)`` for everything.
        schedule: when tokens leave the fast tier.
        batch, capacity: sequences, and tokens of each.
        fast_bytes: budget for keys, values and kept inputs of all layers.
        bandwidth: B/s of the slow tier; None for the disk's own.
        prompt: tokens of the prompts, after which the schedule counts.
        folder: where the slow tier's file is made.
        dtype: ``fp32``, or ``int8`` for a quarter of the bytes in both tiers, to half a step of a channel's range.

    Raises:
        HastenError: a model whose layers have more than Llama's; the budget is too small for one token, or in int8 for
            a group of 64 in fp32 beside the scales; or there is no room for the slow tier.
    """

    def __init__(
        self,
        model: LanguageModel,
        policy: SparseWindowPolicy,
        schedule: Schedule,
        *,
        batch: int,
        capacity: int,
        fast_bytes: float,
        prompt: int,
        bandwidth: float | None = None,
        folder: Path | None = None,
        dtype: Literal["fp32", "int8"] = "fp32",
    ) -> None:
        if dtype not in ("fp32", "int8"):
            raise HastenError(f"a tiered cache holds fp32 or int8, not {dtype!r}")
        check_llama_like(model.network, "a tiered cache")
        config = model.config
        self.policy, self.schedule = policy, schedule
        self.spec = CacheSpec(policy=policy)
        # Every layer follows the policy: no mask by position serves it.
        self.uniform = False
        self.batch, self.capacity = batch, capacity
        self.heads, self.hidden = config.num_key_value_heads, config.hidden_size
        self.head_dim = int(model.decoder.layer(0).attention.head_dim)
        count = len(model.layers)
        self.quantized = dtype == "int8"
        sizes = replace(
            DecoderSizes.of(config, dtype="fp32", cache_dtype=dtype), head_dim=self.head_dim, value_dim=self.head_dim
        )
        self.job = Job(sizes, batch, prompt, capacity - prompt, group=GROUP if self.quantized else 0)
        self.token_bytes, self.fast_budget = self.job.token_bytes, fast_bytes
        self.keeps_inputs = not schedule.prefix
        if fast_bytes < self.job.least_bytes:
            what = f"group of {GROUP} tokens and scales of this batch" if self.quantized else "token of this batch"
            raise HastenError(
                f"a budget of {fast_bytes:.0f} bytes holds no {what} ({self.job.least_bytes} bytes): raise it"
            )
        # Tokens whose inputs are needed sometime.
        ever = max((deleted for *_, deleted in self.job.placements(schedule, fast_bytes)), default=0)
        self.may_delete = ever if self.keeps_inputs else 0
        shape = (count, batch, self.heads, capacity, 2, self.head_dim)
        inputs = (count, batch, self.may_delete, self.hidden)
        self.slow = SlowTier(shape, bandwidth, folder, "uint8" if self.quantized else "float32", inputs)
        self._decoder = model.decoder
        self.entered: dict[int, Tensor] = {}
        self.ids = torch.zeros(batch, 0, dtype=torch.int64)
        self._beginning = _Beginning()
        self.recomputed = 0
        self.dropped, self.members, self.decoding = [0], [0], True
        super().__init__(layers=[_Layer(self, i) for i in range(count)])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self.layers[layer_idx].get_seq_length())

    def placed(self, length: int) -> tuple[int, int]:
        """(away, deleted) tokens at this length."""
        return self.job.placed(self.schedule, length, self.fast_budget)

    def recompute(self, index: int, inputs: Tensor, positions: Tensor, deleted: int) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, kv heads, n, head_dim) of deleted positions (n) at a layer.

        Args:
            index: of the layer.
            inputs: (batch, at least the deleted tokens, hidden), where they are kept.
            positions: (n), rising.
            deleted: how many tokens are.
        """
        if self.keeps_inputs:
            return self._projected(index, inputs[:, positions], positions)
        return self._from_the_beginning(index, positions, deleted)

    def _projected(self, index: int, inputs: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values from a layer's normed inputs (batch, n, hidden)."""
        attention = self._decoder.layer(index).attention
        values = attention.v_proj(inputs).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return self._rotated(attention, "k", inputs, positions), values

    def _rotated(self, attention: Any, which: str, inputs: Tensor, positions: Tensor) -> Tensor:
        """Queries or keys (batch, heads, n, head_dim)."""
        x = getattr(attention, f"{which}_proj")(inputs).unflatten(-1, (-1, self.head_dim))
        norm = getattr(attention, f"{which}_norm", None)  # as in Qwen3
        x = (x if norm is None else norm(x)).transpose(1, 2)
        return turned(x, *(half(t) for t in self._decoder.rotary(inputs, positions[None])))

    def _from_the_beginning(self, index: int, positions: Tensor, deleted: int) -> tuple[Tensor, Tensor]:
        """Keys and values from the prompt's first tokens, run through the layers as far as this one.

        They attended to each other alone and densely when they were read, so that this gives what was deleted. A step
        goes on from the layer where it needed them last.
        """
        decoder, known = self._decoder, self._beginning
        length = self.layers[0].length  # what tells steps apart
        if known.step != (length, deleted) or known.layer > index:
            known.step, known.layer = (length, deleted), 0
            known.hidden = decoder.embedding(self.ids[:, :deleted])
        every = torch.arange(deleted)
        mask = torch.ones(deleted, deleted, dtype=torch.bool).tril()
        while True:
            layer = decoder.layer(known.layer)
            normed = layer.attention_norm(known.hidden)
            if known.layer == index:
                return self._projected(index, normed[:, positions], positions)
            keys, values = self._projected(known.layer, normed, every)
            query = self._rotated(layer.attention, "q", normed, every)
            seen = attend(query, keys, values, layer.attention.scaling, mask)
            hidden = known.hidden + layer.attention.o_proj(seen.transpose(1, 2).flatten(2))
            known.hidden = hidden + layer.feed_forward(layer.feed_forward_norm(hidden))
            known.layer += 1

    def step_done(self) -> None:
        """Forgets the hidden states of a step that ran the text's beginning again."""
        self._beginning = _Beginning()

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
    if ids.shape[1] != cache.job.prompt:
        raise HastenError(f"the cache is for prompts of {cache.job.prompt} tokens: make it with prompt={ids.shape[1]}")
    if cache.get_seq_length():
        raise HastenError("the cache holds tokens of another text: make a new one")
    if ids.shape[1] + new_tokens > cache.capacity:
        raise HastenError(f"the cache has room for {cache.capacity} tokens: make it larger (capacity=)")
    model.check_fits(ids.shape[1] + new_tokens)
    cache.ids = ids
    handles = []
    for index in range(len(model.layers)):

        def enter(module: Any, args: Any, kwargs: dict[str, Any], index: int = index) -> None:
            cache.entered[index] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

        attention = model.decoder.layer(index).attention
        handles.append(attention.register_forward_pre_hook(enter, with_kwargs=True))
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
