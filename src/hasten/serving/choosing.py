"""Choosing the next token of each of many answers from their logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from hasten.errors import HastenError
from hasten.serving.request import Constraint, Sampling

# Of a nucleus' candidates first those are sorted whose logits are this close to the largest: seldom more are needed.
_NEAR = 12.0


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
        self._added: Tensor | None = None
        self._seen: set[int] = set()
        if sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty:
            self._added = torch.zeros(vocabulary)
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
            logits += self._added
        if self._constraint is not None:
            self._constraint.restrict(logits)
            if float(logits.max()) == -math.inf:
                raise HastenError("no token may follow by the answer's grammar: ask for another format")

    def draw(self, logits: Tensor) -> int:
        """A token by chance, from logits (vocabulary) after `change`."""
        assert self._generator is not None
        values, ids = _kept(logits, self._sampling)
        until = torch.softmax(values.double(), 0).cumsum(0)
        point = torch.rand((), generator=self._generator, dtype=torch.float64) * until[-1]
        place = min(int(torch.searchsorted(until, point, right=True)), len(until) - 1)
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
    most, tokens = logits.max(-1)
    # A number that is none is the largest of its row.
    return tokens.tolist(), most.isnan().logical_not_().tolist()


def _kept(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Logits, by temperature, of the tokens that may be drawn, and their numbers; None: all of them.

    The rules follow each other as in transformers: temperature, top k, top p, min p.
    """
    values, ids = logits / sampling.temperature, None
    if 0 < sampling.top_k < len(values):
        least = values.topk(sampling.top_k).values[-1]
        ids = (values >= least).nonzero()[:, 0]
        values = values[ids]
    if sampling.top_p < 1:
        values, places = _nucleus(values, sampling.top_p)
        ids = places if ids is None else ids[places]
    if sampling.min_p > 0:
        places = (values >= values.max() + math.log(sampling.min_p)).nonzero()[:, 0]
        values, ids = values[places], places if ids is None else ids[places]
    return values, ids


def _nucleus(values: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest likeliest values that are ``top_p`` likely together, likeliest first, and their places."""
    total = values.double().logsumexp(0)
    for near in (_NEAR, math.inf):
        places = (values >= values.max() - near).nonzero()[:, 0]
        ordered, order = values[places].sort(descending=True, stable=True)
        likely = (ordered.double() - total).exp()
        before = likely.cumsum(0) - likely
        if near == math.inf or float(likely.sum()) >= top_p:
            break
    count = max(1, int((before < top_p).sum()))
    return ordered[:count], places[order[:count]]


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
