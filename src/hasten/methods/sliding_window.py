"""Attention to the first tokens and the newest ones alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from hasten.errors import HastenError
from hasten.methods.described_cache import cache_of, with_cache
from hasten.methods.reading import Reading
from hasten.runtime.cache import CacheSpec
from hasten.runtime.language_model import LanguageModel
from hasten.workload.einsum import Workload


@dataclass(frozen=True)
class _Window(Reading):
    """What the windows share: they are settings of the cache.

    Args:
        window: newest tokens seen, the present one included.
        sinks: first tokens that stay visible.
    """

    order: ClassVar[int] = 40

    window: int = 256
    sinks: int = 4

    def __post_init__(self) -> None:
        if self.window < 1 or self.sinks < 0:
            raise HastenError("a sliding window takes window >= 1 and sinks >= 0")

    def _narrowed(self, spec: CacheSpec, layers: Callable[[], int]) -> CacheSpec:
        """The cache with the window; ``layers`` counts the model's, where the window asks."""
        return replace(spec, window=self.window, sinks=self.sinks)

    def reach(self, prompt: int) -> int | None:
        return min(prompt, self.window + self.sinks)

    def apply(self, model: Any) -> Any:
        self.check(model)
        model.cache = self._narrowed(model.cache, lambda: len(model.layers))
        return model

    def rewrite(self, workload: Workload) -> Workload:
        numbers = [int(name.split(".")[1]) for name in workload.state if name.startswith("cache.")]
        spec = self._narrowed(cache_of(workload), lambda: 1 + max(numbers))
        return with_cache(workload, spec)

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        return [cls(256, 4)]


@dataclass(frozen=True)
class SlidingWindow(_Window):
    """A window of the newest tokens beside a few attention sinks at the start (StreamingLLM).

    Keys keep the rotation of their own positions. The cache is a ring: memory stops growing.

    Args:
        window: tokens seen, the present one included.
        sinks: first tokens that stay visible.
    """

    name: ClassVar[str] = "sliding-window"
    spellings: ClassVar[Mapping[str, Mapping[str, Any]]] = {"window": {}}
    source: ClassVar[str] = "StreamingLLM, arXiv 2309.17453"

    @property
    def title(self) -> str:
        return f"window {self.window}+{self.sinks}"


@dataclass(frozen=True)
class LambdaWindow(_Window):
    """A window with attention sinks whose positions count within the cache, for texts without end.

    No distance is longer than sinks + window - 1, so a model never meets one that it was not trained on. Memory is
    constant.

    Args:
        window: newest tokens seen, the present one included.
        sinks: first tokens that stay visible.
    """

    name: ClassVar[str] = "lambda-window"
    untried: ClassVar[str] = "for texts beyond the trained positions; within them it is a window that runs slower"
    source: ClassVar[str] = "AccLLM, arXiv 2505.03745"

    window: int = 1020

    @property
    def title(self) -> str:
        return f"capped window {self.window}+{self.sinks}"

    def _narrowed(self, spec: CacheSpec, layers: Callable[[], int]) -> CacheSpec:
        return replace(super()._narrowed(spec, layers), capped=True)

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        """None, see ``untried``."""
        return []


@dataclass(frozen=True)
class HybridWindow(_Window):
    """A window in the outer layers, everything in the middle ones (LongGen).

    The cache of the outer layers stops growing; the middle third still reaches every token. Made for models trained so:
    on others it is what the paper calls inference-only sparsity.

    Args:
        window: tokens that an outer layer sees, the present one included.
        sinks: first tokens that stay visible.
        full_layers: layers without a window; empty: the middle third.
    """

    name: ClassVar[str] = "hybrid-window"
    layerwise: ClassVar[bool] = True
    source: ClassVar[str] = "LongGen, arXiv 2410.01485"

    full_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.full_layers) != sorted(set(self.full_layers)) or min(self.full_layers, default=0) < 0:
            raise HastenError("full layers are different numbers from 0 up, rising")

    @property
    def title(self) -> str:
        which = f"{len(self.full_layers)} layers full" if self.full_layers else "middle third full"
        return f"window {self.window}+{self.sinks}, {which}"

    def _narrowed(self, spec: CacheSpec, layers: Callable[[], int]) -> CacheSpec:
        return replace(super()._narrowed(spec, layers), full_layers=self.full_layers or middle_third(layers()))

    def why_not(self, model: Any) -> str | None:
        if isinstance(model, LanguageModel) and max(self.full_layers, default=0) >= len(model.layers):
            return f"it has {len(model.layers)} layers"
        return super().why_not(model)


def middle_third(layers: int) -> tuple[int, ...]:
    """The layers that keep full attention (arXiv 2410.01485, section 3): at least one."""
    count = max(1, round(layers * 0.375))
    first = (layers - count) // 2
    return tuple(range(first, first + count))
