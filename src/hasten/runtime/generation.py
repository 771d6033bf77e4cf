"""Generating text: prefill, then steps, with sampling, end-of-text and drafts."""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hasten.errors import HastenError
from hasten.kernels.kv_cache import BLOCK
from hasten.runtime.attention import following
from hasten.runtime.cache import CacheSpec, KVCache
from hasten.runtime.decoding.lookup import Index, PromptLookup
from hasten.runtime.step import CompiledStep

# What hasten's loop does itself; anything else in a generation config goes to transformers' own loop.
_OWN = {
    "max_new_tokens",
    "max_length",
    "min_new_tokens",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "eos_token_id",
    "bos_token_id",
    "pad_token_id",
    "use_cache",
    "transformers_version",
    "_from_model_config",
}


class Generates(Protocol):
    """What generation asks of a model; `hasten.runtime.LanguageModel` is one.

    Attributes:
        cache: how keys and values are kept.
        lookup: how drafts are found, or None.
    """

    cache: CacheSpec
    lookup: PromptLookup | None

    @property
    def network(self) -> Any:
        """The transformers network."""

    @property
    def generation_config(self) -> Any:
        """What generation goes by where a call says nothing."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    def check_fits(self, length: int) -> None:
        """Raises HastenError for a text that is too long."""

    def new_cache(self, batch: int = 1, capacity: int = 0) -> KVCache:
        """Empty buffers."""

    def session(self, batch: int, capacity: int) -> tuple[KVCache, CompiledStep | None]:
        """A cache, and the compiled step over it where there is one."""

    def prefill(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Reads prompts (batch, length); the last token's logits (batch, vocabulary)."""

    def __call__(self, input_ids: Tensor, past_key_values: KVCache | None = None) -> Any:
        """The network's own forward."""


def generate(
    model: Generates,
    input_ids: Tensor | None = None,
    *,
    attention_mask: Tensor | None = None,
    generation_config: Any = None,
    streamer: Any = None,
    prefilled: Callable[[float], None] | None = None,
    **kwargs: Any,
) -> Any:
    """Continues a batch of texts the way transformers' ``generate`` does.

    Args:
        model: what runs.
        input_ids: (batch, length) int64, padded on the left where texts differ in length.
        attention_mask: (batch, length), 0 over padding; None without any.
        generation_config: a transformers ``GenerationConfig``; the model's own when None.
        streamer: a transformers streamer, for one sequence.
        prefilled: called with ``time.perf_counter()`` when the prompt has been read and the first new
            token is known.
        **kwargs: fields of the generation config (``max_new_tokens``, ``do_sample``, ``temperature``,
            ``top_k``, ``top_p``, ``repetition_penalty``, ``eos_token_id``, ...). What hasten's own loop does
            not do (beams, constraints, ...) runs in transformers' loop, over the same cache.

    Returns:
        (batch, length + new) int64: prompts and what follows, ended texts padded.

    Raises:
        HastenError: no prompt, a prompt longer than the model's positions.
    """
    if input_ids is None:
        input_ids = kwargs.pop("inputs", None)
    if input_ids is None or input_ids.ndim != 2 or input_ids.shape[1] == 0:
        raise HastenError("generate needs input_ids of shape (batch, length) with at least one token")
    config = copy.deepcopy(generation_config or model.generation_config)
    extra = config.update(**kwargs)
    foreign = [key for key, value in config.to_diff_dict().items() if value and key not in _OWN]
    if extra or foreign:
        return _by_transformers(model, input_ids, attention_mask, config, streamer, extra)
    if config.max_new_tokens is None:
        limit = config.max_length if config.max_length is not None and "max_length" in kwargs else None
        config.max_new_tokens = 20 if limit is None else max(0, limit - input_ids.shape[1])
    batch = input_ids.shape[0]
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    prompts = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
    if any(not p for p in prompts):
        raise HastenError("a prompt is all padding: give each sequence at least one token")
    model.check_fits(max(len(p) for p in prompts) + config.max_new_tokens)
    loop = _Loop(model, prompts, config)
    if streamer is not None:
        if batch > 1:
            raise HastenError("a streamer follows one sequence: give a batch of 1")
        streamer.put(input_ids.cpu())
    for new in loop.run(prefilled):
        if streamer is not None:
            streamer.put(torch.tensor(new[0]))
    if streamer is not None:
        streamer.end()
    return _padded(input_ids, loop.made, config)


def stream(model: Generates, input_ids: Tensor, **kwargs: Any) -> Iterator[list[int]]:
    """As `generate` for one sequence, token by token: yields lists of new tokens.

    Raises:
        HastenError: more than one sequence, or a setting that only transformers' loop has.
    """
    config = copy.deepcopy(model.generation_config)
    extra = config.update(**kwargs)
    if extra or any(v and k not in _OWN for k, v in config.to_diff_dict().items()) or input_ids.shape[0] != 1:
        raise HastenError("stream takes one sequence and plain sampling settings: use generate for the rest")
    config.max_new_tokens = config.max_new_tokens or 20
    model.check_fits(input_ids.shape[1] + config.max_new_tokens)
    for new in _Loop(model, [input_ids[0].tolist()], config).run(None):
        yield new[0]


def _by_transformers(
    model: Generates, ids: Tensor, mask: Tensor | None, config: Any, streamer: Any, extra: dict[str, Any]
) -> Any:
    room = config.max_new_tokens or max(0, (config.max_length or 20) - ids.shape[1])
    beams = max(1, config.num_beams or 1) * max(1, config.num_return_sequences or 1)
    spec, given = model.cache, extra.get("past_key_values")
    if spec.uniform and spec.window is None:
        # A format alone: the cache does all of it.
        extra.setdefault("past_key_values", model.new_cache(ids.shape[0] * beams, ids.shape[1] + room))
        return model.network.generate(ids, attention_mask=mask, generation_config=config, streamer=streamer, **extra)
    if given is not None:
        raise HastenError("a window or a policy is the model's own cache's: give no past_key_values with one")
    if mask is not None and not mask.bool().all():
        raise HastenError("with these settings a window or a policy takes prompts of one length: pad none of them")
    if "assistant_model" in extra or config.prompt_lookup_num_tokens or config.prefill_chunk_size:
        raise HastenError("a window or a policy does not go with transformers' own drafts or pieces of prompts")
    cache = model.new_cache(ids.shape[0] * beams, ids.shape[1] + room)
    with _ruled(model.network, cache):
        return model.network.generate(
            ids, attention_mask=mask, generation_config=config, streamer=streamer, past_key_values=cache, **extra
        )


@contextlib.contextmanager
def _ruled(network: Any, cache: KVCache) -> Iterator[None]:
    """Within, whoever calls ``network`` with ``cache`` has it attend, and forget, as the cache's rules say."""
    forward = type(network).forward

    @functools.wraps(forward)
    def by_rule(input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        start = cache.get_seq_length()
        begin = start + cache.dropped[0]
        kwargs |= {
            "attention_mask": None,
            "past_key_values": cache,
            "position_ids": torch.arange(begin, begin + input_ids.shape[1], device=input_ids.device)[None],
        }
        found = forward(network, input_ids, *args, **kwargs)
        if start == 0 and cache.spec.policy is not None:
            cache.spec.policy.prefilled(cache)
        return found

    network.forward = by_rule
    try:
        with following(network, cache):
            yield
    finally:
        del network.forward


def _padded(prompts: Tensor, made: Sequence[Sequence[int]], config: Any) -> Tensor:
    longest = max(map(len, made))
    eos = _eos(config)
    pad = config.pad_token_id if config.pad_token_id is not None else (min(eos) if eos else 0)
    new = torch.full((len(made), longest), pad, dtype=prompts.dtype)
    for row, tokens in zip(new, made, strict=True):
        row[: len(tokens)] = torch.tensor(tokens, dtype=prompts.dtype)
    return torch.cat((prompts, new.to(prompts.device)), 1)


def _eos(config: Any) -> set[int]:
    eos = config.eos_token_id
    return set() if eos is None else {int(e) for e in (eos if isinstance(eos, list | tuple) else [eos])}


def numbers(logits: Tensor) -> Tensor:
    """``logits``, if they are numbers.

    Raises:
        HastenError: some are not: the weights or the cache are damaged, and what follows would be noise.
    """
    if torch.isnan(logits).any():
        raise HastenError("the model's output is not a number: its weights or cache are damaged, load it again")
    return logits


class _Loop:
    """One call of generate: what is still running, and what has been made."""

    def __init__(self, model: Generates, prompts: list[list[int]], config: Any) -> None:
        self._model = model
        self._prompts = prompts
        self._limit = int(config.max_new_tokens)
        self._eos = _eos(config)
        self._least = int(config.min_new_tokens or 0)
        self._sample = bool(config.do_sample)
        self._penalty = config.repetition_penalty
        self._processors = _processors(config, self._sample)
        self.made: list[list[int]] = [[] for _ in prompts]
        # A draft is verified against the greedy choice: with sampling, or a choice that depends on what
        # was chosen before, there is nothing to draft for. A cache that remembers rejected drafts would go on
        # differently.
        policy = model.cache.policy
        fixed = self._sample or self._processors or (policy is not None and policy.remembers)
        lookup = None if fixed else model.lookup
        self._indexes = [Index(lookup, p) for p in prompts] if lookup else None
        capacity = max(map(len, prompts)) + self._limit + (lookup.draft if lookup else 0)
        self._cache, self._step = model.session(len(prompts), capacity)

    def run(self, prefilled: Callable[[float], None] | None) -> Iterator[list[list[int]]]:
        """Yields the new tokens of every sequence, step by step."""
        if self._limit == 0:
            return
        with torch.inference_mode():
            first = self._choose(numbers(self._prefill()), range(len(self._prompts)))
            if prefilled is not None:
                prefilled(time.perf_counter())
            last = {i: token for i, token in enumerate(first) if self._take(i, [token])}
            yield [[t] for t in first]
            while last:
                yield self._advance(last)

    def _prefill(self) -> Tensor:
        lengths = {len(p) for p in self._prompts}
        if len(lengths) == 1:
            return self._model.prefill(torch.tensor(self._prompts, device=self._model.device), self._cache)
        policy = self._cache.spec.policy
        if policy is not None and (policy.drops or not policy.compiled):
            raise HastenError("a policy that keeps a part of the prompt takes prompts of one length in a batch")
        rows = [
            self._model.prefill(torch.tensor([p], device=self._model.device), self._cache.sequence(i))
            for i, p in enumerate(self._prompts)
        ]
        return torch.cat(rows)

    def _advance(self, last: dict[int, int]) -> list[list[int]]:
        """One step for the sequences in ``last`` (their newest token, not in the cache yet); updates it."""
        drafts = {i: self._indexes[i].draft(self._room(i)) if self._indexes else [] for i in last}
        tokens = {i: [token, *drafts[i]] for i, token in last.items()}
        logits = numbers(self._logits(tokens))
        new: list[list[int]] = [[] for _ in self._prompts]
        committed = [0] * len(self._prompts)
        if self._indexes is None:
            for i, token in zip(last, self._choose(logits, list(last)), strict=True):
                new[i] = [token]
        else:
            best, row = logits.argmax(-1).tolist(), 0
            for i, rows in tokens.items():
                answers = best[row : row + len(rows)]
                row += len(rows)
                agreed = 0
                while agreed < len(drafts[i]) and drafts[i][agreed] == answers[agreed]:
                    agreed += 1
                new[i] = answers[: agreed + 1]
        for i in tokens:
            committed[i] = len(new[i])
            kept = self._take(i, new[i])
            last[i] = new[i][-1]
            if not kept:
                del last[i]
        if self._step is not None:
            self._cache.advance(committed)
        return new

    def _room(self, i: int) -> int:
        """Tokens that may be drafted for sequence ``i``."""
        room = self._limit - len(self.made[i]) - 1
        if self._cache.spec.quantized:
            # A block is read as codes from the first step on that begins behind it. A draft that goes on into the next
            # block would read it as it was before rounding, and end in another text than step by step.
            room = min(room, BLOCK - 1 - self._cache.lengths[i] % BLOCK)
        return room

    def _logits(self, tokens: dict[int, list[int]]) -> Tensor:
        """Logits of every given token, in order: (rows, vocabulary)."""
        if self._step is None:
            return self._plain_logits(tokens)
        ids = [t for rows in tokens.values() for t in rows]
        sequences = [i for i, rows in tokens.items() for _ in rows]
        positions = [self._cache.lengths[i] + j for i, rows in tokens.items() for j in range(len(rows))]
        turns = [p + self._cache.dropped[i] for p, i in zip(positions, sequences, strict=True)]
        return self._step(ids, sequences, positions, turns=turns)

    def _plain_logits(self, tokens: dict[int, list[int]]) -> Tensor:
        """As `_logits`, by the network's own forward; drafts are accepted or taken back here."""
        everyone = list(tokens) == list(range(len(self._prompts)))
        uniform = len({self._cache.lengths[i] for i in tokens}) == 1 == len({len(t) for t in tokens.values()})
        if everyone and uniform and not self._cache.apart:
            return self._run_plain(self._cache, list(tokens.values())).flatten(0, 1)
        return torch.cat([self._run_plain(self._cache.sequence(i), [t])[0] for i, t in tokens.items()])

    def _run_plain(self, cache: KVCache, rows: list[list[int]]) -> Tensor:
        ids = torch.tensor(rows, device=self._model.device)
        logits = self._model(ids, past_key_values=cache).logits.float()
        if self._indexes is not None and len(rows[0]) > 1:
            wrong = []
            for row, best in zip(rows, logits.argmax(-1).tolist(), strict=True):
                agreed = 0
                while agreed < len(row) - 1 and row[agreed + 1] == best[agreed]:
                    agreed += 1
                wrong.append(len(row) - 1 - agreed)
            cache.retract(wrong)
        return logits

    def _take(self, i: int, tokens: list[int]) -> bool:
        """Appends what was made, up to an end-of-text; False when the sequence has ended."""
        made = self.made[i]
        for position, token in enumerate(tokens):
            made.append(token)
            if (token in self._eos and len(made) > self._least) or len(made) >= self._limit:
                del tokens[position + 1 :]
                return False
        if self._indexes is not None:
            self._indexes[i].extend(tokens)
        return True

    def _choose(self, logits: Tensor, which: Sequence[int]) -> list[int]:
        if self._processors:
            # Some processors look at the text so far; sequences may differ in length.
            rows = []
            for row, i in zip(logits, which, strict=True):
                text = torch.tensor([self._prompts[i] + self.made[i]], device=logits.device)
                rows.append(self._processed(text, row[None].clone(), i))
            logits = torch.cat(rows)
        if self._sample:
            return torch.multinomial(torch.softmax(logits, -1), 1)[:, 0].tolist()
        return logits.argmax(-1).tolist()

    def _processed(self, text: Tensor, row: Tensor, i: int) -> Tensor:
        if self._eos and len(self.made[i]) < self._least:
            row[:, list(self._eos)] = -torch.inf
        return self._processors(text, row)


def _processors(config: Any, sample: bool) -> LogitsProcessorList:
    """transformers' own processors for the settings that this loop takes."""
    found = LogitsProcessorList()
    if config.repetition_penalty not in (None, 1.0):
        found.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if not sample:
        return found
    if config.temperature not in (None, 1.0):
        found.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        found.append(TopKLogitsWarper(config.top_k))
    if config.top_p is not None and config.top_p < 1.0:
        found.append(TopPLogitsWarper(config.top_p))
    return found
