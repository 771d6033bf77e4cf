"""hasten's own loop of generation: prefill, then steps, with sampling, end-of-text and drafts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    StoppingCriteriaList,
)
from transformers.generation import GenerateDecoderOnlyOutput

from hasten.errors import HastenError
from hasten.kernels.kv_cache import BLOCK
from hasten.models.decoder_form import turning_point
from hasten.runtime.cache import CacheSpec, KVCache
from hasten.runtime.decoding.lookup import Index, PromptLookup
from hasten.runtime.step import CompiledStep


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

    def end_session(self) -> None:
        """Gives the last session's cache away: the next session makes its own."""

    def prefill(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Reads prompts (batch, length); the last token's logits (batch, vocabulary)."""

    def __call__(self, input_ids: Tensor, past_key_values: KVCache | None = None) -> Any:
        """The network's own forward."""


def numbers(logits: Tensor) -> Tensor:
    """``logits``, if they are numbers.

    Raises:
        HastenError: some are not: the weights or the cache are damaged, and what follows would be noise.
    """
    if torch.isnan(logits).any():
        raise HastenError("the model's output is not a number: its weights or cache are damaged, load it again")
    return logits


@dataclass(frozen=True)
class GenerateCall:
    """A call of generate as transformers understands it.

    Attributes:
        ids: (sequences, length) int64: prompts, each as often as sequences are to be made of it.
        mask: (sequences, length), 0 over padding, never at the end; None without any.
        config: a transformers ``GenerationConfig``, every field with its default.
        processors: change the logits before a token is chosen.
        criteria: say which sequences have ended.
    """

    ids: Tensor
    mask: Tensor | None
    config: Any
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList


class GenerationLoop:
    """What of one call of generate is still running, and what has been made.

    Args:
        model: what runs.
        call: what it is asked for.
    """

    def __init__(self, model: Generates, call: GenerateCall) -> None:
        ids, mask, config = call.ids, call.mask, call.config
        self._model, self._criteria = model, call.criteria
        self._processors, self._least = _apart(call.processors)
        whole = torch.ones_like(ids) if mask is None else mask
        self._prompts = [row[kept.bool()].tolist() for row, kept in zip(ids, whole, strict=True)]
        self._given = ids
        rows, length = ids.shape
        self._limit = int(config.max_length) - length
        model.check_fits(max(map(len, self._prompts)) + self._limit)
        self._pad = _padding(config)
        # Texts so far, as transformers' processors and rules look at them.
        self._text = torch.full((rows, length + self._limit), self._pad, dtype=ids.dtype)
        self._text[:, :length] = ids
        self._lengths = [length] * rows
        # Without an end-of-text token no sequence is padded before all have ended.
        self._pads = any(hasattr(rule, "eos_token_id") for rule in call.criteria)
        self._ended = torch.zeros(rows, dtype=torch.bool)
        self._sample = bool(config.do_sample)
        self._records = bool(config.return_dict_in_generate)
        self._scores: list[Tensor] | None = [] if self._records and config.output_scores else None
        self._logits: list[Tensor] | None = [] if self._records and config.output_logits else None
        self._indexes = self._drafts()
        draft = model.lookup.draft if model.lookup is not None and self._indexes else 0
        capacity = max(map(len, self._prompts)) + self._limit + draft
        # Where the rotary positions of long texts turn otherwise than those of short ones, a text that grows past the
        # turning point is read again, as transformers does.
        turn = turning_point(model.network)
        self._turn = None
        self._later = capacity
        if turn is not None and max(map(len, self._prompts)) <= turn < capacity and model.cache.policy is None:
            self._cache, self._step = model.session(rows, turn)
            self._turn = turn if self._step is not None else None
        if self._turn is None:
            self._cache, self._step = model.session(rows, capacity)

    def _drafts(self) -> list[Index] | None:
        """What drafts are found in; None where there is nothing to draft for.

        A draft is verified against the greedy choice: not with sampling, or a choice that depends on what was chosen
        before. A cache that remembers rejected drafts would go on differently.
        """
        policy, lookup = self._model.cache.policy, self._model.lookup
        remembers = policy is not None and policy.remembers
        recorded = self._scores is not None or self._logits is not None
        if lookup is None or self._sample or len(self._processors) or remembers or recorded:
            return None
        return [Index(lookup, p) for p in self._prompts]

    def run(self, prefilled: Callable[[float], None] | None) -> Iterator[list[list[int]]]:
        """Yields the new tokens of every sequence, step by step."""
        if self._limit == 0:
            return
        rows = len(self._prompts)
        with torch.inference_mode():
            first = self._choose(numbers(self._read_prompts()), list(range(rows)))
            if prefilled is not None:
                prefilled(time.perf_counter())
            new = [[t] for t in first]
            if self._indexes is None:
                self._append(first)
            else:
                for i, tokens in enumerate(new):
                    self._append_to(i, tokens)
            yield new
            while not self._ended.all():
                yield self._advance() if self._indexes is None else self._advance_drafts(self._indexes)

    def columns(self, new: list[list[int]]) -> Iterator[Tensor]:
        """A step's tokens as a streamer takes them: (sequences,) each."""
        for position in range(max(map(len, new))):
            yield torch.tensor([row[position] for row in new if position < len(row)])

    def output(self) -> Any:
        """(sequences, length + new) int64, or transformers' output where the settings ask for it."""
        ids = self._text[:, : max(self._lengths)].to(self._given.device)
        if not self._records:
            return ids
        self._model.end_session()
        return GenerateDecoderOnlyOutput(
            sequences=ids,
            scores=None if self._scores is None else tuple(self._scores),
            logits=None if self._logits is None else tuple(self._logits),
            past_key_values=self._cache,
        )

    def _read_prompts(self) -> Tensor:
        model = self._model
        if len({len(p) for p in self._prompts}) == 1:
            return model.prefill(torch.tensor(self._prompts, device=model.device), self._cache)
        policy = self._cache.spec.policy
        if policy is not None and (policy.drops or not policy.compiled):
            raise HastenError("a policy that keeps a part of the prompt takes prompts of one length in a batch")
        rows = [
            model.prefill(torch.tensor([p], device=model.device), self._cache.sequence(i))
            for i, p in enumerate(self._prompts)
        ]
        return torch.cat(rows)

    def _advance(self) -> list[list[int]]:
        """One token for every sequence; those that have ended are padded."""
        rows = range(len(self._prompts))
        # What is recorded is recorded of padding too.
        every = not self._pads or self._scores is not None or self._logits is not None
        running = [i for i in rows if every or not self._ended[i]]
        last = {i: [int(self._text[i, self._lengths[i] - 1])] for i in running}
        chosen = self._choose(numbers(self._run(last)), running)
        if self._step is not None:
            self._cache.advance([int(i in last) for i in rows])
        self._append(chosen)
        return [[t] for t in chosen]

    def _append(self, chosen: list[int]) -> None:
        """Enters a token of each sequence."""
        at = self._lengths[0]
        self._text[:, at] = torch.tensor(chosen)
        self._lengths = [at + 1] * len(chosen)
        self._ended |= self._criteria(self._text[:, : at + 1], self._scores and tuple(self._scores)).cpu()

    def _choose(self, logits: Tensor, running: list[int]) -> list[int]:
        """A token of every sequence, from the logits of those that run: (running, vocabulary)."""
        rows = len(self._prompts)
        if self._logits is not None:
            self._logits.append(logits.clone())
        if len(running) < rows and (self._sample or len(self._processors)):
            # Random numbers are drawn for all sequences, ended or not, so that a seed says the same for the rest.
            whole = logits.new_zeros(rows, logits.shape[1])
            whole[running] = logits
            logits, running = whole, list(range(rows))
        self._silence(logits, [self._lengths[i] for i in running])
        if len(self._processors):
            seen = self._text[:, : self._lengths[0]].to(logits.device)
            logits = self._processors(seen, logits.clone())
        if self._scores is not None:
            self._scores.append(logits.clone())
        if self._sample:
            tokens = torch.multinomial(torch.softmax(logits, -1), 1)[:, 0].tolist()
        else:
            tokens = logits.argmax(-1).tolist()
        found = [self._pad] * rows
        for i, token in zip(running, tokens, strict=True):
            if not (self._pads and self._ended[i]):
                found[i] = token
        return found

    def _silence(self, logits: Tensor, lengths: list[int]) -> None:
        """Lets no text of so many tokens end that is still too short."""
        for least, ends in self._least:
            short = [row for row, length in enumerate(lengths) if length < least]
            if short:
                logits[torch.tensor(short)[:, None], ends] = -torch.inf

    def _advance_drafts(self, indexes: list[Index]) -> list[list[int]]:
        """One step for the sequences that run, each with its draft; as many tokens as were right, and one more."""
        running = [i for i in range(len(self._prompts)) if not self._ended[i]]
        drafts = {i: indexes[i].draft(self._room(i)) for i in running}
        tokens = {i: [int(self._text[i, self._lengths[i] - 1]), *drafts[i]] for i in running}
        logits = numbers(self._run(tokens))
        self._silence(logits, [self._lengths[i] + j for i, rows in tokens.items() for j in range(len(rows))])
        best = logits.argmax(-1).tolist()
        new: list[list[int]] = [[] for _ in self._prompts]
        row = 0
        for i, rows in tokens.items():
            answers = best[row : row + len(rows)]
            row += len(rows)
            agreed = 0
            while agreed < len(drafts[i]) and drafts[i][agreed] == answers[agreed]:
                agreed += 1
            new[i] = answers[: agreed + 1]
        if self._step is not None:
            self._cache.advance([len(found) for found in new])
        else:
            # The network's own forward has committed drafts with what was right of them.
            self._cache.retract([len(tokens.get(i, ())) - len(found) for i, found in enumerate(new)])
        for i in running:
            self._append_to(i, new[i])
        return new

    def _append_to(self, i: int, tokens: list[int]) -> None:
        """Enters new tokens of sequence ``i`` up to where it ends; drops the rest of ``tokens``."""
        for position, token in enumerate(tokens):
            at = self._lengths[i]
            self._text[i, at] = token
            self._lengths[i] = at + 1
            if bool(self._criteria(self._text[i : i + 1, : at + 1], None)):
                self._ended[i] = True
                del tokens[position + 1 :]
                return
        assert self._indexes is not None
        self._indexes[i].extend(tokens)

    def _room(self, i: int) -> int:
        """Tokens that may be drafted for sequence ``i``."""
        room = self._text.shape[1] - self._lengths[i] - 1
        if self._turn is not None:
            room = min(room, max(0, self._turn - self._cache.lengths[i] - 1))
        if self._cache.spec.quantized:
            # A block is read as codes from the first step on that begins behind it. A draft that goes on into the next
            # block would read it as it was before rounding, and end in another text than step by step.
            room = min(room, BLOCK - 1 - self._cache.lengths[i] % BLOCK)
        return room

    def _read_again(self) -> None:
        """Reads every text anew, into a cache with room for long ones."""
        model, known = self._model, list(self._cache.lengths)
        given = self._given.shape[1]
        texts = [[*prompt, *self._text[i, given : self._lengths[i]].tolist()] for i, prompt in enumerate(self._prompts)]
        self._cache, self._step = model.session(len(texts), self._later)
        self._turn = None
        for i, (text, length) in enumerate(zip(texts, known, strict=True)):
            model.prefill(torch.tensor([text[:length]], device=model.device), self._cache.sequence(i))

    def _run(self, tokens: dict[int, list[int]]) -> Tensor:
        """Logits of every given token of some sequences, in order: (tokens, vocabulary)."""
        if self._turn is not None and any(self._cache.lengths[i] + len(t) > self._turn for i, t in tokens.items()):
            self._read_again()
        if self._step is None:
            return self._run_plain(tokens)
        ids = [t for rows in tokens.values() for t in rows]
        sequences = [i for i, rows in tokens.items() for _ in rows]
        positions = [self._cache.lengths[i] + j for i, rows in tokens.items() for j in range(len(rows))]
        turns = [p + self._cache.dropped[i] for p, i in zip(positions, sequences, strict=True)]
        return self._step(ids, sequences, positions, turns=turns)

    def _run_plain(self, tokens: dict[int, list[int]]) -> Tensor:
        """As `_run`, by the network's own forward, which commits what it reads."""
        everyone = list(tokens) == list(range(len(self._prompts)))
        uniform = len({self._cache.lengths[i] for i in tokens}) == 1 == len({len(t) for t in tokens.values()})
        if everyone and uniform and not self._cache.apart:
            return self._forward(self._cache, list(tokens.values())).flatten(0, 1)
        return torch.cat([self._forward(self._cache.sequence(i), [t])[0] for i, t in tokens.items()])

    def _forward(self, cache: KVCache, rows: Sequence[list[int]]) -> Tensor:
        logits: Tensor = self._model(torch.tensor(rows, device=self._model.device), past_key_values=cache).logits
        return logits.float()


def _apart(processors: LogitsProcessorList) -> tuple[LogitsProcessorList, list[tuple[int, Tensor]]]:
    """What changes logits at every step, and apart from it what only keeps texts from ending: (length, end tokens).

    transformers' own processors of a least length look through the whole vocabulary at each step, a quarter of a small
    model's time.
    """
    rest, least = LogitsProcessorList(), []
    for one in processors:
        if type(one) is MinLengthLogitsProcessor:
            least.append((int(one.min_length), one.eos_token_id.cpu()))
        elif type(one) is MinNewTokensLengthLogitsProcessor:
            least.append((int(one.prompt_length_to_skip + one.min_new_tokens), one.eos_token_id.cpu()))
        else:
            rest.append(one)
    return rest, least


def _padding(config: Any) -> int:
    """The token that ended sequences are filled with, as transformers chooses it."""
    if config.pad_token_id is not None:
        return int(torch.as_tensor(config.pad_token_id))
    return next(iter(end_tokens(config)), 0)


def end_tokens(config: Any) -> tuple[int, ...]:
    """The tokens that end a text, of a ``GenerationConfig``: one number, several, or none."""
    ends = config.eos_token_id
    return () if ends is None else tuple(int(token) for token in torch.as_tensor(ends).reshape(-1))
