"""The first step of tuning: the model, the text that it is judged by, and how long measuring may take."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hasten.data.text import default_text
from hasten.errors import HastenError
from hasten.kernels.kv_cache import MOST_NEW
from hasten.models.loading.loaded import Loaded
from hasten.processes import TimeIsUp
from hasten.runtime import LanguageModel
from hasten.runtime.placement import placed
from hasten.tuning.loading import load_base
from hasten.tuning.settings import Settings

# Part of a study's identity that says how much quality was read, where it was not all of it; and what stands for all.
READ, WHOLE = "quality read", "whole"
# Parts of the time that is left, of which reading and asking may take one each for every combination.
_SHARES = 16
# Tokens that perplexity is of at least, and that methods are judged by at least.
_LEAST_SCORED, _LEAST_JUDGED = 64, 64
# What the questions cost: prompts as long as the workload's, and short texts of so many tokens.
_ASKED_PROMPTS, _ASKED_READ, _ASKED_TOKENS = 7, 64, 24


@dataclass(frozen=True)
class Deadline:
    """When measuring must end.

    Args:
        at: on the clock of ``time.monotonic``; None: never.
    """

    at: float | None = None

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """So many seconds from now."""
        return cls(None if seconds is None else time.monotonic() + seconds)

    @property
    def left(self) -> float | None:
        """Seconds that are left, 0 at least; None without a limit."""
        return None if self.at is None else max(0.0, self.at - time.monotonic())

    def part(self, share: float) -> Deadline:
        """The end of a share of what is left."""
        return self if self.left is None else Deadline(time.monotonic() + share * self.left)

    def earlier(self, seconds: float) -> Deadline:
        """So many seconds before it."""
        return self if self.at is None else Deadline(self.at - seconds)

    def check(self) -> None:
        """Raises TimeIsUp when it is."""
        if self.left == 0:
            raise TimeIsUp


@dataclass(frozen=True)
class Effort:
    """How much is measured of the unchanged model and of each combination.

    Args:
        context, scored, segments: how `hasten.runtime.quality.perplexity` reads the text.
        questions: whether numbers hidden in a text, lists and questions are asked too.
        judged: tokens that methods may run the model on to choose their settings.
        runs, warmup: repetitions that are timed, and those before them.
    """

    context: int
    scored: int
    segments: int
    questions: bool = True
    judged: int = 512
    runs: int = 3
    warmup: int = 1

    def seconds_of(self, once: float) -> float:
        """How long timing takes where a repetition takes ``once``."""
        return once * (self.runs + self.warmup)

    @property
    def reading(self) -> dict[str, int]:
        """What `hasten.runtime.quality.perplexity` takes."""
        return {"context": self.context, "scored": self.scored, "segments": self.segments}

    @property
    def quality(self) -> str:
        """What perplexities must have in common to be compared, in words that `of_quality` reads."""
        asked = "questions" if self.questions else "no questions"
        return f"{self.segments} x {self.scored} tokens after {self.context}, {asked}, methods by {self.judged}"

    def of_quality(self, words: str) -> Effort:
        """Itself, with quality as another run had it; as it is where ``words`` are none of `quality`."""
        found = re.fullmatch(r"(\d+) x (\d+) tokens after (\d+), (no )?questions, methods by (\d+)", words)
        if found is None:
            return self
        segments, scored, context, none, judged = found.groups()
        return replace(
            self, segments=int(segments), scored=int(scored), context=int(context), questions=none is None,
            judged=int(judged),
        )  # fmt: skip


@dataclass(frozen=True)
class Prepared:
    """What is measured, and on what.

    Args:
        settings: as asked for.
        loaded: the network and its tokenizer.
        base: the unchanged model.
        tokens: of the text that quality is measured on.
        ids: (batch, prompt) prompts, out of that text.
        effort: how much is measured.
        notes: what the report should say.
        packed: whether weights are as the model's file packs them.
    """

    settings: Settings
    loaded: Loaded
    base: LanguageModel
    tokens: tuple[int, ...]
    ids: torch.Tensor
    effort: Effort
    notes: tuple[str, ...] = ()
    packed: bool = False

    def told(self) -> dict[str, Any]:
        """What a result says of it."""
        s, loaded = self.settings, self.loaded
        return {
            "model": loaded.name,
            "source": loaded.source,
            "fingerprint": loaded.fingerprint,
            "prompt": s.prompt,
            "new_tokens": s.new_tokens,
            "batch": s.batch,
            "text": s.text_name,
            "packed": self.packed,
        }

    @property
    def identity(self) -> dict[str, str]:
        """What a study must be of to be gone on with."""
        s = self.settings
        text = hashlib.sha256(json.dumps(self.tokens[:65536]).encode()).hexdigest()[:16]
        whole = whole_effort(s, int(self.base.config.max_position_embeddings))
        shorter = {} if self.effort.quality == whole.quality else {READ: self.effort.quality}
        return shorter | {
            "model": self.loaded.fingerprint,
            "workload": f"prompt {s.prompt}, new tokens {s.new_tokens}, batch {s.batch}",
            "quality text": text,
            "quality floor": repr(s.floor),
            "threads": str(torch.get_num_threads()),
            **({} if s.device == "cpu" else {"device": s.device}),
            **({"weights": "as packed"} if self.packed else {}),
        }


def prepare(
    source: str | Path, settings: Settings, *, progress: Callable[[str], None] = lambda message: None
) -> Prepared:
    """Loads the model and the text that it is judged by.

    Args:
        source: what `hasten.models.load_network` takes.
        settings: the workload and the text.
        progress: told what is being loaded.

    Raises:
        HastenError: the model cannot be loaded, or the text or the model's positions are too short.
    """
    loaded, packed = load_base(source, progress=progress)
    s = settings
    base = placed(LanguageModel(loaded.network, name=loaded.name), s.device)
    base.check_fits(s.prompt + s.new_tokens + 1)
    text = s.text
    if not text:
        text = default_text()
    tokens = loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    effort = whole_effort(s, int(base.config.max_position_embeddings))
    need = s.prompt * s.batch
    least = max(need, effort.context + effort.scored + 1)
    if len(tokens) < least:
        raise HastenError(
            f"the text has {len(tokens)} tokens, prompts and quality need {least}: give a longer text file"
        )
    slow = base.why_not_compiled
    notes: tuple[str, ...] = (f"steps run in plain torch, slower: {slow}",) if slow else ()
    if packed:
        notes += ("its weights stay as its file packs them: in fp32 they would take too much of this machine's memory",)
    ids = torch.tensor(tokens[:need]).reshape(s.batch, s.prompt)
    if not slow:
        progress("laying out its weights")  # 12 s for 8 billion packed ones: not to be timed as the first prompt's
        base.session(s.batch, s.prompt + s.new_tokens + 1)
    return Prepared(s, loaded, base, tuple(tokens), ids, effort, notes, packed)


def whole_effort(settings: Settings, positions: int) -> Effort:
    """All that is measured where time is not short."""
    reading = reading_of(settings.prompt, positions)
    return Effort(reading["context"], reading["scored"], reading["segments"], runs=settings.runs)


def within(prepared: Prepared, seconds: float | None, prefill: float, decode: float, kept: str = "") -> Prepared:
    """With as much effort as the time allows at the model's speed.

    Quality is read at fewer positions where it would take more than a sixteenth of the time, and the questions are
    left out where they would; speed is measured fewer times.

    Args:
        prepared: with all effort.
        seconds: that are left; None without a limit.
        prefill, decode: seconds that the unchanged model took for the prompt and for the new tokens.
        kept: `Effort.quality` of what an earlier run measured, "" for none: the same is read again.
    """
    if seconds is None:
        return replace(prepared, effort=prepared.effort.of_quality(kept))
    s, effort, share = prepared.settings, prepared.effort, seconds / _SHARES
    rate, step = s.batch * s.prompt / prefill, decode / s.new_tokens
    once = prefill + decode
    runs, warmup = (s.runs, 1) if (s.runs + 1) * once <= 2 * share else (1, 1) if 2 * once <= 4 * share else (1, 0)
    effort = replace(effort, runs=runs, warmup=warmup)
    if kept:
        return replace(prepared, effort=effort.of_quality(kept))

    def reading(one: Effort) -> float:
        pieces = -(-(one.scored - 1) // MOST_NEW)
        return one.segments * one.context / rate + pieces * max(step, one.segments * MOST_NEW / rate)

    while reading(effort) > share and (fewer := _shorter(effort)) is not None:
        effort = fewer
    asking = _ASKED_PROMPTS * s.prompt / rate + _ASKED_READ * max(step, _ASKED_TOKENS / rate)
    judged = effort.judged
    while judged > _LEAST_JUDGED and judged / rate > share:
        judged //= 2
    effort = replace(effort, questions=asking <= share, judged=judged)
    notes = list(prepared.notes)
    whole = prepared.effort
    if effort.reading != whole.reading or not effort.questions:
        fewer_read = effort.segments * effort.scored
        asked = "" if effort.questions else ", and no questions are asked"
        notes.append(
            f"the budget is short for this model: quality is perplexity on {fewer_read} tokens"
            f" (of {whole.segments * whole.scored}){asked}"
        )
    return replace(prepared, effort=effort, notes=tuple(notes))


def _shorter(effort: Effort) -> Effort | None:
    """The same with about half of the reading: fewer places of the text first; None where it is short already."""
    if effort.segments > 1:
        return replace(effort, segments=effort.segments // 2)
    if effort.scored > _LEAST_SCORED:
        return replace(effort, scored=max(_LEAST_SCORED, effort.scored // 2), context=max(1, effort.context // 2))
    return None


def reading_of(prompt: int, positions: int) -> dict[str, int]:
    """How `perplexity` reads: about 1500 scored tokens at the positions that the workload's prompt has."""
    segments = min(6, max(2, 3072 // prompt))
    scored = min(1536 // segments, positions // 2)
    context = min(max(256, prompt - scored), positions - scored)
    return {"context": context, "scored": scored, "segments": segments}
