"""Answers held to a grammar, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.serving.api.bodies import Tool
from hasten.serving.loading import load_model
from hasten.serving.structured import GrammarConstraint, Grammars
from hasten.serving.tools import strict_calls_grammar


@pytest.fixture(scope="module")
def tokenizer(talkers: Path) -> Any:
    return load_model(talkers / "talker").tokenizer


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> Grammars:
    return Grammars(tokenizer, len(tokenizer) + 3, [tokenizer.eos_token_id])


def allowed(constraint: GrammarConstraint, size: int) -> set[int]:
    logits = torch.zeros(size)
    constraint.restrict(logits)
    return set(torch.isfinite(logits).nonzero()[:, 0].tolist())


def takes(constraint: GrammarConstraint, tokens: list[int], size: int) -> int | None:
    """The place of the first token that may not stand where it does; None where all may."""
    for place, token in enumerate(tokens):
        if token not in allowed(constraint, size):
            return place
        constraint.accept(token)
    return None


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def test_what_may_stand_where(grammars: Grammars, tokenizer: Any) -> None:
    size, end = len(tokenizer) + 3, tokenizer.eos_token_id
    for text in ('{"a": 12}', '{\n  "a":1\n}'):
        assert takes(grammars.json_schema(SCHEMA), [*tokenizer(text).input_ids, end], size) is None
    assert takes(grammars.json_schema(SCHEMA, narrow=True), tokenizer('{\n "a"').input_ids, size) == 1
    assert takes(grammars.json_schema(SCHEMA), tokenizer('{"b"').input_ids, size) == 2
    assert takes(grammars.json_schema(SCHEMA), [*tokenizer('{"a"').input_ids, end], size) == 4
    whole = grammars.json_schema(SCHEMA)
    assert takes(whole, tokenizer('{"a": 1}').input_ids, size) is None
    assert allowed(whole, size) == {end}  # and none of the places that no token has


def test_what_cannot_be_held_to(grammars: Grammars, tokenizer: Any) -> None:
    for schema in ({"type": "odd"}, {"$ref": "https://example.org/x"}, {"type": "string", "pattern": "("}):
        with pytest.raises(HastenError):
            grammars.json_schema(schema)
    with pytest.raises(HastenError, match="no end token"):
        Grammars(tokenizer, len(tokenizer), []).json_schema(SCHEMA)


def test_calls_that_need_not_be_hold_to_their_schema(grammars: Grammars, tokenizer: Any) -> None:
    tool = Tool.model_validate({"type": "function", "function": {"name": "f", "strict": True, "parameters": SCHEMA}})
    size, end = len(tokenizer) + 3, tokenizer.eos_token_id
    grammar = strict_calls_grammar([tool], tokens=False)
    right = json.dumps({"name": "f", "arguments": {"a": 1}})
    call = f"<tool_call>\n{right}\n</tool_call>"
    for text in ("a < b", call, f"so: {call}\n{call} done"):
        assert takes(grammars.lark(grammar), [*tokenizer(text).input_ids, end], size) is None
    for text in ('<tool_call>{"name": "g', '<tool_call>{"name": "f", "arguments": {"a": "', "<tool_call>x"):
        ids = tokenizer(text).input_ids
        assert takes(grammars.lark(grammar), ids, size) == len(ids) - 1


def test_the_same_where_the_tags_are_tokens(talkers: Path) -> None:
    tokenizer = load_model(talkers / "talker").tokenizer
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    size, end = len(tokenizer), tokenizer.eos_token_id
    tool = Tool.model_validate({"type": "function", "function": {"name": "f", "parameters": SCHEMA}})
    grammars, grammar = Grammars(tokenizer, size, [end]), strict_calls_grammar([tool], tokens=True)
    text = 'so: <tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert takes(grammars.lark(grammar), [*tokenizer(text).input_ids, end], size) is None
    ids = tokenizer('<tool_call>\n{"name": "g').input_ids
    assert takes(grammars.lark(grammar), ids, size) == len(ids) - 1
