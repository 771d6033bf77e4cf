"""The server by the real client of the OpenAI API, and by bare HTTP where that client would not do such a thing."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from hasten.serving.loading import load_model
from hasten.serving.server import ServerSettings
from hasten.serving.templates import tokens_of

ASKED = [{"role": "user", "content": "hello"}]
GREEDY = {"model": "talker", "messages": ASKED, "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def server(talkers: Path, serving: Any) -> Iterator[Any]:
    models = serving.model_set(talkers / "talker", talkers / "plain", most_running=4, most_waiting=4)
    with serving.running(models, ServerSettings(most_body=100_000, grace=1)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found


@pytest.fixture(scope="module")
def tokenizer(talkers: Path) -> Any:
    return load_model(talkers / "talker").tokenizer


def chunks(stream: Any) -> tuple[str, str, list[Any]]:
    """(text, why it ended, all chunks)."""
    found = list(stream)
    choices = [c.choices[0] for c in found if c.choices]
    text = "".join((c.delta.content or "") if hasattr(c, "delta") else c.text for c in choices)
    return text, choices[-1].finish_reason, found


def refused(call: Callable[[], Any], status: int = 400) -> Any:
    """The error that a call met, as the client read it."""
    with pytest.raises(openai.APIStatusError) as error:
        call()
    assert error.value.status_code == status, error.value.body
    body: Any = error.value.body
    assert set(body) == {"message", "type", "param", "code"}
    assert "\n" not in body["message"]
    return body


def test_an_answer_is_the_same_whole_and_in_a_stream(client: openai.OpenAI, tokenizer: Any) -> None:
    whole = client.chat.completions.create(**GREEDY)  # type: ignore[call-overload]
    text, finish, found = chunks(
        client.chat.completions.create(**GREEDY, stream=True, stream_options={"include_usage": True})  # type: ignore[call-overload]
    )
    assert len(text) > 5
    assert text == whole.choices[0].message.content
    assert finish == whole.choices[0].finish_reason == "length"
    assert found[0].choices[0].delta.role == "assistant"
    assert {c.id for c in found} == {found[0].id}
    assert found[-1].choices == []
    assert all(c.usage is None for c in found[:-1])
    usage = found[-1].usage
    prompt = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, tokenize=False)
    assert usage.prompt_tokens == len(tokenizer(prompt).input_ids) == whole.usage.prompt_tokens
    assert usage.completion_tokens == 24
    assert usage.total_tokens == usage.prompt_tokens + 24
    assert usage.prompt_tokens_details.cached_tokens >= 0
    assert all(c.usage is None for c in client.chat.completions.create(**GREEDY, stream=True))  # type: ignore[call-overload]


def test_the_asynchronous_client(server: Any) -> None:
    async def both() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            whole = await client.chat.completions.create(**GREEDY)  # type: ignore[call-overload]
            stream = await client.chat.completions.create(**GREEDY, stream=True)  # type: ignore[call-overload]
            return whole.choices[0].message.content, "".join([c.choices[0].delta.content or "" async for c in stream])

    whole, streamed = asyncio.run(both())
    assert whole == streamed


def test_a_completion_is_what_the_model_generates(client: openai.OpenAI, talkers: Path) -> None:
    model = load_model(talkers / "talker")
    ids = model.tokenizer("some text", return_tensors="pt").input_ids
    made = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    expected = model.tokenizer.decode(made, skip_special_tokens=True)
    for prompt in ("some text", ids[0].tolist()):
        found = client.completions.create(model="talker", prompt=prompt, max_tokens=12, temperature=0)
        assert found.choices[0].text == expected
    text, finish, _ = chunks(
        client.completions.create(model="talker", prompt="some text", max_tokens=12, temperature=0, stream=True)
    )
    assert (text, finish) == (expected, "length")
    assert len(client.completions.create(model="talker", prompt="a", temperature=0).usage.model_dump()) > 2  # type: ignore[union-attr]


def test_lists_of_prompts_and_several_answers_of_each(client: openai.OpenAI, tokenizer: Any) -> None:
    prompts = [f"number {n}" for n in range(9)]
    asked: Any = {"model": "talker", "max_tokens": 4, "temperature": 0, "extra_body": {"ignore_eos": True}}
    alone = [client.completions.create(**asked, prompt=p).choices[0].text for p in prompts]
    found = client.completions.create(**asked, prompt=prompts, n=2)
    assert [c.index for c in found.choices] == list(range(18))
    assert [c.text for c in found.choices] == [text for text in alone for _ in range(2)]
    assert found.usage is not None
    assert found.usage.prompt_tokens == sum(len(tokenizer(p).input_ids) for p in prompts)
    assert found.usage.completion_tokens == 72
    stream = client.completions.create(**asked, prompt=prompts, stream=True)
    texts = [""] * 9
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == alone
    ids = [tokenizer(p).input_ids for p in prompts[:2]]
    by_ids = client.completions.create(**asked, prompt=ids)
    assert [c.text for c in by_ids.choices] == alone[:2]


def test_seeds(client: openai.OpenAI) -> None:
    asked = {**GREEDY, "temperature": 1.0, "n": 3, "seed": 7}
    first, again = (client.chat.completions.create(**asked) for _ in range(2))  # type: ignore[call-overload]
    texts = [c.message.content for c in first.choices]
    assert texts == [c.message.content for c in again.choices]
    assert len(set(texts)) == 3
    negative = client.chat.completions.create(**{**asked, "seed": -1})  # type: ignore[call-overload]
    assert [c.message.content for c in negative.choices] != texts


def test_a_stop_text_split_over_tokens_is_never_shown(client: openai.OpenAI) -> None:
    text = client.completions.create(model="talker", prompt="ab", max_tokens=40, temperature=0).choices[0].text
    stop = next(text[i : i + 3] for i in range(8, 30) if "\ufffd" not in text[i : i + 3])
    expected = text[: text.index(stop)]
    asked: Any = {"model": "talker", "prompt": "ab", "max_tokens": 40, "temperature": 0}
    for stops in (stop, ["never in it", stop]):
        found = client.completions.create(**asked, stop=stops).choices[0]
        assert (found.text, found.finish_reason) == (expected, "stop")
        streamed, finish, _ = chunks(client.completions.create(**asked, stop=stops, stream=True))
        assert (streamed, finish) == (expected, "stop")


def test_characters_come_whole(client: openai.OpenAI) -> None:
    said = "héllo ✓ 😀 ab"
    shape: Any = {"type": "json_schema", "json_schema": {"name": "said", "schema": {"const": said}}}
    text, finish, found = chunks(
        client.chat.completions.create(
            model="talker",
            messages=ASKED,
            temperature=0,
            response_format=shape,
            stream=True,  # type: ignore[arg-type]
        )
    )
    assert json.loads(text) == said
    assert finish == "stop"
    assert not any("\ufffd" in (c.choices[0].delta.content or "") for c in found)
    assert len(found) > 10


class Person(BaseModel):
    name: Literal["Ann", "Bob"]
    age: Literal[30, 40]
    married: bool


def test_answers_of_a_format(client: openai.OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="talker", messages=ASKED, response_format=Person, temperature=1, seed=3  # type: ignore[arg-type]
    )  # fmt: skip
    assert isinstance(parsed.choices[0].message.parsed, Person)
    schema = {
        "type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}}, "required": ["a", "b"],
        "additionalProperties": False,
    }  # fmt: skip
    shape: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    for seed in range(4):
        found = client.chat.completions.create(
            model="talker",
            messages=ASKED,
            response_format=shape,
            temperature=1,
            seed=seed,  # type: ignore[arg-type]
        )
        read = json.loads(found.choices[0].message.content or "")
        assert read["a"] in ("x", "y")
        assert isinstance(read["b"], bool)
        assert found.choices[0].finish_reason == "stop"
    some = client.chat.completions.create(
        model="talker",
        messages=ASKED,
        response_format={"type": "json_object"},
        temperature=0,
        max_tokens=5,  # type: ignore[arg-type]
    )
    assert (some.choices[0].message.content or "").startswith("{")


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather", "description": "of a place",
        "parameters": {
            "type": "object", "properties": {"place": {"$ref": "#/$defs/Place"}}, "required": ["place"],
            "additionalProperties": False, "$defs": {"Place": {"enum": ["Oslo", "Rome"]}},
        },
    },
}  # fmt: skip
CLOCK: Any = {"type": "function", "function": {"name": "clock"}}


def test_tools(client: openai.OpenAI, tokenizer: Any) -> None:
    asked: Any = {"model": "talker", "messages": ASKED, "temperature": 0, "tools": [WEATHER, CLOCK]}
    named = {"type": "function", "function": {"name": "weather"}}
    message = client.chat.completions.create(**asked, tool_choice=named).choices[0].message
    (call,) = message.tool_calls or []
    assert message.content is None
    assert call.id.startswith("call_")
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["place"] in ("Oslo", "Rome")
    stream = list(client.chat.completions.create(**asked, tool_choice=named, stream=True))
    deltas = [d for c in stream for d in c.choices[0].delta.tool_calls or []]
    assert [d.function.name for d in deltas] == ["weather"]
    assert stream[-1].choices[0].finish_reason == "tool_calls"
    one = client.chat.completions.create(**asked, tool_choice="required", parallel_tool_calls=False).choices[0]
    assert one.finish_reason == "tool_calls"
    assert len(one.message.tool_calls or []) == 1
    # What was called is part of the talk, and the template is given it.
    talk: Any = [
        {"role": "developer", "content": "be brief"}, *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "rain"}]},
    ]  # fmt: skip
    found = client.chat.completions.create(model="talker", messages=talk, max_tokens=1, tools=[WEATHER])
    arguments = json.loads(call.function.arguments)
    written = (
        f"<|system|>Tools: {json.dumps(WEATHER)}<|end|><|system|>be brief<|end|><|user|>hello<|end|><|assistant|>"
        f"<tool_call>{json.dumps({'name': 'weather', 'arguments': arguments})}</tool_call><|end|>"
        "<|tool|>rain<|end|><|assistant|>"
    )
    assert found.usage is not None
    assert abs(found.usage.prompt_tokens - len(tokenizer(written).input_ids)) <= 4  # the order of its keys
    none = client.chat.completions.create(**asked, tool_choice="none", max_tokens=1)
    assert none.usage is not None
    assert none.usage.prompt_tokens < 20


class Weather(BaseModel):
    """Of a place."""

    place: Literal["Oslo", "Rome"]


def test_strict_tools(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Weather, name="weather")]
    asked: Any = {"model": "talker", "messages": ASKED, "tools": tools, "max_tokens": 60}
    forced = client.chat.completions.parse(**asked, tool_choice="required", parallel_tool_calls=False).choices[0]
    (call,) = forced.message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Weather)
    free = client.chat.completions.create(**asked, temperature=0).choices[0]
    assert free.message.content
    assert free.finish_reason in ("stop", "length")


def test_log_probabilities(client: openai.OpenAI, tokenizer: Any) -> None:
    found = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)  # type: ignore[call-overload]
    told = found.choices[0].logprobs.content
    assert len(told) == 24
    for one in told:
        assert one.top_logprobs[0].logprob == one.logprob <= 0  # the likeliest was taken
        assert [t.logprob for t in one.top_logprobs] == sorted((t.logprob for t in one.top_logprobs), reverse=True)
    assert b"".join(bytes(one.bytes) for one in told).decode("utf-8", "replace") == found.choices[0].message.content
    streamed = client.chat.completions.create(**GREEDY, logprobs=True, stream=True)  # type: ignore[call-overload]
    again = [one for c in streamed if c.choices[0].logprobs for one in c.choices[0].logprobs.content]
    assert [one.logprob for one in again] == pytest.approx([one.logprob for one in told], abs=1e-5)
    assert again[0].top_logprobs == []


def test_what_evaluation_harnesses_ask_for(client: openai.OpenAI, talkers: Path) -> None:
    """Log-likelihoods of given tokens, as lm-eval's local-completions computes them, are the model's own."""
    import torch

    model = load_model(talkers / "talker")
    ids = [model.tokenizer(text).input_ids for text in ("a question: an answer", "héllo")]
    asked: Any = {"model": "talker", "prompt": ids, "temperature": 0, "echo": True, "seed": 1234}
    for most in (1, 0):
        found = client.completions.create(**asked, logprobs=1, max_tokens=most)
        for choice, prompt in zip(found.choices, ids, strict=True):
            assert choice.logprobs is not None
            mine = choice.logprobs.token_logprobs
            assert mine is not None
            assert len(mine) == len(prompt) + most
            with torch.inference_mode():
                logits = model(torch.tensor([prompt])).logits[0].float().log_softmax(-1)
            theirs = [float(logits[i, t]) for i, t in enumerate(prompt[1:])]
            assert mine[0] is None
            assert mine[1 : len(prompt)] == pytest.approx(theirs, abs=1e-4)
            tops = choice.logprobs.top_logprobs
            assert tops is not None
            greedy = [value == max(top.values()) for value, top in zip(mine[1:], tops[1:], strict=True)]
            assert greedy[: len(theirs)] == [int(logits[i].argmax()) == t for i, t in enumerate(prompt[1:])]
            assert choice.text.startswith(model.tokenizer.decode(prompt))
            if most == 0:
                assert choice.text == model.tokenizer.decode(prompt)
                assert choice.finish_reason == "length"
    text = "ab é"
    found = client.completions.create(model="talker", prompt=text, max_tokens=2, echo=True, logprobs=0, temperature=0)
    told = found.choices[0].logprobs
    assert told is not None
    assert (told.text_offset or [])[:4] == [0, 2, 3, 3]
    assert (told.tokens or [])[2:4] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert found.choices[0].text.startswith(text)


def test_what_a_message_may_be_made_of(client: openai.OpenAI) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    whole = client.chat.completions.create(**GREEDY)  # type: ignore[call-overload]
    in_parts = client.chat.completions.create(
        **{**GREEDY, "messages": parts}, user="me", metadata={"a": "b"}, store=True
    )  # type: ignore[call-overload]
    assert in_parts.choices[0].message.content == whole.choices[0].message.content
    longer = client.chat.completions.create(**{**GREEDY, "max_tokens": None}, max_completion_tokens=30)  # type: ignore[call-overload]
    assert longer.usage.completion_tokens == 30
    plain = client.chat.completions.create(**GREEDY, frequency_penalty=2, presence_penalty=2)  # type: ignore[call-overload]
    assert plain.choices[0].message.content != whole.choices[0].message.content
    biased = client.chat.completions.create(**GREEDY, logit_bias={"65": 100})  # type: ignore[call-overload]
    assert len(set(biased.choices[0].message.content)) == 1


def test_models(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["talker", "plain"]
    assert client.models.retrieve("talker").owned_by == "hasten"
    assert refused(lambda: client.models.retrieve("none"), 404)["code"] == "model_not_found"


CHAT_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": -0.1}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 1.5}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 3}, "max_tokens"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"seed": 2**63}, "seed"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"9999": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"extra_body": {"surprise": 1}}, "surprise"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "a", "mood": 1}]}, "messages[0].mood"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": "a " * 600}]}, "messages"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id"),
    ({"modalities": ["text", "audio"]}, "modalities[1]"),
    ({"audio": {"voice": "a", "format": "wav"}}, "audio"),
    ({"functions": [{"name": "a"}]}, "functions"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"extra_body": {"best_of": 2}}, "best_of"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [CLOCK, CLOCK]}, "tools"),
    ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "none"}}}, "tool_choice"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"response_format": {"type": "yaml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "odd"}}}},
     "response_format.json_schema.schema"),
    ({"model": "plain"}, "messages"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "param"), CHAT_WRONG, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_wrong_in_a_chat_is_named(client: openai.OpenAI, wrong: dict[str, Any], param: str) -> None:
    body = refused(lambda: client.chat.completions.create(**{**GREEDY, **wrong}))  # type: ignore[call-overload]
    assert body["param"] == param
    assert body["type"] == "invalid_request_error"


COMPLETION_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"suffix": "end"}, "suffix"),
    ({"best_of": 2}, "best_of"),
    ({"logprobs": 21}, "logprobs"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [5, 100_000]}, "prompt"),
    ({"prompt": [[5], [-1]]}, "prompt"),
    ({"prompt": ["a", 5]}, "prompt"),
    ({"prompt": "a" * 600}, "prompt"),
]


@pytest.mark.parametrize(("wrong", "param"), COMPLETION_WRONG, ids=lambda x: x if isinstance(x, str) else "")
def test_what_is_wrong_in_a_completion_is_named(client: openai.OpenAI, wrong: dict[str, Any], param: str) -> None:
    body = refused(lambda: client.completions.create(**{"model": "talker", "prompt": "a", **wrong}))  # type: ignore[call-overload]
    assert (body["param"] or "").partition("[")[0] == param


def test_models_that_are_not_there_and_what_a_model_cannot(client: openai.OpenAI) -> None:
    missing = refused(lambda: client.chat.completions.create(**{**GREEDY, "model": "gpt-4"}), 404)  # type: ignore[call-overload]
    assert (missing["param"], missing["code"]) == ("model", "model_not_found")
    embedding = refused(lambda: client.embeddings.create(model="talker", input="a"))
    assert embedding["param"] == "model"
    assert "made for them would" in embedding["message"]
    assert refused(lambda: client.embeddings.create(model="talker", input=[1.5]))["param"].startswith("input")  # type: ignore[list-item]
    assert client.completions.create(model="plain", prompt="a", max_tokens=1).choices


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b'"a"', b"\xff", b'{"model": "talker", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "talker", "temperature": NaN}', b'{"model": "talker", "prompt": "a", "temperature": 1e999}',
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
    ],
)  # fmt: skip
def test_what_is_no_body(server: Any, raw: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        with server.http() as http:
            found = http.post(path, content=raw)
        assert found.status_code == 400
        assert set(found.json()["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_too_long(server: Any) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"prompt": "'
        for _ in range(200):
            yield b"a" * 1000

    with server.http() as http:
        for content in (b" " * 100_001, pieces()):
            found = http.post("/v1/completions", content=content)
            assert found.status_code == 413
            assert found.json()["error"]["code"] == "body_too_long"


def test_what_there_is_not(server: Any) -> None:
    with server.http() as http:
        assert http.get("/v1/nothing").status_code == 404
        assert http.get("/v1/chat/completions").status_code == 405
        assert "error" in http.get("/v1/nothing").json()


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


LONG: Any = {"model": "talker", "prompt": "a", "max_tokens": 500, "extra_body": {"ignore_eos": True}}


def test_too_many_requests(server: Any, client: openai.OpenAI) -> None:
    engine = server.engine("talker")
    streams = [client.completions.create(**LONG, stream=True) for _ in range(8)]
    try:
        with server.http() as http:
            found = http.post("/v1/completions", json={"model": "talker", "prompt": "b"})
        if found.status_code == 200:  # some have ended already
            pytest.skip("this machine is too quick for it")
        assert found.status_code == 429
        assert int(found.headers["retry-after"]) >= 1
        assert found.json()["error"]["code"] == "rate_limit_exceeded"
    finally:
        for stream in streams:
            stream.close()
    wait_until(lambda: engine.metrics.running + engine.metrics.waiting == 0)


def test_whoever_leaves_makes_room(server: Any, client: openai.OpenAI) -> None:
    engine = server.engine("talker")
    before = engine.metrics.cancelled
    stream = client.completions.create(**LONG, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: engine.metrics.cancelled == before + 1)
    # Who waits for a whole answer, and goes.
    with socket.create_connection(("127.0.0.1", server.server.port)) as raw:
        body = json.dumps({"model": "talker", "prompt": "a", "max_tokens": 500, "ignore_eos": True}).encode()
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        wait_until(lambda: engine.metrics.running > 0)
    wait_until(lambda: engine.metrics.cancelled == before + 2)
    assert engine.metrics.running == 0
    with server.http() as http:
        assert 'status="499"' in http.get("/metrics").text


def test_many_at_once_are_answered_as_alone(client: openai.OpenAI) -> None:
    def ask(number: int) -> str:
        for _ in range(200):
            try:
                found = client.completions.create(
                    model="talker", prompt=f"question {number % 5}", max_tokens=10, temperature=0
                )
                return found.choices[0].text
            except openai.RateLimitError:
                time.sleep(0.02)
        raise AssertionError("never answered")

    alone = [ask(n) for n in range(5)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(30))) == [alone[n % 5] for n in range(30)]


def test_health_and_metrics(server: Any, client: openai.OpenAI) -> None:
    client.completions.create(model="talker", prompt="a", max_tokens=2)
    with server.http() as http:
        health = http.get("/health").json()
        assert health["status"] == "ok"
        assert health["models"]["talker"]["state"] == "loaded"
        metrics = http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = metrics.text.splitlines()
    assert metrics.text.endswith("\n")
    for line in lines:
        assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0
    described = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    assert len(described) == len([line for line in lines if line.startswith("# TYPE")])
    values = dict(line.rpartition(" ")[::2] for line in lines if not line.startswith("#"))
    assert float(values['hasten_engine_new_tokens_total{model="talker"}']) > 0
    assert float(values['hasten_answer_seconds_count{model="talker"}']) >= 1
    assert values['hasten_answer_seconds_bucket{model="talker",le="+Inf"}'] == values[
        'hasten_answer_seconds_count{model="talker"}'
    ]  # fmt: skip
    assert float(values['hasten_http_responses_total{path="/v1/completions",status="200"}']) >= 1


def test_the_page_asks_nobody_else(server: Any) -> None:
    with server.http() as http:
        page = http.get("/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "innerHTML" not in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_a_server_that_ends_cancels_what_runs(talkers: Path, serving: Any) -> None:
    models = serving.model_set(talkers / "talker")
    ended: list[str] = []
    with serving.running(models) as found, found.http() as http:
        asked = {"model": "talker", "prompt": "a", "max_tokens": 500, "stream": True, "ignore_eos": True}
        with http.stream("POST", "/v1/completions", json=asked) as response:
            lines = response.iter_lines()
            next(lines)
            found.server.stop()
            try:
                ended += list(lines)
            except httpx.HTTPError:
                pass
    loaded = models.entries["talker"].loaded
    assert loaded is not None
    assert not loaded.engine._thread.is_alive()
    if "data: [DONE]" not in ended:  # this machine is not so quick that the answer ended before
        assert '"code":"server_ends"' in [line for line in ended if line][-1]


def test_a_text_far_too_long_is_not_read_to_its_end(tokenizer: Any) -> None:
    class Counting:
        read = 0

        def __call__(self, text: str, **options: Any) -> Any:
            Counting.read += len(text)
            return tokenizer(text, **options)

    assert len(tokens_of(Counting(), "c" * 1_000_000, 512)) > 512
    assert Counting.read == 8 * 512
    assert tokens_of(Counting(), "ab" * 300, 512) == tuple(tokenizer("ab" * 300).input_ids)
