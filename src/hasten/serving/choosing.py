"""Choosing the next token of each of many answers from their logits.

In numpy: a row of logits is too little work to be worth the threads that torch would wake for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from hasten.errors import HastenError
from hasten.serving.request import Constraint, Sampling

# Likeliest tokens are first looked for among those that are at least this likely beside the very likeliest.
_NEAR = (1e-2, 1e-4, 0.0)
_PART = 256


class TokenChooser:
    """Chooses the tokens of one answer.

    Args:
        sampling: how.
        prompt: token numbers.
        vocabulary: size of the logits.
        constraint: what may stand next, or None.
        positions: tokens that prompt and answer have together at most.

    Raises:
        HastenError: a setting that says nothing, such as a negative temperature, or a bias of an unknown token.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt: Sequence[int],
        vocabulary: int,
        constraint: Constraint | None = None,
        positions: int | None = None,
    ) -> None:
        _check(sampling, vocabulary)
        self._sampling, self._constraint = sampling, constraint
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed % (1 << 63))
        # What is added to each logit: biases, less the penalties of tokens that the answer has.
        self._added: NDArray[np.float32] | None = None
        self._seen: set[int] = set()
        if sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty:
            self._added = np.zeros(vocabulary, np.float32)
            for token, bias in sampling.logit_bias.items():
                self._added[token] = bias
        self._repeated: RepetitionPenaltyLogitsProcessor | None = None
        if sampling.repetition_penalty != 1:
            self._repeated = RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))
            self._text = torch.zeros(1, max(positions or 0, len(prompt) + 64), dtype=torch.int64)
            self._text[0, : len(prompt)] = torch.tensor(list(prompt))
            self._length = len(prompt)

    @property
    def changes(self) -> bool:
        """Whether logits are changed before the likeliest is known."""
        return self._added is not None or self._repeated is not None or self._constraint is not None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self._generator is None

    def change(self, logits: Tensor) -> None:
        """Penalties, biases and the constraint, on logits (vocabulary) in place.

        Raises:
            HastenError: no token may follow.
        """
        if self._repeated is not None:
            logits.copy_(self._repeated(self._text[:, : self._length], logits[None])[0])
        if self._added is not None:
            row = logits.numpy()
            row += self._added
        if self._constraint is not None:
            self._constraint.restrict(logits)
            if logits.numpy().max() == -math.inf:
                raise HastenError("no token may follow by the answer's grammar: ask for another format")

    def draw(self, logits: Tensor) -> int:
        """A token by chance, from logits (vocabulary) after `change`."""
        assert self._generator is not None
        weights, ids = _kept(logits.numpy(), self._sampling)
        place = _place(weights, float(torch.rand((), generator=self._generator, dtype=torch.float64)))
        return place if ids is None else int(ids[place])

    def accept(self, token: int) -> None:
        """Enters the token that was chosen."""
        sampling = self._sampling
        if self._added is not None:
            first = token not in self._seen
            self._added[token] -= sampling.frequency_penalty + (sampling.presence_penalty if first else 0.0)
            self._seen.add(token)
        if self._repeated is not None:
            if self._length == self._text.shape[1]:
                self._text = torch.cat((self._text, torch.zeros_like(self._text)), 1)
            self._text[0, self._length] = token
            self._length += 1
        if self._constraint is not None:
            self._constraint.accept(token)


def likeliest(logits: Tensor) -> tuple[list[int], list[bool]]:
    """Of each row (rows, vocabulary) the token with the largest logit, and whether the row is all numbers."""
    rows = logits.numpy()
    tokens = rows.argmax(-1)
    # What is no number is taken for the largest.
    most = np.take_along_axis(rows, tokens[:, None], -1)[:, 0]
    return tokens.tolist(), (~np.isnan(most)).tolist()


def total_likelihood(logits: NDArray[np.float32]) -> float:
    """What logits (vocabulary) less it are log-probabilities."""
    most = float(logits.max())
    return most + math.log(float(np.exp(logits - most).sum(dtype=np.float64)))


def _kept(logits: NDArray[np.float32], sampling: Sampling) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """How likely the tokens that may be drawn are beside the likeliest, and their numbers; None: all of them.

    The rules follow each other as in transformers: temperature, top k, top p, min p.
    """
    values = logits / np.float32(sampling.temperature)
    weights = np.exp(values - values.max())
    ids: NDArray[np.int64] | None = None
    if 0 < sampling.top_k < len(weights):
        ids = _top(weights, sampling.top_k)
        weights = weights[ids]
    if sampling.top_p < 1:
        places = _nucleus(weights, sampling.top_p)
        weights, ids = weights[places], places if ids is None else ids[places]
    if sampling.min_p > 0:
        places = np.flatnonzero(weights >= np.float32(sampling.min_p))
        weights, ids = weights[places], places if ids is None else ids[places]
    return weights, ids


def _place(weights: NDArray[np.float32], share: float) -> int:
    """Where the sum of weights, from the first on, reaches this share of all."""
    # First within what part, then where in it: a running sum is twenty times as slow as plain ones.
    starts = np.arange(0, len(weights), _PART)
    until = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
    point = share * until[-1]
    part = min(int(until.searchsorted(point, side="right")), len(until) - 1)
    inner = weights[part * _PART : (part + 1) * _PART].cumsum(dtype=np.float64)
    left = point - (until[part - 1] if part else 0.0)
    # Rounding may leave a little more than the part has: its last token that may be drawn takes it.
    place = min(int(inner.searchsorted(left, side="right")), int(inner.searchsorted(inner[-1])))
    return part * _PART + place


def _top(weights: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places of the largest so many, and of those as large as the last of them."""
    for near in _NEAR:
        candidates = weights[weights >= near]
        if len(candidates) >= count:
            break
    return np.flatnonzero(weights >= np.partition(candidates, len(candidates) - count)[len(candidates) - count])


def _nucleus(weights: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """Places of the fewest likeliest that are ``top_p`` likely together, likeliest first."""
    wanted = top_p * float(weights.sum(dtype=np.float64))
    for near in _NEAR:
        places = np.flatnonzero(weights >= near)
        if float(weights[places].sum(dtype=np.float64)) >= wanted:
            break
    order = places[np.argsort(-weights[places], kind="stable")]
    ordered = weights[order].astype(np.float64)
    before = ordered.cumsum() - ordered
    return order[: max(1, int((before < wanted).sum()))]


def _check(sampling: Sampling, vocabulary: int) -> None:
    allowed = {
        "temperature": (0.0, math.inf),
        "top_p": (0.0, 1.0),
        "min_p": (0.0, 1.0),
        "top_k": (0, math.inf),
        "presence_penalty": (-math.inf, math.inf),
        "frequency_penalty": (-math.inf, math.inf),
    }
    for name, (least, most) in allowed.items():
        value = getattr(sampling, name)
        if not math.isfinite(value) or not least <= value <= most:
            raise HastenError(f"{name} is {value}: give a number from {least:g} to {most:g}")
    if not 0 < sampling.repetition_penalty < math.inf:
        raise HastenError(f"repetition_penalty is {sampling.repetition_penalty}: give a number above 0")
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < vocabulary or math.isnan(bias):
            raise HastenError(
                f"logit_bias of token {token} is {bias}: tokens are 0 to {vocabulary - 1}, biases numbers"
            )
