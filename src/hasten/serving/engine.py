"""Answers to many requests at once by one model: whoever asks joins at any step, and leaves when his answer ends."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.hardware.machine import memory_size
from hasten.kernels.kv_cache import BLOCK
from hasten.models.decoder_form import turning_point
from hasten.runtime.generation_loop import end_tokens
from hasten.runtime.language_model import LanguageModel
from hasten.serving.answer import AnswerRecord, AnswerStream
from hasten.serving.choosing import TokenChooser, likeliest
from hasten.serving.detokenizer import TokenTexts
from hasten.serving.request import Finish, Request, TokenLogprob
from hasten.serving.running_text import RunningText
from hasten.serving.scheduler import Scheduler
from hasten.serving.steps import PagedSteps, PlainSteps, PlannedRows, SlotSteps, Steps

# Of the machine's memory, where nobody says how much a cache may take.
_SHARE_OF_MEMORY = 0.25
# Prompts' tokens of a step: the least and the most that the speed so far may choose, and the first guess.
_LEAST_PIECE, _MOST_PIECE, _FIRST_PIECE = 32, 512, 64


class QueueFull(HastenError):
    """More requests wait than may; worth trying again.

    Attributes:
        retry_after: seconds after which there is likely to be room.
    """

    def __init__(self, waiting: int, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(f"{waiting} requests wait already: try again in {retry_after:.0f} s")


@dataclass(frozen=True)
class EngineMetrics:
    """What an engine has done, and has at the moment.

    Attributes:
        requests: taken on; each of them waits, runs, or is one of the next three.
        answered: answers that ended by themselves.
        cancelled: that nobody waited for.
        failed: that came to an error.
        refused: not taken on, for they did not fit.
        prompt_tokens: of requests' prompts, read or found.
        cached_tokens: of all that was to be read what was found read.
        new_tokens: made.
        steps: of the model.
        put_back: texts whose room went to older ones; each is read again.
        seconds_running: in steps of the model.
        seconds_choosing: choosing tokens and handing out text.
        waiting: requests that wait.
        running: requests that run.
        blocks_used: of the cache, by running texts.
        blocks_cached: kept for texts that begin alike.
        blocks_free: that hold nothing.
    """

    requests: int = 0
    answered: int = 0
    cancelled: int = 0
    failed: int = 0
    refused: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    put_back: int = 0
    seconds_running: float = 0.0
    seconds_choosing: float = 0.0
    waiting: int = 0
    running: int = 0
    blocks_used: int = 0
    blocks_cached: int = 0
    blocks_free: int = 0


class Engine:
    """Runs a model for many requests at once, in a thread of its own.

    Every step reads the newest token of all running answers together, so that the weights are read once for all of
    them, and beside it a piece of a prompt (Orca, OSDI 2022, section 3; SARATHI, arXiv 2308.16369). An answer does not
    depend on what runs beside it.

    >>> with Engine(model) as engine:  # doctest: +SKIP
    ...     for part in engine.submit(Request(prompt=(1, 2, 3), max_tokens=32)):
    ...         print(part.text, end="")

    Args:
        model: nobody else may run it meanwhile.
        most_running: requests that run at a time; others wait.
        most_waiting: requests that wait at a time; more are refused.
        most_tokens: of one text, prompt and answer; None: as many as the model has positions for.
        cache_bytes: for keys and values; None: a quarter of the machine's memory.
        piece: tokens of prompts in a step; None: as many as are read in ``turn_seconds``.
        turn_seconds: what a step should take at most while others' prompts are read beside answers.

    Raises:
        HastenError: the cache has no room for a text, or hasten has none for this model.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        most_running: int = 16,
        most_waiting: int = 256,
        most_tokens: int | None = None,
        cache_bytes: int | None = None,
        piece: int | None = None,
        turn_seconds: float = 0.1,
    ) -> None:
        if most_running < 1 or most_waiting < 0 or (piece is not None and piece < 1):
            raise HastenError("an engine runs at least one request, and reads at least one token at a time")
        self.model, self.tokenizer = model, model.tokenizer
        self._piece, self._turn_seconds = piece, turn_seconds
        self._rate: float | None = None  # tokens a second of steps that read prompts
        self._most_waiting, self._most_running = most_waiting, most_running
        self._steps = steps_of(model, most_running, most_tokens, cache_bytes)
        self.notes = (*self._steps.notes, *_notes(model, most_tokens))
        self.most_tokens = self._steps.most_tokens
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
        self.end_tokens = end_tokens(model.generation_config)
        self._token_texts = TokenTexts(self.tokenizer)
        self._scheduler = Scheduler(self._steps, most_running)
        self._changed = threading.Condition()
        self._arrived: list[RunningText] = []
        self._number = 0
        self._closing = False
        self._counts: dict[str, float] = dict.fromkeys(EngineMetrics.__dataclass_fields__, 0)
        self._seconds_an_answer = 1.0
        self._thread = threading.Thread(target=self._work, name="hasten engine", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _stop, self._changed, self._thread, weakref.ref(self))

    def submit(self, request: Request) -> AnswerStream:
        """Takes a request on; returns at once.

        The answer has ``request.max_tokens`` new tokens at most, and no more than the prompt leaves of `most_tokens`.

        Raises:
            QueueFull: too many requests wait.
            HastenError: the engine is closed, or the request is one that it cannot answer.
        """
        try:
            text = self._text_of(request)
            with self._changed:
                if self._closing or not self._thread.is_alive():
                    raise HastenError("the engine is closed: make another one")
                # Those that arrived since the last step count as waiting only beyond the places that are free.
                ahead = len(self._scheduler) + len(self._arrived)
                if ahead >= self._most_running + self._most_waiting:
                    waiting = max(0, ahead - self._most_running)
                    raise QueueFull(waiting, self._patience(waiting))
                self._number += 1
                text.number = self._number
                self._arrived.append(text)
                self._counts["requests"] += 1
                self._counts["prompt_tokens"] += len(request.prompt)
                self._changed.notify_all()
        except HastenError:
            with self._changed:
                self._counts["refused"] += 1
            raise
        return AnswerStream(text.record)

    def _patience(self, waiting: int) -> float:
        return min(60.0, max(1.0, math.ceil(self._seconds_an_answer * (waiting + 1) / self._most_running)))

    def _text_of(self, request: Request) -> RunningText:
        prompt = request.prompt
        if not prompt:
            raise HastenError("the prompt has no token: give at least one")
        if request.stop and self.tokenizer is None:
            raise HastenError("stop texts are found by a tokenizer, which this model has none of")
        wrong = next((t for t in prompt if not 0 <= t < self.vocabulary), None)
        if wrong is not None:
            raise HastenError(f"token {wrong} is none of the model's: they are 0 to {self.vocabulary - 1}")
        if request.max_tokens is not None and request.max_tokens < 0:
            raise HastenError(f"max_tokens is {request.max_tokens}: give 0 or more")
        if min(request.logprobs or 0, request.prompt_logprobs or 0) < 0:
            raise HastenError("log-probabilities of fewer than no tokens were asked for: give 0 or more")
        room = self.most_tokens - len(prompt)
        if room < 0 or (room == 0 and request.max_tokens != 0):
            raise HastenError(
                f"the prompt has {len(prompt)} tokens, and prompt and answer together at most {self.most_tokens}: "
                "make it shorter"
            )
        most_new = room if request.max_tokens is None else min(request.max_tokens, room)
        return RunningText(
            request,
            AnswerRecord(len(prompt)),
            TokenChooser(request.sampling, prompt, self.vocabulary, request.constraint, len(prompt) + most_new),
            tokenizer=self.tokenizer,
            token_texts=self._token_texts,
            ends=self.end_tokens,
            most_new=most_new,
            number=0,
        )

    @property
    def cache_bytes(self) -> int:
        """Of keys and values that it holds, or may come to hold."""
        return self._steps.nbytes

    @property
    def metrics(self) -> EngineMetrics:
        """Of now."""
        with self._changed:
            counts = dict(self._counts)
            scheduler = self._scheduler
            used, cached, free = self._steps.blocks()
            counts |= {
                "put_back": scheduler.put_back,
                "cached_tokens": scheduler.cached,
                "waiting": len(scheduler.waiting) + len(self._arrived),
                "running": len(scheduler.running),
                "blocks_used": used,
                "blocks_cached": cached,
                "blocks_free": free,
            }
        return EngineMetrics(**{n: v if n.startswith("seconds") else int(v) for n, v in counts.items()})  # type: ignore[arg-type]

    def close(self) -> None:
        """Ends all answers, as cancelled, and the thread; a step that is running is waited for."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    # What follows runs in the engine's thread.

    def _work(self) -> None:
        with torch.inference_mode():
            while self._next():
                try:
                    self._turn()
                except Exception as error:
                    # Of the engine itself: whoever is there is told, the next ones begin afresh.
                    self._fail_running(error)
        with self._changed:
            self._take_arrived()
            for text in list(self._scheduler):
                self._end_without_token(text, "cancelled")

    def _next(self) -> bool:
        """Waits for something to do; whether there is."""
        with self._changed:
            while not self._closing and not self._arrived and not len(self._scheduler):
                self._changed.wait()
            self._take_arrived()
            return not self._closing

    def _take_arrived(self) -> None:
        for text in self._arrived:
            self._scheduler.add(text)
        self._arrived.clear()

    def _turn(self) -> None:
        scheduler = self._scheduler
        for text in [t for t in scheduler if t.record.cancelled]:
            self._end_without_token(text, "cancelled")
        try:
            with self._changed:
                scheduler.start()
        except Exception as error:
            # There is no room for it of the kind that it needs, or no such cache of this model.
            self._fail(scheduler.waiting[0], error)
            return
        with self._changed:
            plan = scheduler.plan(self._piece_now())
        if not plan:
            return
        started = time.perf_counter()
        try:
            logits = self._steps.run(plan)
        except Exception as error:
            self._fail_running(error)
            return
        ended = time.perf_counter()
        self._learn(plan, ended - started)
        self._give(plan, logits)
        with self._changed:
            self._counts["steps"] += 1
            self._counts["seconds_running"] += ended - started
            self._counts["seconds_choosing"] += time.perf_counter() - ended

    def _piece_now(self) -> int:
        if self._piece is not None:
            return self._piece
        if self._rate is None:
            return _FIRST_PIECE
        # With nobody to keep waiting, longer pieces are read somewhat faster.
        alone = all(t.unread > 1 for t in self._scheduler.running)
        count = int(self._rate * self._turn_seconds * (3 if alone else 1))
        return max(_LEAST_PIECE, min(_MOST_PIECE, count // _LEAST_PIECE * _LEAST_PIECE))

    def _learn(self, plan: Sequence[PlannedRows], seconds: float) -> None:
        if any(p.count > 1 for p in plan) and seconds > 0:
            rate = sum(p.count for p in plan) / seconds
            self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate

    def _give(self, plan: Sequence[PlannedRows], logits: Tensor) -> None:
        """Chooses a token of every text that has been read, and hands out what has come of it."""
        last: list[tuple[RunningText, int]] = []
        row = 0
        for p in plan:
            text, end = p.text, row + p.answered
            try:
                if text.wants_prompt:
                    text.read_prompt(text.read - p.answered, logits[row:end])
                if not text.unread:
                    text.tell_prompt()
                    if text.most_new:
                        last.append((text, end - 1))
                    else:
                        self._end_without_token(text, "length")
            except Exception as error:
                self._fail(text, error)
            row = end
        if last:
            self._choose(last, logits)

    def _choose(self, last: list[tuple[RunningText, int]], logits: Tensor) -> None:
        if len(last) < len(logits):
            logits = logits[[row for _, row in last]]
        texts = [text for text, _ in last]
        unchanged: dict[int, Tensor] = {}
        wrong: dict[int, Exception] = {}
        for i, text in enumerate(texts):
            if text.chooser.changes:
                if text.request.logprobs is not None:
                    unchanged[i] = logits[i].clone()
                try:
                    text.chooser.change(logits[i])
                except Exception as error:
                    wrong[i] = error
        tokens, numbers = likeliest(logits)
        new = 0
        for i, text in enumerate(texts):
            try:
                if i in wrong:
                    raise wrong[i]
                if not numbers[i]:
                    raise HastenError(
                        "the model's output is not a number: its weights or cache are damaged, load it again"
                    )
                token = tokens[i] if text.chooser.greedy else text.chooser.draw(logits[i])
                told: TokenLogprob | None = None
                if text.request.logprobs is not None:
                    told = text.logprob(unchanged.get(i, logits[i]), token, text.request.logprobs)
                new += 1
                part = text.add(token, told)
                if part.finish is not None:
                    self._leave(text, "answered")
                # After what it held is free: whoever reads the last part finds it so.
                text.record.put(part)
            except Exception as error:
                self._fail(text, error)
                if not numbers[i]:
                    self._steps.forget()
        with self._changed:
            self._counts["new_tokens"] += new

    def _end_without_token(self, text: RunningText, why: Finish) -> None:
        self._leave(text, "cancelled" if why == "cancelled" else "answered")
        try:
            text.finish(why)
        except Exception as error:
            text.record.fail(_told("the request failed", error))

    def _leave(self, text: RunningText, how: str) -> None:
        """A text that has ended is none of the scheduler's any more."""
        with self._changed:
            self._scheduler.remove(text)
            self._counts[how] += 1
            if how == "answered":
                seconds = time.perf_counter() - text.record.created
                self._seconds_an_answer = 0.9 * self._seconds_an_answer + 0.1 * seconds

    def _fail(self, text: RunningText, error: Exception) -> None:
        self._leave(text, "failed")
        text.record.fail(_told("the request failed", error))

    def _fail_running(self, error: Exception) -> None:
        """Those that ran are told of an error that is none of theirs alone; nothing that it may have spoilt stays."""
        told = _told("the model failed while it ran", error)
        for text in list(self._scheduler.running):
            self._leave(text, "failed")
            text.record.fail(told)
        self._steps.forget()


def _told(what: str, error: Exception) -> HastenError:
    if isinstance(error, HastenError):
        return error
    told = HastenError(f"{what} ({type(error).__name__}): {' '.join(str(error).split())[:200]}")
    told.__cause__ = error
    return told


def _stop(changed: threading.Condition, thread: threading.Thread, engine: weakref.ref[Engine]) -> None:
    found = engine()
    if found is not None:
        found.close()


def steps_of(model: LanguageModel, most_running: int, most_tokens: int | None, cache_bytes: int | None) -> Steps:
    """The fastest way in which a model's steps run for many texts.

    Raises:
        HastenError: the cache has no room for a text, hasten has none for this model, or no longest text is known.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or most_tokens
    if positions is None:
        raise HastenError("the model's configuration says nothing of the longest text: give most_tokens")
    most = most_tokens
    if most is None and (turn := turning_point(model.network)) is not None:
        # All positions of longer texts turn otherwise: short ones are read, unless long ones are asked for.
        most = max(BLOCK, turn // BLOCK * BLOCK)
    tokens = int(positions if most is None else min(most, positions))
    most_bytes = int(memory_size() * _SHARE_OF_MEMORY) if cache_bytes is None else cache_bytes
    why = model.why_not_compiled
    if why is None and model.cache.policy is not None:
        why = f"{type(model.cache.policy).__name__} chooses what a text's tokens see"
    if why is not None:
        return PlainSteps(model, why, tokens)
    if model.cache.whole:
        return PagedSteps(model, most_running, tokens, most_bytes)
    return SlotSteps(model, most_running, tokens, most_bytes)


def _notes(model: LanguageModel, most_tokens: int | None) -> tuple[str, ...]:
    turn, found = turning_point(model.network), []
    if turn is not None and most_tokens is None:
        found.append(
            f"texts of {turn} tokens and fewer are read: positions of longer ones turn otherwise (most_tokens)"
        )
    if model.lookup is not None:
        found.append("the model's drafts from the text so far are not used: many answers fill a step by themselves")
    return tuple(found)
