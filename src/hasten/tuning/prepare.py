"""The first step of tuning: the model, the text that it is judged by, and how long measuring may take."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from hasten.data.text import default_text
from hasten.errors import HastenError
from hasten.models.loading.loaded import Loaded
from hasten.models.loading.network import load_network
from hasten.processes import TimeIsUp
from hasten.runtime import LanguageModel
from hasten.tuning.settings import Settings


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

    def check(self) -> None:
        """Raises TimeIsUp when it is."""
        if self.left == 0:
            raise TimeIsUp


@dataclass(frozen=True)
class Prepared:
    """What is measured, and on what.

    Args:
        settings: as asked for.
        loaded: the network and its tokenizer.
        base: the unchanged model.
        tokens: of the text that quality is measured on.
        ids: (batch, prompt) prompts, out of that text.
        reading: how `hasten.runtime.quality.perplexity` reads it.
        notes: what the report should say.
    """

    settings: Settings
    loaded: Loaded
    base: LanguageModel
    tokens: tuple[int, ...]
    ids: torch.Tensor
    reading: Mapping[str, int]
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> dict[str, str]:
        """What a study must be of to be gone on with."""
        s = self.settings
        text = hashlib.sha256(json.dumps(self.tokens[:65536]).encode()).hexdigest()[:16]
        return {
            "model": self.loaded.fingerprint,
            "workload": f"prompt {s.prompt}, new tokens {s.new_tokens}, batch {s.batch}",
            "quality text": text,
            "quality floor": repr(s.floor),
            "threads": str(torch.get_num_threads()),
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
    loaded = load_network(source, progress=progress)
    s = settings
    base = LanguageModel(loaded.network, name=loaded.name)
    base.check_fits(s.prompt + s.new_tokens + 1)
    text = s.text
    if not text:
        text = default_text()
    tokens = loaded.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    reading = reading_of(s.prompt, int(base.config.max_position_embeddings))
    need = s.prompt * s.batch
    least = max(need, reading["context"] + reading["scored"] + 1)
    if len(tokens) < least:
        raise HastenError(
            f"the text has {len(tokens)} tokens, prompts and quality need {least}: give a longer text file"
        )
    slow = base.why_not_compiled
    notes = (f"steps run in plain torch, slower: {slow}",) if slow else ()
    ids = torch.tensor(tokens[:need]).reshape(s.batch, s.prompt)
    return Prepared(s, loaded, base, tuple(tokens), ids, reading, notes)


def reading_of(prompt: int, positions: int) -> dict[str, int]:
    """How `perplexity` reads: about 1500 scored tokens at the positions that the workload's prompt has."""
    segments = min(6, max(2, 3072 // prompt))
    scored = min(1536 // segments, positions // 2)
    context = min(max(256, prompt - scored), positions - scored)
    return {"context": context, "scored": scored, "segments": segments}
