"""What is asked of an engine, and what it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from torch import Tensor

# Why an answer ended: an end token or a stop text; as many tokens as were asked for; nobody waits for it any more.
Finish = Literal["stop", "length", "cancelled"]


class Constraint(Protocol):
    """What may stand next in one answer, such as a JSON schema's grammar; it belongs to one request."""

    def restrict(self, logits: Tensor) -> None:
        """Puts -inf in ``logits`` (vocabulary), in place, wherever a token may not follow what was accepted."""

    def accept(self, token: int) -> None:
        """The token that was chosen."""


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from logits, with the OpenAI API's meaning of each field.

    Attributes:
        temperature: logits are divided by it; 0 takes the largest.
        top_p: of the likeliest tokens as many as are this likely together are kept; 1 keeps all.
        top_k: likeliest tokens that are kept; 0 keeps all.
        min_p: tokens less likely than this share of the likeliest are not taken.
        seed: of this request's own random numbers; None for any. The same request with the same seed gives the same
            tokens, whatever runs beside it.
        presence_penalty: taken off the logits of tokens that the answer has already.
        frequency_penalty: taken off as often as the answer has the token.
        repetition_penalty: positive logits of tokens in the prompt or the answer are divided by it, others multiplied.
        logit_bias: added to tokens' logits.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    """One text to continue.

    Attributes:
        prompt: token numbers, at least one.
        max_tokens: new tokens at most; 0 reads the prompt alone (for its log-likelihoods); None: as many as there are
            positions.
        sampling: how tokens are chosen.
        stop: texts that end the answer and are not part of it.
        ignore_end: whether the model's own end tokens are tokens like others.
        logprobs: likeliest alternatives that are told with each new token; None: not even its own probability.
        prompt_logprobs: the same of each token of the prompt.
        constraint: what may stand next, or None.
    """

    prompt: tuple[int, ...]
    max_tokens: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    ignore_end: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural log-probability, before temperature and penalties.

    Attributes:
        token: its number.
        text: what it alone decodes to; of a part of a character the replacement character.
        raw: its UTF-8 bytes, which may be a part of a character's.
        logprob: None for the first token of a prompt, which nothing stands before.
        top: the likeliest tokens at its place with theirs, likeliest first: (token, text, raw, logprob).
    """

    token: int
    text: str
    raw: bytes
    logprob: float | None
    top: tuple[tuple[int, str, bytes, float], ...] = ()


@dataclass(frozen=True)
class AnswerPart:
    """What has come of an answer since the part before.

    Attributes:
        text: whole characters that no stop text can begin with any more; may be empty.
        tokens: numbers of the tokens made, end token included.
        logprobs: of these tokens, where asked for.
        finish: why the answer ended; None while it goes on. The last part has one.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: Finish | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens of a request, as the tokenizer counts them.

    Attributes:
        prompt: of the prompt.
        cached: of these how many were found read already.
        completion: new ones, end token included.
        seconds_to_first: from the request to its first token; None before.
        seconds: from the request to now, or to its end.
    """

    prompt: int
    cached: int
    completion: int
    seconds_to_first: float | None
    seconds: float
