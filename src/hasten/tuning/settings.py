"""What a tuning run is asked for, and who is told how it goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from hasten.errors import HastenError
from hasten.tuning.outcome import WANTED, Combination, Wanted

Reference = Literal["transformers", "llama.cpp", "none"]
REFERENCES: tuple[Reference, ...] = get_args(Reference)


class Reporter(Protocol):
    """Who is told how a run goes."""

    def stage(self, text: str) -> None:
        """A new part of the run begins."""

    def advance(self, done: float, total: float) -> None:
        """So much of the part is done."""

    def measured(self, combination: Combination) -> None:
        """A combination has its figures."""


class Silent:
    """A reporter that says nothing."""

    def stage(self, text: str) -> None: ...

    def advance(self, done: float, total: float) -> None: ...

    def measured(self, combination: Combination) -> None: ...


@dataclass(frozen=True)
class Settings:
    """What a run is asked for.

    Args:
        prompt, new_tokens, batch: the workload to make fast.
        text: English text that quality is measured on and prompts are taken from.
        text_name: where the text is from.
        floor: perplexity may be worse than the unchanged model's by this share.
        seconds: budget of all measuring, the unchanged model's included; None without. A run ends at most one timed
            repetition, or one question of quality, after it.
        trials: combinations to measure at most; None without.
        runs: timed repetitions of each; fewer where the model is slow for the budget.
        wanted: what counts as fast.
        reference: what the unchanged model is measured beside: ``transformers``, ``llama.cpp`` (of a GGUF file),
            ``none``; None: transformers where the budget allows for it.
        device: ``cpu``, or ``cuda`` for the GPU that torch sees, with weights and cache in bf16.
        quality: ``file.py:score``, a function of a network that gives a number, more is better; what a network is then
            judged by, in place of how far its answers move. The file is run.
        batch_given: examples of a network's call; what its inputs have when None.
    """

    prompt: int = 512
    new_tokens: int = 64
    batch: int = 1
    text: str = ""
    text_name: str = "pydoc_data.topics"
    floor: float = 0.03
    seconds: float | None = 180.0
    trials: int | None = None
    runs: int = 3
    wanted: Wanted = "total"
    reference: Reference | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    quality: str = ""
    batch_given: int | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "new_tokens", "batch", "runs"):
            if getattr(self, name) < 1:
                raise HastenError(f"{name.replace('_', '-')} must be at least 1")
        if self.batch_given is not None and self.batch_given < 1:
            raise HastenError("batch must be at least 1")
        if not 0 <= self.floor < 100:
            raise HastenError("the quality floor is a share such as 0.03, not negative")
        endless = self.seconds is not None and not (0 < self.seconds < math.inf)  # so is what is no number
        if endless or (self.trials is not None and self.trials < 1):
            raise HastenError("the budget must be positive: give seconds above 0, or at least one trial")
        if self.wanted not in WANTED:
            raise HastenError(f"fast for {self.wanted!r} is unknown: one of {', '.join(WANTED)}")
        if self.reference not in (None, *REFERENCES):
            raise HastenError(f"reference {self.reference!r} is unknown: one of {', '.join(REFERENCES)}")
        if self.device not in ("cpu", "cuda"):
            raise HastenError(f"device {self.device!r} is unknown: cpu or cuda")
        if self.wanted == "throughput" and self.batch < 2:
            raise HastenError("throughput is of several sequences at once: give a batch of 2 or more")
