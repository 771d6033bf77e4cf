"""Messages as a model's chat template writes them, tools among them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hasten.errors import HastenError
from hasten.serving.api.bodies import AssistantMessage, Message, SystemMessage, Tool, ToolMessage, text_of

_PROBE = [{"role": "user", "content": "a"}]
_PROBE_TOOL = {
    "type": "function",
    "function": {"name": "hasten_probe", "description": "b", "parameters": {"type": "object", "properties": {}}},
}


class ChatTemplate:
    """How a model is given a talk.

    Args:
        tokenizer: a transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._source = _source(tokenizer)
        self.takes_tools = self._shows_tools()

    @property
    def exists(self) -> bool:
        """Whether the model has one."""
        return bool(self._source)

    @property
    def calls_by_brackets(self) -> bool:
        """Whether calls are written as Mistral's models do, whose numbers of calls are nine letters and digits."""
        return "[TOOL_CALLS]" in self._source

    @property
    def calls_by_tags(self) -> bool:
        """Whether calls are JSON between ``<tool_call>`` and ``</tool_call>``, as Hermes and Qwen have it."""
        return "<tool_call>" in self._source and "<function=" not in self._source

    @property
    def call_tags_are_tokens(self) -> bool:
        """Whether each of these is a token of its own."""
        known = self._tokenizer.get_added_vocab()
        return "<tool_call>" in known and "</tool_call>" in known

    def tokens(self, messages: Sequence[Message], tools: Sequence[Tool], most: int) -> tuple[int, ...]:
        """What the model reads, up to where its answer goes; see `tokens_of` for ``most``.

        Raises:
            HastenError: the template refuses the messages.
        """
        given = [_plain(message) for message in messages]
        described = [tool.model_dump(exclude_none=True) for tool in tools]
        try:
            text = self._written(given, described)
        except Exception as error:  # a template is a program of somebody else's
            why = " ".join(str(error).split())[:200]
            raise HastenError(f"the model's chat template refuses these messages: {why}") from None
        return tokens_of(self._tokenizer, text, most, special=False)

    def _written(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=True
            )
        )

    def _shows_tools(self) -> bool:
        """Whether the template says anything of tools: many pass over them without a word."""
        if not self._source:
            return False
        try:
            return "hasten_probe" in self._written(_PROBE, [_PROBE_TOOL])
        except Exception:
            return False


def tokens_of(tokenizer: Any, text: str, most: int, special: bool = True) -> tuple[int, ...]:
    """Tokens of a text; of one that has surely more than ``most``, only more than these.

    A tokenizer takes hundreds of bytes for each byte of a text.
    """
    begin = text[: 8 * most]
    if len(begin) < len(text):
        found = tokenizer(begin, add_special_tokens=special, verbose=False).input_ids
        if len(found) > most + 64:  # where it was cut there may be a few more than in the whole
            return tuple(found)
    return tuple(int(t) for t in tokenizer(text, add_special_tokens=special, verbose=False).input_ids)


def _source(tokenizer: Any) -> str:
    found = getattr(tokenizer, "chat_template", None)
    if isinstance(found, dict):
        return "\n".join(str(t) for t in found.values())
    return str(found or "")


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates know it."""
    made: dict[str, Any] = {"role": message.role, "content": text_of(message.content)}
    if isinstance(message, SystemMessage):
        made["role"] = "system"  # templates know no developer
    if isinstance(message, ToolMessage):
        made["tool_call_id"] = message.tool_call_id
    elif message.name is not None:
        made["name"] = message.name
    if isinstance(message, AssistantMessage) and message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _object(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return made


def _object(arguments: str) -> Any:
    """Arguments of a call: templates want the object, the API has its text."""
    try:
        found = json.loads(arguments)
    except ValueError:
        return arguments
    return found if isinstance(found, dict) else arguments
