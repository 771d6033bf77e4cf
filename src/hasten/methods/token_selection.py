"""Attention to a part of the cached tokens, chosen by what they were worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from hasten.methods.described_cache import appended
from hasten.methods.described_cache import own_windows as described_windows
from hasten.methods.reading import Reading
from hasten.models.decoder_form import own_windows
from hasten.runtime.policies import BlockTopKPolicy, Policy, SnapKVPolicy, SparseWindowPolicy
from hasten.runtime.tracing import with_policy
from hasten.workload.einsum import Workload


class PolicyMethod(Reading, Policy):
    """A policy of `hasten.runtime.policies` that is a method: applied, it stands in the cache's spec itself."""

    order: ClassVar[int] = 45

    def why_not(self, model: Any) -> str | None:
        reason = super().why_not(model)
        if reason is None and (self.drops or self.remembers) and own_windows(model.config, len(model.layers)):
            return "its layers attend to a window of their own"
        return reason

    def apply(self, model: Any) -> Any:
        self.check(model)
        model.cache = replace(model.cache, policy=self)
        return model

    def why_not_described(self, workload: Workload) -> str | None:
        reason = super().why_not_described(workload)
        if reason is None and (self.drops or self.remembers) and described_windows(workload):
            return "its layers attend to a window of their own"
        return reason

    def rewrite(self, workload: Workload) -> Workload:
        return with_policy(appended(workload), self)

    def reach(self, prompt: int) -> int | None:
        return self.budget(prompt)


@dataclass(frozen=True)
class BlockTopK(PolicyMethod, BlockTopKPolicy):
    """Reads the first block or some sinks, the newest, and those whose mean key fits the query best, at every step.

    The whole cache stays in memory. The first layer reads everything. Settings and defaults are those of
    `BlockTopKPolicy`.
    """

    name: ClassVar[str] = "block-topk"
    source: ClassVar[str] = "Kinetics, arXiv 2506.05333"

    @property
    def title(self) -> str:
        behind = "" if self.sinks is None else f" behind {self.sinks} sinks"
        return f"top {self.top}+{self.local} blocks{behind}"

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        return [cls(12, 4), cls(24, 4)]


@dataclass(frozen=True)
class SnapKV(PolicyMethod, SnapKVPolicy):
    """Keeps the tokens of a long prompt that its last ones attend to; the rest leave the cache.

    Settings and defaults are those of `SnapKVPolicy`.
    """

    name: ClassVar[str] = "snapkv"
    source: ClassVar[str] = "SnapKV, arXiv 2404.14469"

    @property
    def title(self) -> str:
        return f"SnapKV {self.capacity}"

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        return [cls(256), cls(1024)]


@dataclass(frozen=True)
class SparseWindow(PolicyMethod, SparseWindowPolicy):
    """Reads the newest tokens and those that the last steps gave weight to, a fixed share of the cache.

    Steps run in plain torch, so it costs less memory traffic on paper and more time here. What it reads depends on
    every row that was computed, so drafts cannot be taken back: it does not go with them. Settings and defaults are
    those of `SparseWindowPolicy`.
    """

    name: ClassVar[str] = "sparse-window"
    conflicts: ClassVar[tuple[str, ...]] = ("prompt-lookup",)
    untried: ClassVar[str] = "its steps run in plain torch: it saves traffic on paper and costs time here"
    source: ClassVar[str] = "ALISA, arXiv 2403.17312"

    @property
    def title(self) -> str:
        return f"sparse window {self.ratio:g}"

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        return []
