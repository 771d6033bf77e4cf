"""Bodies of requests: every field of the OpenAI API, with its type and bounds; what is not done is refused by name.

``null`` stands for a field that is left out, as the API has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hasten.files import parse_json
from hasten.serving.api.errors import ApiError, not_done
from hasten.serving.request import Sampling

MOST_CHOICES = 2048
"""Answers of one request, over all of its prompts."""

_SEED = 2**63


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(_Body):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


def text_of(content: Content | None) -> str:
    """Parts joined."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


class SystemMessage(_Body):
    role: Literal["system", "developer"]
    content: Content
    name: str | None = None


class UserMessage(_Body):
    role: Literal["user"]
    content: Content
    name: str | None = None


class CalledFunction(_Body):
    name: str
    arguments: str


class ToolCall(_Body):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(_Body):
    role: Literal["assistant"]
    content: Content | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None  # what the API itself answers with


class ToolMessage(_Body):
    role: Literal["tool"]
    content: Content
    tool_call_id: str


Message = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage,
    Field(discriminator="role"),
]


class ToolFunction(_Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    type: Literal["function"]
    function: ToolFunction


class NamedFunction(_Body):
    name: str


class NamedTool(_Body):
    type: Literal["function"]
    function: NamedFunction


class JsonSchema(_Body):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None


class PlainFormat(_Body):
    type: Literal["text", "json_object"]


class SchemaFormat(_Body):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[PlainFormat | SchemaFormat, Field(discriminator="type")]


class StreamOptions(_Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class _Generation(_Body):
    """What both kinds of completions have."""

    model: Annotated[str, Field(min_length=1)]
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1)] = None
    n: Annotated[int | None, Field(ge=1, le=128)] = None
    seed: Annotated[int | None, Field(ge=-_SEED, lt=_SEED)] = None
    stop: str | list[str] | None = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    max_tokens: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Those change nothing in the answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    # What other servers have too, beyond the API.
    top_k: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    ignore_eos: bool | None = None

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, own: Sampling) -> Sampling:
        """How tokens are chosen: as asked, else as the model's makers have it."""

        def given(name: str) -> Any:
            value = getattr(self, name)
            return getattr(own, name) if value is None else value

        return Sampling(
            temperature=given("temperature"),
            top_p=given("top_p"),
            top_k=given("top_k"),
            min_p=given("min_p"),
            repetition_penalty=given("repetition_penalty"),
            seed=None if self.seed is None else self.seed % _SEED,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
        )

    def check(self) -> None:
        """What no type says.

        Raises:
            ApiError: a field does not fit.
        """
        if len(self.stops) > 4 or "" in self.stops:
            raise ApiError(400, "stop has one to four texts, none of them empty", param="stop")
        if self.stop_options_without_stream:
            raise ApiError(400, "stream_options is for streams: set stream to true", param="stream_options")
        for token in self.logit_bias or ():
            if not re.fullmatch(r"[0-9]{1,9}", token):
                raise ApiError(400, f"logit_bias names tokens by number, not by {token[:40]!r}", param="logit_bias")

    @property
    def stop_options_without_stream(self) -> bool:
        return self.stream_options is not None and not self.stream


class ChatBody(_Generation):
    """Of ``POST /v1/chat/completions``."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1, lt=2**31)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool] | None, Field(max_length=128)] = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def tools_in_use(self) -> list[Tool]:
        return [] if self.tool_choice == "none" else (self.tools or [])

    def check(self) -> None:
        super().check()
        if self.max_tokens == 0:
            raise ApiError(400, "max_tokens is at least 1", param="max_tokens")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ApiError(
                400, "max_tokens and max_completion_tokens say different things: give one", param="max_tokens"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ApiError(400, "two tools have the same name", param="tools")
        if self.tool_choice not in (None, "none") and not names:
            raise ApiError(400, "tool_choice needs tools", param="tool_choice")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ApiError(
                400, f"tool_choice names {self.tool_choice.function.name!r}, which is no tool", param="tool_choice"
            )
        forced = self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)
        if forced and self.response_format is not None and self.response_format.type != "text":
            raise ApiError(400, "an answer is a call or of a format, not both: leave one out", param="response_format")


class CompletionBody(_Generation):
    """Of ``POST /v1/completions``."""

    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    best_of: Literal[1] | None = None
    suffix: Literal[""] | None = None

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """One or several."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if not self.prompt:
            return []
        return [self.prompt] if isinstance(self.prompt[0], int) else self.prompt

    def check(self) -> None:
        super().check()
        if not self.prompts:
            raise ApiError(400, "prompt is empty: give a text, or tokens", param="prompt")
        if len(self.prompts) * (self.n or 1) > MOST_CHOICES:
            raise ApiError(400, f"at most {MOST_CHOICES} answers of one request: give fewer prompts", param="prompt")


class EmbeddingBody(_Body):
    """Of ``POST /v1/embeddings``."""

    model: Annotated[str, Field(min_length=1)]
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int | None, Field(ge=1)] = None
    user: str | None = None

    def check(self) -> None:
        """Nothing more than its types say."""


Body = TypeVar("Body", ChatBody, CompletionBody, EmbeddingBody)

# What the API has and hasten has not, with what to do instead.
_NOT_DONE: dict[type[BaseModel], dict[str, str]] = {
    ChatBody: {
        "audio": "hasten answers in text, leave it out",
        "functions": "use tools",
        "function_call": "use tool_choice",
        "prediction": "leave it out",
        "reasoning_effort": "leave it out",
        "verbosity": "leave it out",
        "web_search_options": "leave it out",
        "moderation": "leave it out",
        "best_of": "use n",
        "echo": "use /v1/completions",
        "suffix": "use /v1/completions without it",
        "prompt": "use messages, or /v1/completions",
    },
    CompletionBody: {
        "best_of": "use n",
        "suffix": "leave it out",
        "messages": "use prompt, or /v1/chat/completions",
        "response_format": "use /v1/chat/completions",
        "tools": "use /v1/chat/completions",
    },
    EmbeddingBody: {},
}
_PARTS = {"image_url": "images", "input_audio": "sound", "file": "files", "refusal": "refusals"}


def read_body(kind: type[Body], raw: bytes) -> Body:
    """A body, checked.

    Raises:
        ApiError: it is no JSON, or a field of it is wrong, unknown or not done.
    """
    given = _parsed(raw)
    if not isinstance(given, dict):
        raise ApiError(400, "the body is no JSON object: send one, with Content-Type application/json")
    given = {name: value for name, value in given.items() if value is not None}
    for name, instead in _NOT_DONE[kind].items():
        if name in given and (name not in kind.model_fields or not _harmless(name, given[name])):
            raise not_done(name, instead)
    _refuse_parts(given.get("messages"))
    try:
        body = kind.model_validate(given)
    except ValidationError as error:
        raise _told(error, given) from None
    body.check()
    return body


def _harmless(name: str, value: object) -> bool:
    return (name == "best_of" and value == 1 and value is not True) or (name == "suffix" and value == "")


def _parsed(raw: bytes) -> Any:
    try:
        given = parse_json(raw.decode("utf-8"))
        if b"NaN" in raw or b"Infinity" in raw or b"\\u" in raw:
            # What Python's parser lets through: numbers that are none, halves of characters.
            json.dumps(given, allow_nan=False, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        told = " ".join(str(error).split())[:200]
        raise ApiError(400, f"the body is no JSON that can be read: {told}", code="invalid_json") from None
    return given


def _refuse_parts(messages: object) -> None:
    """Parts of messages that are no text, before types are looked at: there the reader would be told of a type."""
    if not isinstance(messages, list):
        return
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        for j, part in enumerate(content if isinstance(content, list) else ()):
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind in _PARTS:
                what = f"messages[{i}].content[{j}].type"
                raise ApiError(
                    400, f"{what} is {kind}, and {_PARTS[kind]} are not supported: send text", param=what,
                    code="unsupported_parameter",
                )  # fmt: skip


def _told(error: ValidationError, given: dict[str, Any]) -> ApiError:
    """The first thing that is wrong, in the words of the field."""
    found = error.errors(include_url=False)
    # Of a field that may be one of several types, pydantic tells what is wrong with each; the deepest is meant.
    top = found[0]["loc"][0] if found[0]["loc"] else ""
    mine = [e for e in found if e["loc"][:1] == (top,)]
    first = max(mine, key=lambda e: len(_path(e["loc"], given)))
    path = _path(first["loc"], given)
    field = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
    match first["type"]:
        case "missing":
            return ApiError(400, f"{field} is missing", param=field, code="missing_required_parameter")
        case "extra_forbidden":
            return ApiError(
                400, f"{field} is no field that is known: leave it out", param=field, code="unknown_parameter"
            )
        case "union_tag_invalid":
            field = f"{field}.{str(first['ctx']['discriminator']).strip(chr(39))}"
            return ApiError(
                400, f"{field} is {first['ctx']['tag']!r}: give {first['ctx']['expected_tags']}", param=field,
                code="invalid_value",
            )  # fmt: skip
        case "union_tag_not_found":
            field = f"{field}.{str(first['ctx']['discriminator']).strip(chr(39))}"
            return ApiError(400, f"{field} is missing", param=field, code="missing_required_parameter")
    many = len({tuple(e["loc"]) for e in mine}) > 1 and len(path) == 1
    told = "; or ".join(dict.fromkeys(map(_words, mine))) if many else _words(first)
    return ApiError(400, f"{field}: {told[:300]}", param=field, code="invalid_value")


def _words(error: Any) -> str:
    """What pydantic says is wrong, without the names of our classes."""
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return "it should be an object"
    return str(error["msg"]).replace("Input should", "it should").replace("String should", "it should")


def _path(loc: tuple[int | str, ...], given: Any) -> list[int | str]:
    """Of pydantic's place, what is in the body: names of types among it are left out."""
    path: list[int | str] = []
    at: Any = given
    for number, step in enumerate(loc):
        last = number == len(loc) - 1
        if isinstance(at, dict) and isinstance(step, str) and (step in at or (last and step.isidentifier())):
            path.append(step)
            at = at.get(step)
        elif isinstance(at, list) and isinstance(step, int):
            path.append(step)
            at = at[step] if step < len(at) else None
    if path and isinstance(path[-1], str) and path[-1] in ("str", "int") and loc[-1] == path[-1]:
        path.pop()  # a type's name behind an object
    return path
