"""Text from tokens as they come: whole characters, without stop texts; what each token stands for by itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

_BROKEN = "\ufffd"
# A text that is nothing but broken characters is given out all the same once it is as long as this.
_MOST_HELD = 64


def _decoding(tokenizer: Any) -> Callable[[list[int]], str]:
    """What decodes tokens, special ones skipped, without what transformers does around it where that changes nothing.

    transformers leaves the spaces of byte-pair texts as they are, whatever ``clean_up_tokenization_spaces`` says.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    cleans = getattr(tokenizer, "clean_up_tokenization_spaces", False)
    if backend is None or (cleans and type(backend.model).__name__ != "BPE"):
        return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))
    return lambda tokens: str(backend.decode(tokens, skip_special_tokens=True))


class Detokenizer:
    """The text of one answer, token by token.

    Its parts, joined, are what the tokenizer decodes all tokens to, special ones skipped: a character whose bytes lie
    in several tokens comes whole, and a token's leading space as it stands behind the tokens before it.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._decode = _decoding(tokenizer)
        # Tokens of the last text that was given, then those that came since.
        self._window: list[int] = []
        self._before = 0
        self._given = 0  # characters of the window's text

    def add(self, token: int) -> str:
        """The text that is sure now that ``token`` has come; may be empty."""
        self._window.append(token)
        text = self._decode(self._window)
        sure = text.rstrip(_BROKEN)
        if len(self._window) - self._before > _MOST_HELD:
            sure = text
        if len(sure) <= self._given:
            return ""
        new = sure[self._given :]
        self._given = len(sure)
        if len(sure) == len(text):
            self._move_on()
        return new

    def _move_on(self) -> None:
        """Forgets tokens that no later token's text depends on."""
        last = self._window[self._before :]
        text = self._decode(last)
        # Tokens that decode to nothing by themselves would not tell the next one where it stands.
        if text and not text.endswith(_BROKEN):
            self._window, self._given = last, len(text)
        self._before = len(self._window)

    def end(self) -> str:
        """What is left when no token follows."""
        text = self._decode(self._window)
        rest, self._given = text[self._given :], max(self._given, len(text))
        return rest


class StopTexts:
    """Holds text back that a stop text may begin with.

    Args:
        stops: texts that end the answer; empty ones are none.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(s for s in stops if s)
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """(what may be shown now, whether a stop text has come); nothing of the stop text is shown."""
        if not self._stops:
            return text, False
        whole = self._held + text
        places = [at for at in (whole.find(s) for s in self._stops) if at >= 0]
        if places:
            self._held = ""
            return whole[: min(places)], True
        most = min(len(whole), max(map(len, self._stops)) - 1)
        held = next((n for n in range(most, 0, -1) if any(s.startswith(whole[-n:]) for s in self._stops)), 0)
        self._held = whole[len(whole) - held :]
        return whole[: len(whole) - held], False

    def end(self) -> str:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return held


class TokenTexts:
    """What each token stands for by itself.

    Args:
        tokenizer: a transformers tokenizer, or None: tokens then stand for nothing.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, bytes]] = {}
        self._added = {} if tokenizer is None else {i: str(t) for i, t in tokenizer.added_tokens_decoder.items()}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        kinds = set() if decoder is None else _kinds(json.loads(decoder.__getstate__()))
        self._bytes = _byte_characters() if "ByteLevel" in kinds else None
        self._falls_back = "ByteFallback" in kinds

    def __call__(self, token: int) -> tuple[str, bytes]:
        """Its text, the replacement character for parts of characters, and its UTF-8 bytes."""
        found = self._known.get(token)
        if found is None:
            raw = self._raw(token)
            found = self._known[token] = raw.decode("utf-8", "replace"), raw
        return found

    def _raw(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        name = None if self._tokenizer is None else self._tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return b""
        name = str(name)
        if self._bytes is not None:
            return bytes(self._bytes[c] for c in name if c in self._bytes)
        byte = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name) if self._falls_back else None
        return bytes([int(byte[1], 16)]) if byte else name.replace("▁", " ").encode()


def _kinds(decoder: dict[str, Any]) -> set[str]:
    """Types of a decoder's parts."""
    return {decoder["type"]}.union(*(_kinds(part) for part in decoder.get("decoders", ())))


def _byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
