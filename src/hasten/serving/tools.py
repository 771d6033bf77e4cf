"""Calls of tools in a model's answer, in the forms that models are trained to write them."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hasten.serving.api.bodies import NamedTool, Tool

_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class FunctionCall:
    """A call: the function's name, and its arguments as JSON text."""

    name: str
    arguments: str


# Where a call may begin within a text; what does not begin with one of these or with a bracket is text.
_MARKS = ("<tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "<function=")


class CallReader:
    """Tells an answer's text from its calls, as parts come.

    It knows ``<tool_call>{"name": ..., "arguments": ...}</tool_call>`` (Hermes, Qwen), ``<function=NAME>`` with JSON or
    ``<parameter=NAME>`` within (Llama, Qwen coder), ``[TOOL_CALLS]`` before a list (Mistral), ``<|python_tag|>`` before
    an object or an object alone with ``parameters`` (Llama), a list of such. What calls no tool that there is, is text.

    Args:
        names: of the tools that there are.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)
        self._held = ""
        self._begun = False  # whether something other than space has been given out
        self._holding = False

    def add(self, text: str) -> str:
        """Text that is surely none of a call."""
        self._held += text
        if self._holding:
            return ""
        if not self._begun:
            begin = self._held.lstrip()
            if not begin:
                return ""
            if begin[0] in "{[":
                self._holding = True
                return ""
        places = [at for at in (self._held.find(mark) for mark in _MARKS) if at >= 0]
        if places:
            self._holding = True
            return self._give(min(places))
        most = min(len(self._held), max(map(len, _MARKS)) - 1)
        kept = next((n for n in range(most, 0, -1) if any(m.startswith(self._held[-n:]) for m in _MARKS)), 0)
        return self._give(len(self._held) - kept)

    def _give(self, count: int) -> str:
        given, self._held = self._held[:count], self._held[count:]
        self._begun = self._begun or bool(given.strip())
        return given

    def end(self) -> tuple[str, list[FunctionCall]]:
        """(text that is left, calls)."""
        held, self._held = self._held, ""
        calls = read_calls(held, self._names)
        return ("", calls) if calls else (held, [])


def read_calls(text: str, names: Sequence[str] | frozenset[str]) -> list[FunctionCall]:
    """All calls in a text; none where one of them is broken, or of a tool that there is not."""
    found: list[FunctionCall] = []
    for raw in _pieces(text):
        read = _call(raw)
        if not read or any(call.name not in names for call in read):
            return []
        found += read
    return found


def _pieces(text: str) -> list[str]:
    """The calls' own texts."""
    text = text.strip()
    if "<tool_call>" in text:
        return [part.partition("</tool_call>")[0] for part in text.split("<tool_call>")[1:]]
    if "<function=" in text:
        return ["<function=" + part for part in text.split("<function=")[1:]]
    for mark in ("[TOOL_CALLS]", "<|python_tag|>"):
        text = text.removeprefix(mark).strip()
    if text.startswith("{") and "}" in text:
        return _objects(text)
    return [text]


def _objects(text: str) -> list[str]:
    """Objects one after the other, a semicolon or spaces between them."""
    decoder, pieces, at = json.JSONDecoder(), [], 0
    while at < len(text):
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return [text]
        pieces.append(text[at:end])
        at = end + len(text[end:]) - len(text[end:].lstrip("; \n\t\r"))
    return pieces


def _call(text: str) -> list[FunctionCall]:
    text = text.strip()
    if text.startswith("<function="):
        return _tagged(text)
    named = re.match(r"([\w.-]+)\s*(?:\[ARGS\])?\s*(\{.*\})\s*$", text, re.S)  # newer Mistral: NAME[ARGS]{...}
    try:
        if named:
            return [FunctionCall(named[1], _arguments(json.loads(named[2])))]
        read = json.loads(text)
        return [_object(one) for one in (read if isinstance(read, list) else [read])]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []


def _tagged(text: str) -> list[FunctionCall]:
    found = re.match(r"<function=([^>\s]+)>(.*?)(?:</function>|$)", text, re.S)
    if not found:
        return []
    name, inside = found[1], found[2].strip()
    parameters = re.findall(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", inside, re.S)
    if parameters:
        return [FunctionCall(name, _arguments({key: _value(value) for key, value in parameters}))]
    try:
        return [FunctionCall(name, _arguments(json.loads(inside or "{}")))]
    except (ValueError, RecursionError, TypeError):
        return []


def _value(text: str) -> Any:
    """JSON where it is, else the text itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _object(read: dict[str, Any]) -> FunctionCall:
    """
    Raises:
        KeyError, TypeError: it is no call.
    """
    if set(read) == {"type", "function"} or set(read) == {"function"}:
        read = read["function"]
    arguments = read["arguments"] if "arguments" in read else read["parameters"]
    name = read["name"]
    if not isinstance(name, str):
        raise TypeError(name)
    return FunctionCall(name, _arguments(json.loads(arguments) if isinstance(arguments, str) else arguments))


def _arguments(read: Any) -> str:
    if not isinstance(read, dict):
        raise TypeError(read)
    return json.dumps(read, ensure_ascii=False)


def forced_schema(tools: Sequence[Tool], choice: object, several: bool) -> dict[str, Any]:
    """The JSON schema of an answer that must call: a list of objects, or one object where only one call may be."""
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    defined: dict[str, Any] = {}
    one = []
    for number, tool in enumerate(tools):
        # Without parameters a function takes none, as the API has it.
        takes = tool.function.parameters or {"type": "object", "properties": {}, "additionalProperties": False}
        arguments = _moved(takes, f"{number}.", defined)
        one.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    call: dict[str, Any] = one[0] if len(one) == 1 else {"anyOf": one}
    if several:
        call = {"type": "array", "items": call, "minItems": 1, "maxItems": 16}
    return {**call, "$defs": defined} if defined else call


def strict_calls_grammar(tools: Sequence[Tool], tokens: bool) -> str:
    """Of an answer that may call, as `forced_schema` has calls, and say anything else (llguidance's form of Lark).

    Args:
        tools: that there are.
        tokens: whether ``<tool_call>`` and its end are tokens, not text.
    """
    call = json.dumps(forced_schema(tools, "auto", several=False))
    if tokens:
        rules = f"call: TEXT <tool_call> SPACE body SPACE </tool_call>\nbody: %json {call}"
    else:
        rules = f'call: begin SPACE body SPACE "</tool_call>"\nbegin[lazy]: TEXT "<tool_call>"\nbody: %json {call}'
    return f"%llguidance {{}}\nstart: call* TEXT\n{rules}\nTEXT: /(.|\\n)*/\nSPACE: /[ \\n]?/\n"


_DEFINITIONS = ("$defs", "definitions")


def _moved(schema: dict[str, Any], prefix: str, defined: dict[str, Any]) -> dict[str, Any]:
    """A schema that becomes a part of another: what it defines goes to ``defined``, under names with a prefix."""

    def named(value: Any) -> Any:
        if isinstance(value, list):
            return [named(one) for one in value]
        if not isinstance(value, dict):
            return value
        made = {key: named(one) for key, one in value.items()}
        reference = value.get("$ref")
        for kind in _DEFINITIONS:
            if isinstance(reference, str) and reference.startswith(f"#/{kind}/"):
                made["$ref"] = f"#/$defs/{prefix}{reference.removeprefix(f'#/{kind}/')}"
        return made

    for kind in _DEFINITIONS:
        if isinstance(schema.get(kind), dict):
            defined.update({prefix + name: named(one) for name, one in schema[kind].items()})
    return {key: named(one) for key, one in schema.items() if key not in _DEFINITIONS}


def new_call_id(short: bool = False) -> str:
    """Of a call; nine letters and digits where the model's template wants that."""
    return ("" if short else "call_") + "".join(secrets.choice(_LETTERS) for _ in range(9 if short else 24))
