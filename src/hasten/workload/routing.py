"""How many experts a batch of tokens hits: what a grouped product reads of its matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch

_ROUTED: ContextVar[tuple[int, float] | None] = ContextVar("routed", default=None)


def routed(tokens: int, share: float) -> AbstractContextManager[None]:
    """Within, each of ``tokens`` tokens chooses an expert with the probability ``share``: chosen over all, k/E.

    Descriptions of a model ask for it, and compiled programs do not: while torch compiles or exports, nothing is said.
    """
    return nullcontext() if torch.compiler.is_compiling() else _said(tokens, share)  # it follows no such variable


@contextmanager
def _said(tokens: int, share: float) -> Iterator[None]:
    token = _ROUTED.set((tokens, min(1.0, share)))
    try:
        yield
    finally:
        _ROUTED.reset(token)


def share_hit(share: float, tokens: int) -> float:
    """The share of experts that at least one of ``tokens`` tokens goes to, each of which goes to ``share`` of them."""
    return 1 - (1 - share) ** tokens


def distinct_experts(experts: int, rows: int) -> float:
    """Experts that at least one row goes to, as expected where all are chosen equally often; never more than rows.

    A token chooses k different ones of E, so that one of them is left out by all tokens with (1 - k/E)^tokens. Outside
    of `routed` every row is taken for one that chooses for itself among those that no other row has.

    >>> with routed(1, 8 / 256):
    ...     round(distinct_experts(256, 8), 3)
    8.0
    >>> with routed(4, 2 / 8):
    ...     round(distinct_experts(8, 8), 3)
    5.469
    """
    known = _ROUTED.get()
    if known is None:
        return float(min(experts, rows))
    tokens, share = known
    return min(experts * share_hit(share, tokens), float(rows))
