"""Calls of tools as models write them, told from text as it comes."""

from __future__ import annotations

import json

import pytest

from hasten.serving.api.answers import ChatChoice
from hasten.serving.api.bodies import Tool
from hasten.serving.request import AnswerPart
from hasten.serving.tools import CallReader, forced_schema, new_call_id, read_calls

NAMES = ("weather", "clock")
PLACE = {"place": "Zürich", "days": [1, 2]}
OBJECT = json.dumps({"name": "weather", "arguments": PLACE}, ensure_ascii=False)
WRITTEN = {
    "hermes": f"<tool_call>\n{OBJECT}\n</tool_call>",
    "llama": json.dumps({"name": "weather", "parameters": PLACE}),
    "python tag": "<|python_tag|>" + json.dumps({"name": "weather", "parameters": PLACE}),
    "wrapped": json.dumps({"type": "function", "function": {"name": "weather", "arguments": json.dumps(PLACE)}}),
    "mistral": f"[TOOL_CALLS] [{OBJECT}]",
    "mistral without its mark": f"[{OBJECT}]",
    "newer mistral": "[TOOL_CALLS]weather[ARGS]" + json.dumps(PLACE),
    "function": f"<function=weather>{json.dumps(PLACE)}</function>",
    "coder": "<tool_call>\n<function=weather>\n<parameter=place>\nZürich\n</parameter>\n<parameter=days>\n[1, 2]\n"
    "</parameter>\n</function>\n</tool_call>",
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_each_form_piece_by_piece(text: str) -> None:
    for size in (1, 7, len(text)):
        reader = CallReader(NAMES)
        shown = "".join(reader.add(text[i : i + size]) for i in range(0, len(text), size))
        left, calls = reader.end()
        assert shown + left == ""
        assert [(c.name, json.loads(c.arguments)) for c in calls] == [("weather", PLACE)]


def test_text_before_calls_and_several_of_them() -> None:
    clock = json.dumps({"name": "clock", "arguments": {}})
    text = f"Let me see < 3.\n<tool_call>{OBJECT}</tool_call>\n<tool_call>{clock}</tool_call>"
    reader = CallReader(NAMES)
    shown = "".join(reader.add(c) for c in text)
    left, calls = reader.end()
    assert (shown, left) == ("Let me see < 3.\n", "")
    assert [c.name for c in calls] == ["weather", "clock"]
    assert [c.name for c in read_calls(f"{OBJECT}; {OBJECT}", NAMES)] == ["weather", "weather"]


@pytest.mark.parametrize(
    "text",
    [
        "plain text", "", "  \n", "a < b and [x]", '{"name": "nobody", "arguments": {}}', '{"a": 1}', "{broken",
        "[1, 2]", "<tool_call>{broken</tool_call>", "<tool_call>", "<tool", '{"name": "clock", "arguments": 5}',
        "<function=weather",
        "[" * 5000, '{"name": 5, "arguments": {}}', '<tool_call>{"name": "clock"}</tool_call>',
    ],
)  # fmt: skip
def test_what_calls_nothing_is_text(text: str) -> None:
    reader = CallReader(NAMES)
    shown = "".join(reader.add(c) for c in text)
    left, calls = reader.end()
    assert shown + left == text
    assert calls == []


def test_a_choice_tells_text_then_calls() -> None:
    choice = ChatChoice(0, NAMES, (), False, True, False)
    text = f"Wait. <tool_call>{OBJECT}</tool_call>"
    made = [c for p in text for c in choice.add(AnswerPart(p))]
    made += choice.add(AnswerPart("", finish="stop"))
    assert "".join(c["delta"].get("content") or "" for c in made) == "Wait. "
    (call,) = [d for c in made for d in c["delta"].get("tool_calls", [])]
    assert (call["index"], call["function"]["name"]) == (0, "weather")
    assert made[-1]["finish_reason"] == "tool_calls"
    message = choice.whole()["message"]
    assert message["content"] == "Wait."
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == PLACE


def test_definitions_of_several_tools_stay_apart() -> None:
    def tool(name: str, kind: str) -> Tool:
        parameters = {"type": "object", "properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"type": kind}}}
        return Tool.model_validate({"type": "function", "function": {"name": name, "parameters": parameters}})

    schema = forced_schema([tool("x", "string"), tool("y", "integer")], "required", several=True)
    first, second = schema["items"]["anyOf"]
    kinds = [
        schema["$defs"][one["properties"]["arguments"]["properties"]["a"]["$ref"].rpartition("/")[2]]["type"]
        for one in (first, second)
    ]
    assert kinds == ["string", "integer"]


def test_numbers_of_calls() -> None:
    assert len(new_call_id(short=True)) == 9
    assert new_call_id(short=True).isalnum()
    assert new_call_id() != new_call_id()
