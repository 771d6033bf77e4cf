"""One request while the engine has it: its text so far, and what comes of each new token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.serving.answer import AnswerRecord
from hasten.serving.choosing import TokenChooser, total_likelihood
from hasten.serving.detokenizer import Detokenizer, StopTexts, TokenTexts
from hasten.serving.request import AnswerPart, Finish, Request, TokenLogprob


class RunningText:
    """A request's text and how far it has been read.

    Args:
        request: what was asked.
        record: where its parts go.
        chooser: of its tokens.
        tokenizer: of its text, or None: it then has none.
        token_texts: what tokens stand for, for log-probabilities.
        ends: tokens that end an answer.
        most_new: new tokens at most.
        number: rises from request to request.

    Attributes:
        tokens: prompt and answer so far.
        read: of these how many are in the cache.
        place: where the cache has it, while it runs; for whoever runs steps.
    """

    def __init__(
        self,
        request: Request,
        record: AnswerRecord,
        chooser: TokenChooser,
        *,
        tokenizer: Any,
        token_texts: TokenTexts,
        ends: Sequence[int],
        most_new: int,
        number: int,
    ) -> None:
        self.request, self.record, self.chooser = request, record, chooser
        self.most_new, self.number = most_new, number
        self.tokens = list(request.prompt)
        self.read = 0
        self.place: Any = None
        self._ends = frozenset(() if request.ignore_end else ends)
        self._token_texts = token_texts
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer)
        self._stops = StopTexts(request.stop)
        # Of the prompt's tokens, the first aside; there may be fewer while it is read.
        self._prompt_logprobs: list[TokenLogprob] = []

    @property
    def unread(self) -> int:
        """Tokens that are not in the cache yet; one while an answer is being made."""
        return len(self.tokens) - self.read

    @property
    def new(self) -> int:
        """Tokens made."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def wants_prompt(self) -> bool:
        """Whether each token of the prompt is to be told how likely it was: then all of it is computed."""
        asked = self.request.prompt_logprobs is not None
        return asked and len(self._prompt_logprobs) < len(self.request.prompt) - 1

    def read_prompt(self, start: int, logits: Tensor) -> None:
        """Logits (rows, vocabulary) of the tokens from place ``start`` on: how likely those behind them were."""
        count = self.request.prompt_logprobs
        assert count is not None
        for row, at in enumerate(range(start + 1, start + 1 + len(logits))):
            if at == len(self._prompt_logprobs) + 1 and at < len(self.request.prompt):
                self._prompt_logprobs.append(self.logprob(logits[row], self.tokens[at], count))

    def tell_prompt(self) -> None:
        """Once the prompt has been read: its log-probabilities are the reader's."""
        if self.request.prompt_logprobs is not None and not self.record.prompt_logprobs:
            text, raw = self._token_texts(self.tokens[0])
            first = TokenLogprob(self.tokens[0], text, raw, None)
            self.record.prompt_logprobs = (first, *self._prompt_logprobs)

    def logprob(self, logits: Tensor, token: int, alternatives: int) -> TokenLogprob:
        """How likely ``token`` is by unchanged logits (vocabulary), beside the likeliest ones."""
        total = total_likelihood(logits.numpy())
        if not math.isfinite(total):
            raise HastenError("the model's output is not a number: its weights or cache are damaged, load it again")
        top = []
        if alternatives:
            values, ids = logits.topk(min(alternatives, len(logits)))
            for value, other in zip((values - total).tolist(), ids.tolist(), strict=True):
                top.append((other, *self._token_texts(other), value))
        text, raw = self._token_texts(token)
        return TokenLogprob(token, text, raw, float(logits[token]) - total, tuple(top))

    def add(self, token: int, logprob: TokenLogprob | None) -> AnswerPart:
        """Enters a new token: the part of the answer that has come by it."""
        self.tokens.append(token)
        self.chooser.accept(token)
        finish: Finish | None = None
        if token in self._ends:
            finish = "stop"
            text = self._rest()
        else:
            shown = "" if self._detokenizer is None else self._detokenizer.add(token)
            text, stopped = self._stops.add(shown)
            if stopped:
                finish = "stop"
            elif self.new >= self.most_new:
                finish, rest = "length", self._rest()
                text += rest
        return AnswerPart(text, (token,), () if logprob is None else (logprob,), finish)

    def _rest(self) -> str:
        left = "" if self._detokenizer is None else self._detokenizer.end()
        shown, stopped = self._stops.add(left)
        return shown if stopped else shown + self._stops.end()

    def finish(self, why: Finish) -> None:
        """Ends the answer without another token."""
        self.record.put(AnswerPart(self._rest() if self.new else "", finish=why))


def answered_rows(text: RunningText, count: int) -> int:
    """Of the next ``count`` unread tokens how many, the last ones, have logits that are asked for."""
    if text.wants_prompt:
        return count
    return 1 if count == text.unread and text.most_new else 0


def no_logits(vocabulary: int) -> Tensor:
    """Logits of no rows (0, vocabulary)."""
    return torch.zeros(0, vocabulary)
