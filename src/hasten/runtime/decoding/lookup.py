"""Drafts for speculative decoding, copied from the text so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hasten.errors import HastenError
from hasten.kernels.kv_cache import MOST_NEW


@dataclass(frozen=True)
class PromptLookup:
    """Prompt lookup decoding: what followed the last words the previous time is the draft.

    The draft is verified by the model itself in one step (Leviathan et al., arXiv 2211.17192, with a
    deterministic draft), so greedy output is the model's own.

    Args:
        ngram: longest match that is tried; shorter ones follow, down to one token.
        draft: tokens drafted at most.
        accepted: drafted tokens that a step is expected to keep; only descriptions of the work use it.
        drafted: tokens that a step is expected to draft, likewise; None: as many as it may.
    """

    ngram: int = 3
    draft: int = 8
    accepted: float = 0.0
    drafted: float | None = None

    def __post_init__(self) -> None:
        if self.ngram < 1 or not 1 <= self.draft < MOST_NEW:
            raise HastenError(f"prompt lookup takes ngram >= 1 and 1 <= draft < {MOST_NEW}")
        if not 0 <= self.accepted <= self.draft:
            raise HastenError(f"a step keeps 0 to {self.draft} drafted tokens, not {self.accepted}")
        if self.drafted is not None and not 0 <= self.drafted <= self.draft:
            raise HastenError(f"a step drafts 0 to {self.draft} tokens, not {self.drafted}")

    @property
    def rows(self) -> int:
        """Tokens that a step is expected to read."""
        return 1 + (self.draft if self.drafted is None else round(self.drafted))


class Index:
    """Where every n-gram of a growing text ended last, so that a draft costs a few dictionary look-ups."""

    def __init__(self, lookup: PromptLookup, tokens: Sequence[int]) -> None:
        self._lookup = lookup
        self.tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """The text goes on with ``tokens``."""
        for token in tokens:
            # An n-gram is indexed once something follows it, so that it never finds itself.
            for size in range(1, min(self._lookup.ngram, len(self.tokens)) + 1):
                self._ends[tuple(self.tokens[-size:])] = len(self.tokens)
            self.tokens.append(token)

    def draft(self, most: int) -> list[int]:
        """Up to ``most`` tokens that followed the longest n-gram the text ends with."""
        most = min(most, self._lookup.draft)
        for size in range(min(self._lookup.ngram, len(self.tokens)), 0, -1):
            end = self._ends.get(tuple(self.tokens[-size:]))
            if end is not None and most > 0:
                return self.tokens[end : end + most]
        return []
