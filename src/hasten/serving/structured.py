"""Answers that hold to a grammar: JSON, a JSON schema, a call of a tool (llguidance)."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.errors import HastenError, MissingExtraError

# Between JSON's parts, where a model that may go on with spaces for ever does: a space, or a line and how far it is in.
_SPACE, _NARROW = r"([ ]|\n[ \t]{0,24})", r"[ ]"


class GrammarConstraint:
    """What may stand next by a grammar; see `hasten.serving.request.Constraint`.

    Args:
        matcher: llguidance's, of this answer alone.
    """

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def restrict(self, logits: Tensor) -> None:
        """Puts -inf in ``logits`` (vocabulary), in place, wherever a token may not follow; end tokens may, where it is
        whole.

        Raises:
            HastenError: the grammar has become too large.
        """
        self._check()
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = torch.from_numpy(np.unpackbits(bits, bitorder="little").view(bool))[: len(logits)]
        logits[: len(allowed)].masked_fill_(~allowed.to(logits.device), -torch.inf)
        logits[len(allowed) :] = -torch.inf

    def accept(self, token: int) -> None:
        """The token that was chosen."""
        self._matcher.consume_token(token)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise HastenError(f"the answer's format cannot be held to: {_first_line(self._matcher.get_error())}")


class Grammars:
    """Makes constraints for one model's tokens.

    Args:
        tokenizer: a transformers tokenizer.
        vocabulary: logits of a step.
        ends: tokens that end an answer.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Sequence[int]) -> None:
        self._given = tokenizer, vocabulary, list(ends)
        self._tokens: Any = None
        self._lock = threading.Lock()

    def json_schema(self, schema: Mapping[str, Any], narrow: bool = False) -> GrammarConstraint:
        """Of JSON by a schema; ``{"type": "object"}`` for any object; ``narrow`` in one line.

        Raises:
            HastenError: the schema is wrong, or asks for what llguidance does not know.
        """
        return self._made(lambda guidance: _json_grammar(guidance, schema, narrow))

    def lark(self, grammar: str) -> GrammarConstraint:
        """Of a grammar in llguidance's form of Lark.

        Raises:
            HastenError: it is none.
        """
        return self._made(lambda guidance: guidance.LLMatcher.grammar_from_lark(grammar))

    def _made(self, grammar: Any) -> GrammarConstraint:
        guidance = _llguidance()
        tokens = self._prepared(guidance)
        try:
            matcher = guidance.LLMatcher(tokens, grammar(guidance), log_level=0)
        except ValueError as error:
            raise HastenError(_first_line(str(error))) from None
        if matcher.is_error():
            raise HastenError(_first_line(matcher.get_error()))
        return GrammarConstraint(matcher)

    def _prepared(self, guidance: Any) -> Any:
        """The tokenizer as llguidance has it, made once: that takes a second."""
        with self._lock:
            if self._tokens is None:
                tokenizer, vocabulary, ends = self._given
                if not ends:
                    raise HastenError("the model has no end token, so that no format can end: leave the format out")
                import llguidance.hf

                try:
                    self._tokens = llguidance.hf.from_tokenizer(
                        tokenizer, n_vocab=max(vocabulary, len(tokenizer)), eos_token=ends
                    )
                except Exception as error:
                    raise HastenError(
                        f"the model's tokenizer cannot be held to a format: {_first_line(str(error))}"
                    ) from None
            return self._tokens


def _json_grammar(guidance: Any, schema: Mapping[str, Any], narrow: bool) -> str:
    options = {"whitespace_flexible": True, "whitespace_pattern": _NARROW if narrow else _SPACE, "lenient": False}
    return str(guidance.LLMatcher.grammar_from_json_schema(json.dumps(schema, allow_nan=False), overrides=options))


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingExtraError("llguidance", "serve") from None
    return llguidance


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[0] if lines else "unknown")[:300]
