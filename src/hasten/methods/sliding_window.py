"""Attention to the first tokens and the newest ones alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from hasten.errors import HastenError
from hasten.methods.editing import cache_of, with_cache
from hasten.methods.method import Method
from hasten.runtime.language_model import LanguageModel
from hasten.workload.einsum import Workload


@dataclass(frozen=True)
class SlidingWindow(Method):
    """A window of the newest tokens beside a few attention sinks at the start (StreamingLLM).

    Keys keep the rotation of their own positions. The cache is a ring: memory stops growing.

    Args:
        window: tokens seen, the present one included.
        sinks: first tokens that stay visible.
    """

    name: ClassVar[str] = "sliding-window"
    kind: ClassVar[str] = "window"
    order: ClassVar[int] = 40
    source: ClassVar[str] = "StreamingLLM, arXiv 2309.17453"

    window: int = 256
    sinks: int = 4

    def __post_init__(self) -> None:
        if self.window < 1 or self.sinks < 0:
            raise HastenError("a sliding window takes window >= 1 and sinks >= 0")

    @property
    def title(self) -> str:
        return f"window {self.window}+{self.sinks}"

    def why_not(self, model: Any) -> str | None:
        if not isinstance(model, LanguageModel):
            return "it is not a language model with a cache"
        return "it has a window already" if model.cache.window is not None else None

    def apply(self, model: Any) -> Any:
        self.check(model)
        model.cache = replace(model.cache, window=self.window, sinks=self.sinks)
        return model

    def rewrite(self, workload: Workload) -> Workload:
        return with_cache(workload, replace(cache_of(workload), window=self.window, sinks=self.sinks))

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        return [cls(256, 4)]
