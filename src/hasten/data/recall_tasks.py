"""Generated tasks that ask a sequence model to pick, keep and repeat tokens."""

from __future__ import annotations

import torch
from torch import Tensor


def selective_copying(
    batch: int, *, noise: int = 64, tokens: int = 8, alphabet: int = 8, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens scattered among noise, to be repeated in order at the end (Mamba, arXiv 2312.00752, section 4.1.1).

    Args:
        batch: sequences.
        noise: positions that hold the tokens and otherwise noise.
        tokens: how many to remember.
        alphabet: kinds of token; the noise is ``alphabet``, the mark at which to answer ``alphabet + 1``.

    Returns:
        ids (batch, noise + tokens) and the answers for the last ``tokens`` positions (batch, tokens), int64.

    Raises:
        ValueError: more tokens than positions.
    """
    if tokens > noise:
        raise ValueError(f"{tokens} tokens do not fit into {noise} positions")
    answers = torch.randint(0, alphabet, (batch, tokens), generator=generator)
    places = torch.rand(batch, noise, generator=generator).argsort(1)[:, :tokens].sort(1).values
    ids = torch.full((batch, noise + tokens), alphabet)
    ids.scatter_(1, places, answers)
    ids[:, noise:] = alphabet + 1
    return ids, answers


def induction_heads(
    batch: int, *, length: int = 256, alphabet: int = 16, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """What stood behind the mark the first time? (Mamba, arXiv 2312.00752, section 4.1.2).

    Args:
        batch: sequences.
        length: of each; the mark stands once within and again at the end.
        alphabet: kinds of ordinary token; the mark is ``alphabet``.

    Returns:
        ids (batch, length) and the answer at the last position (batch), int64.

    Raises:
        ValueError: a length with no room for mark, answer and mark.
    """
    if length < 3:
        raise ValueError(f"a length of {length} has no room for mark, answer and mark: give at least 3")
    ids = torch.randint(0, alphabet, (batch, length), generator=generator)
    place = torch.randint(0, length - 2, (batch, 1), generator=generator)
    ids.scatter_(1, place, alphabet)
    ids[:, -1] = alphabet
    return ids, ids.gather(1, place + 1)[:, 0]
