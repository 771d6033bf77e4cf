"""Speculative decoding with drafts copied from the text so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from hasten.methods.described_cache import appended, keeps_keys, other_state
from hasten.methods.method import Context, Method
from hasten.runtime.decoding.lookup import Index, PromptLookup
from hasten.runtime.language_model import LanguageModel
from hasten.runtime.tracing import with_drafts
from hasten.workload.einsum import Workload

# New tokens below which `hasten tune` does not try drafts.
_LEAST_NEW = 4


@dataclass(frozen=True)
class LookupDecoding(Method):
    """Prompt lookup: greedy output stays what it is, several tokens a step where a draft is right.

    Args:
        ngram: longest match tried.
        draft: tokens drafted at most.
        accepted: drafted tokens that a step is expected to keep, for predictions (`acceptance` measures it).
        drafted: tokens that a step is expected to draft, likewise; None: as many as it may.
    """

    name: ClassVar[str] = "prompt-lookup"
    kind: ClassVar[str] = "drafts"
    order: ClassVar[int] = 60
    exact: ClassVar[bool] = True
    source: ClassVar[str] = "speculative decoding, arXiv 2211.17192, with drafts from the prompt"

    ngram: int = 3
    draft: int = 4
    accepted: float = 0.0
    drafted: float | None = None

    def __post_init__(self) -> None:
        self._lookup()

    def _lookup(self) -> PromptLookup:
        return PromptLookup(self.ngram, self.draft, self.accepted, self.drafted)

    @property
    def title(self) -> str:
        return f"prompt lookup {self.draft}"

    def why_not(self, model: Any) -> str | None:
        if not isinstance(model, LanguageModel):
            return "it is not a language model"
        return "it drafts already" if model.lookup is not None else None

    def apply(self, model: Any) -> Any:
        self.check(model)
        model.lookup = self._lookup()
        return model

    def why_not_described(self, workload: Workload) -> str | None:
        if not any(p.name == "decode" for p in workload.phases):
            return "it makes no new tokens"
        if int(workload.attributes.get("rows", 1)) > 1:
            return "it drafts already"
        if not keeps_keys(workload) or other_state(workload):
            return "its state cannot take drafts back"
        return None

    def remarks(self, workload: Workload) -> Sequence[str]:
        if self.accepted:
            return ()
        kept = f"{self.name}:accepted=1.5"
        return (f"{self.title} is priced as if no draft were right: say how many a step keeps of your text, as {kept}",)

    def rewrite(self, workload: Workload) -> Workload:
        return with_drafts(appended(workload), self._lookup())

    @classmethod
    def variants(cls, model: Any) -> list[Self]:
        return [cls(3, 4)]

    def fitted(self, context: Context) -> Self:
        """With the tokens that a step drafts and keeps where the model goes on as it did, unchanged."""
        lookup = PromptLookup(self.ngram, self.draft)
        steps = replayed(context.prompts[0].tolist(), context.continuation, lookup)
        if not steps:
            return self
        drafted, kept = (sum(numbers) / len(steps) for numbers in zip(*steps))
        return replace(self, accepted=round(kept, 3), drafted=round(drafted, 3))

    def why_not_tried(self, context: Context) -> str | None:
        return "too few new tokens to draft" if context.new_tokens < _LEAST_NEW else None


def acceptance(prompt: Sequence[int], continuation: Sequence[int], lookup: PromptLookup) -> float:
    """Drafted tokens kept a step when greedy decoding makes ``continuation``: replayed, not estimated."""
    steps = replayed(prompt, continuation, lookup)
    return sum(kept for _, kept in steps) / len(steps) if steps else 0.0


def replayed(prompt: Sequence[int], continuation: Sequence[int], lookup: PromptLookup) -> list[tuple[int, int]]:
    """The tokens drafted and kept in each step of greedy decoding that makes ``continuation``."""
    index, at, steps = Index(lookup, prompt), 1, []
    index.extend(continuation[:1])
    while at < len(continuation):
        draft = index.draft(len(continuation) - at - 1)
        kept = 0
        while kept < len(draft) and draft[kept] == continuation[at + kept]:
            kept += 1
        index.extend(continuation[at : at + kept + 1])
        at += kept + 1
        steps.append((len(draft), kept))
    return steps
