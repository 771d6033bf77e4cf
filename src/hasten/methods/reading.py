"""What methods share that say which cached tokens a step reads: a model takes one of them."""

from __future__ import annotations

from typing import Any, ClassVar

from hasten.methods.described_cache import cache_of, keeps_keys
from hasten.methods.method import Method
from hasten.runtime.language_model import LanguageModel
from hasten.workload.einsum import Workload


class Reading(Method):
    """A rule for what is read of a cache that has none yet."""

    kind: ClassVar[str] = "window"

    def why_not(self, model: Any) -> str | None:
        if not isinstance(model, LanguageModel):
            return "it is not a language model with a cache"
        if model.cache.window is not None:
            return "it has a window already"
        return "it chooses what it reads already" if model.cache.policy is not None else None

    def why_not_described(self, workload: Workload) -> str | None:
        if not keeps_keys(workload):
            return "it keeps no keys and values from step to step"
        if cache_of(workload).window is not None:
            return "it has a window already"
        return "it chooses what it reads already" if "policy" in workload.attributes else None
