"""Answers in the OpenAI API's shape, whole and in parts."""

from __future__ import annotations

import codecs
import json
import math
import secrets
import time
from collections.abc import Sequence
from typing import Any

from hasten import __version__
from hasten.serving.api.errors import ApiError
from hasten.serving.request import AnswerPart, TokenLogprob
from hasten.serving.tools import CallReader, FunctionCall, new_call_id

Json = dict[str, Any]
_UNLIKELIEST = -9999.0
"""In place of minus infinity, which JSON has not."""


def to_text(value: Any) -> bytes:
    """Compact JSON in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + to_text(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def finish_of(part: AnswerPart) -> str:
    """
    Raises:
        ApiError: the server ended the answer.
    """
    if part.finish == "cancelled":
        raise ApiError(503, "the server ends: ask again", code="server_ends")
    return part.finish or "stop"


def usage_of(prompt: int, completion: int, cached: int) -> Json:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class AnswerShape:
    """What all answers to one request share.

    Args:
        kind: ``chat.completion`` or ``text_completion``.
        model: its name.
    """

    def __init__(self, kind: str, model: str, with_usage: bool) -> None:
        prefix = "chatcmpl" if kind.startswith("chat") else "cmpl"
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": f"hasten-{__version__}",
        }
        self._with_usage = with_usage

    def whole(self, choices: Sequence[Json], usage: Json) -> Json:
        return {**self._head, "choices": list(choices), "usage": usage}

    def chunk(self, choices: Sequence[Json], usage: Json | None = None) -> bytes:
        kind = self._head["object"]
        made = {**self._head, "object": f"{kind}.chunk" if str(kind).startswith("chat") else kind}
        if self._with_usage:
            made["usage"] = usage
        return event({**made, "choices": list(choices)})


class ChatChoice:
    """One answer to messages.

    Args:
        index: of it.
        tools: names of tools that may be called.
        ends: the model's end tokens: they are no part of the answer.
        logprobs: whether they are told.
        several: whether several calls may be told.
        short_ids: whether calls' numbers are short.
    """

    def __init__(
        self, index: int, tools: Sequence[str], ends: Sequence[int], logprobs: bool, several: bool, short_ids: bool
    ) -> None:
        self._index, self._ends, self._logprobs = index, frozenset(ends), logprobs
        self._several, self._short_ids = several, short_ids
        self._reader = CallReader(tools) if tools else None
        self._begun = False
        self._text = ""
        self._told: list[Json] = []
        self._calls: list[Json] = []
        self._finish: str | None = None

    def add(self, part: AnswerPart) -> list[Json]:
        """Takes a part, and gives the choices of chunks that it makes.

        Raises:
            ApiError: the server ended the answer.
        """
        text, calls = part.text, list[FunctionCall]()
        if self._reader is not None:
            text = self._reader.add(text)
            if part.finish is not None:
                rest, calls = self._reader.end()
                text += rest
        told = [chat_logprob(x) for x in without_end(part, self._ends)] if self._logprobs else []
        self._text += text
        self._told += told
        made: list[Json] = []
        if not self._begun:
            self._begun = True
            made.append(self._delta({"role": "assistant", "content": "", "refusal": None}))
        if text or told:
            made.append(self._delta({"content": text}, told))
        for call in calls if self._several else calls[:1]:
            function = {"name": call.name, "arguments": call.arguments}
            written = {"id": new_call_id(self._short_ids), "type": "function", "function": function}
            made.append(self._delta({"tool_calls": [{"index": len(self._calls), **written}]}))
            self._calls.append(written)
        if part.finish is not None:
            self._finish = "tool_calls" if self._calls else finish_of(part)
            made.append({**self._delta({}), "finish_reason": self._finish})
        return made

    def _delta(self, delta: Json, told: Sequence[Json] = ()) -> Json:
        logprobs = {"content": list(told), "refusal": None} if told else None
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": None}

    def whole(self) -> Json:
        message: Json = {"role": "assistant", "content": self._text, "refusal": None}
        if self._calls:
            message |= {"content": self._text.strip() or None, "tool_calls": self._calls}
        logprobs = {"content": self._told, "refusal": None} if self._logprobs else None
        return {"index": self._index, "message": message, "logprobs": logprobs, "finish_reason": self._finish}


class CompletionChoice:
    """One continuation of a prompt.

    Args:
        index: of it.
        ends: the model's end tokens.
        logprobs: alternatives that are told; None: nothing is.
        echo: the prompt's text, where it is given back too.
    """

    def __init__(self, index: int, ends: Sequence[int], logprobs: int | None, echo: str | None) -> None:
        self._index, self._ends, self._logprobs, self._echo = index, frozenset(ends), logprobs, echo
        self._text, self._finish = "", "stop"
        self._offsets = _Offsets()
        self._told: Json = _no_logprobs()

    def add(self, part: AnswerPart, prompt: Sequence[TokenLogprob] = ()) -> list[Json]:
        """Takes a part; with the first one, what is known of the prompt's tokens.

        Raises:
            ApiError: the server ended the answer.
        """
        text, tokens = part.text, without_end(part, self._ends)
        if self._echo is not None:
            text, tokens, self._echo = self._echo + text, [*prompt, *tokens], None
        told = self._columns(tokens) if self._logprobs is not None else None
        self._text += text
        for name, column in (told or {}).items():
            self._told[name] += column
        if part.finish is not None:
            self._finish = finish_of(part)
        if not text and not (told and told["tokens"]) and part.finish is None:
            return []
        finish = self._finish if part.finish is not None else None
        return [{"index": self._index, "text": text, "logprobs": told, "finish_reason": finish}]

    def _columns(self, tokens: Sequence[TokenLogprob]) -> Json:
        made = _no_logprobs()
        for one in tokens:
            made["tokens"].append(token_text(one.text, one.raw))
            own = _own(one)
            made["token_logprobs"].append(own)
            made["text_offset"].append(self._offsets.next(one.raw))
            top: dict[str, float] | None = None
            if own is not None:
                top = {token_text(text, raw): finite(p) for _, text, raw, p in one.top}
                top.setdefault(token_text(one.text, one.raw), own)
            made["top_logprobs"].append(top)
        return made

    def whole(self) -> Json:
        told = None if self._logprobs is None else self._told
        return {"index": self._index, "text": self._text, "logprobs": told, "finish_reason": self._finish}


class _Offsets:
    """Where each token's text begins."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at = 0

    def next(self, raw: bytes) -> int:
        at = self._at
        self._at += len(self._decoder.decode(raw))
        return at


def _no_logprobs() -> Json:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def without_end(part: AnswerPart, ends: frozenset[int]) -> list[TokenLogprob]:
    """Tokens of a part, but for the one that ended the answer."""
    told = list(part.logprobs)
    if part.finish == "stop" and told and told[-1].token in ends:
        told.pop()
    return told


def token_text(text: str, raw: bytes) -> str:
    r"""A token's text; of a part of a character its bytes, as the API writes them.

    >>> token_text("é", "é".encode()), token_text("\ufffd", b"\xc3")
    ('é', 'bytes:\\xc3')
    """
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
    return text


def _own(one: TokenLogprob) -> float | None:
    """A token's own; of the likeliest the very number that stands among them: harnesses compare the two."""
    if one.logprob is None:
        return None
    return finite(next((p for token, _, _, p in one.top if token == one.token), one.logprob))


def finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _UNLIKELIEST


def chat_logprob(one: TokenLogprob) -> Json:
    """A token as chat completions tell it."""
    return {
        **_told(one.text, one.raw, _own(one) or 0.0),
        "top_logprobs": [_told(text, raw, logprob) for _, text, raw, logprob in one.top],
    }


def _told(text: str, raw: bytes, logprob: float) -> Json:
    return {"token": token_text(text, raw), "logprob": finite(logprob), "bytes": list(raw)}
