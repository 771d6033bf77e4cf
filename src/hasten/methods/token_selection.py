"""Attention to a part of the cached tokens, chosen by what they were worth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from hasten.methods.reading import Reading
from hasten.runtime import policies
from hasten.runtime.tracing import with_policy
from hasten.workload.einsum import Workload


class _Selection(Reading):
    """A policy of `hasten.runtime.policies` as a method."""

    order: ClassVar[int] = 45

    @property
    def policy(self) -> policies.Policy:
        """What it puts into the cache."""
        raise NotImplementedError

    def apply(self, model: Any) -> Any:
        self.check(model)
        model.cache = replace(model.cache, policy=self.policy)
        return model

    def rewrite(self, workload: Workload) -> Workload:
        return with_policy(workload, self.policy)


@dataclass(frozen=True)
class BlockTopK(_Selection):
    """Reads the first block, the newest, and those whose mean key fits the query best, at every step.

    The whole cache stays in memory. The first layer reads everything.

    Args:
        top: blocks of 32 tokens chosen for each key-value head.
        local: newest blocks always read.
    """

    name: ClassVar[str] = "block-topk"
    source: ClassVar[str] = "Kinetics, arXiv 2506.05333"

    top: int = 24
    local: int = 4

    def __post_init__(self) -> None:
        _ = self.policy

    @property
    def title(self) -> str:
        return f"top {self.top}+{self.local} blocks"

    @property
    def policy(self) -> policies.BlockTopK:
        return policies.BlockTopK(self.top, self.local)

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        return [cls(12, 4), cls(24, 4)]


@dataclass(frozen=True)
class SnapKV(_Selection):
    """Keeps the tokens of a long prompt that its last ones attend to; the rest leave the cache.

    Args:
        capacity: tokens of the prompt that stay.
        window: last tokens, which vote and stay.
        kernel: neighbours that share a vote; wider than what is to be found again.
        pooling: how they share it, ``max`` or ``mean``.
    """

    name: ClassVar[str] = "snapkv"
    source: ClassVar[str] = "SnapKV, arXiv 2404.14469"

    capacity: int = 1024
    window: int = 16
    kernel: int = 7
    pooling: str = "max"

    def __post_init__(self) -> None:
        _ = self.policy

    @property
    def title(self) -> str:
        return f"SnapKV {self.capacity}"

    @property
    def policy(self) -> policies.SnapKV:
        return policies.SnapKV(self.capacity, self.window, self.kernel, self.pooling)

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        return [cls(256), cls(1024)]


@dataclass(frozen=True)
class SparseWindow(_Selection):
    """Reads the newest tokens and those that the last steps gave weight to, a fixed share of the cache.

    Steps run in plain torch, so it costs less memory traffic on paper and more time here. What it reads depends on
    every row that was computed, so drafts cannot be taken back: it does not go with them.

    Args:
        ratio: share of the cache that is read.
    """

    name: ClassVar[str] = "sparse-window"
    conflicts: ClassVar[tuple[str, ...]] = ("prompt-lookup",)
    untried: ClassVar[str] = "its steps run in plain torch: it saves traffic on paper and costs time here"
    source: ClassVar[str] = "ALISA, arXiv 2403.17312"

    ratio: float = 0.5

    def __post_init__(self) -> None:
        _ = self.policy

    @property
    def title(self) -> str:
        return f"sparse window {self.ratio:g}"

    @property
    def policy(self) -> policies.SparseWindow:
        return policies.SparseWindow(self.ratio)

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        return []
