"""The server: the OpenAI API over models of a set, its page, its health and metrics (Starlette, uvicorn)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from hasten.errors import HastenError
from hasten.serving.access import Guard
from hasten.serving.answer_group import AnswerGroup
from hasten.serving.api.answers import DONE, AnswerShape, ChatChoice, CompletionChoice, event, to_text, usage_of
from hasten.serving.api.bodies import Body, ChatBody, CompletionBody, EmbeddingBody, SchemaFormat, read_body
from hasten.serving.api.errors import ApiError, busy
from hasten.serving.engine import QueueFull
from hasten.serving.metrics import CONTENT_TYPE, Metrics
from hasten.serving.models import Entry, ModelSet, ServedModel
from hasten.serving.page import page_response
from hasten.serving.request import Constraint, Request
from hasten.serving.templates import tokens_of
from hasten.serving.tools import forced_schema, strict_calls_grammar

logger = logging.getLogger("hasten.serve")

# How long the head and the body of a request may take, and how long a connection may be idle.
_HEAD_SECONDS, _BODY_SECONDS, _IDLE_SECONDS = 20.0, 60.0, 30
_GONE = 499
"""Told in metrics where nobody was there any more to take a response."""


@dataclass(frozen=True)
class ServerSettings:
    """What a server lets in.

    Attributes:
        key: that requests must have, or None.
        hosts: names that it answers to, besides addresses and ``localhost``.
        origins: of web pages that may ask.
        most_body: bytes of a request's body.
        most_connections: at a time.
        grace: seconds that running answers have when the server ends.
    """

    key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    most_body: int = 8 << 20
    most_connections: int = 1024
    grace: float = 5.0


Made = TypeVar("Made")
Endpoint = Callable[[HttpRequest], Awaitable[Any]]


class Api:
    """What a server answers.

    Args:
        models: that it has.
        settings: what it lets in.
    """

    def __init__(self, models: ModelSet, settings: ServerSettings) -> None:
        self.models, self.settings, self.metrics = models, settings, Metrics()
        self._running: set[AnswerGroup] = set()
        self._ending = False
        # Few: what each takes to read a long text is many times that text.
        self._workers = ThreadPoolExecutor(4, "hasten requests")
        routes = [
            Route("/", self._page, methods=["GET"]),
            Route("/health", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/v1/models", self._models, methods=["GET"]),
            Route("/v1/models/{name:path}", self._model, methods=["GET"]),
            Route("/v1/chat/completions", _told(self._chat), methods=["POST"]),
            Route("/v1/completions", _told(self._completions), methods=["POST"]),
            Route("/v1/embeddings", _told(self._embeddings), methods=["POST"]),
        ]
        handlers: Any = {ApiError: _api_error, HTTPException: _http_error, Exception: _unexpected}
        self._app = Starlette(routes=routes, exception_handlers=handlers, lifespan=self._lifespan)
        self._app.router.redirect_slashes = False
        self._paths = {r.path for r in routes}
        self._guard = Guard(self._app, settings.hosts, settings.origins, settings.key)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As an ASGI application."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        status, path, started = _GONE, scope["path"], time.perf_counter()
        counted = path if path in self._paths else "/v1/models/{name}" if path.startswith("/v1/models/") else "other"

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.metrics.under_way += 1
        try:
            await self._guard(scope, receive, sending)
        finally:
            self.metrics.under_way -= 1
            status = _GONE if scope.get("hasten.gone") else status
            self.metrics.responded(counted, status)
            seconds = time.perf_counter() - started
            logger.debug("%s %s %d %.3f s", scope["method"], path[:200], status, seconds)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await self.models.close()
        self._workers.shutdown()

    async def _page(self, request: HttpRequest) -> Response:
        return page_response()

    async def _health(self, request: HttpRequest) -> Response:
        entries = self.models.entries.values()
        health: dict[str, Any] = {"status": "loading" if any(e.state == "loading" for e in entries) else "ok"}
        if self._guard.knows(request.scope):
            health["models"] = {e.source.name: _state(e) for e in entries}
        return JSONResponse(health)

    async def _metrics(self, request: HttpRequest) -> Response:
        return Response(self.metrics.text(self.models), headers={"Content-Type": CONTENT_TYPE})

    async def _models(self, request: HttpRequest) -> Response:
        return JSONResponse({"object": "list", "data": [_described(e) for e in self.models.entries.values()]})

    async def _model(self, request: HttpRequest) -> Response:
        return JSONResponse(_described(self.models.entry(request.path_params["name"])))

    async def _embeddings(self, request: HttpRequest) -> Any:
        body = await self._read(EmbeddingBody, request)
        self.models.entry(body.model)
        raise ApiError(
            400,
            f"{body.model} continues text and gives no embeddings: a model made for them would (all-MiniLM, bge), "
            "and hasten serves models that continue text alone",
            param="model",
            code="model_gives_no_embeddings",
        )

    async def _chat(self, request: HttpRequest) -> Any:
        body = await self._read(ChatBody, request)
        async with contextlib.AsyncExitStack() as stack:
            loaded = await stack.enter_async_context(self.models.use(body.model))
            asked = await self._aside(_chat_requests, body, loaded)
            choices = self._submitted(loaded, asked, stack)
            names = [t.function.name for t in body.tools_in_use]
            several = body.parallel_tool_calls is not False
            made = [
                ChatChoice(
                    i, names, loaded.engine.end_tokens, bool(body.logprobs), several, loaded.template.calls_by_brackets
                )
                for i in range(len(asked))
            ]
            answer = AnswerShape("chat.completion", body.model, body.usage_wanted)

            def add(index: int, part: Any) -> list[dict[str, Any]]:
                return made[index].add(part)

            running = _Running(self, body.model, choices, answer, add, [c.whole for c in made], len(asked))
            return await running.respond(request, bool(body.stream), body.usage_wanted, stack)

    async def _completions(self, request: HttpRequest) -> Any:
        body = await self._read(CompletionBody, request)
        async with contextlib.AsyncExitStack() as stack:
            loaded = await stack.enter_async_context(self.models.use(body.model))
            asked, echoes = await self._aside(_completion_requests, body, loaded)
            choices = self._submitted(loaded, asked, stack)
            ends = loaded.engine.end_tokens
            made = [CompletionChoice(i, ends, body.logprobs, echo) for i, echo in enumerate(echoes)]
            answer = AnswerShape("text_completion", body.model, body.usage_wanted)

            def add(index: int, part: Any) -> list[dict[str, Any]]:
                return made[index].add(part, choices.answer(index).prompt_logprobs)

            running = _Running(self, body.model, choices, answer, add, [c.whole for c in made], body.n or 1)
            return await running.respond(request, bool(body.stream), body.usage_wanted, stack)

    def end(self) -> None:
        """Cancels all that runs: whoever waits is told that the server ends."""
        self._ending = True
        for choices in list(self._running):
            choices.cancel()

    def _submitted(
        self, loaded: ServedModel, asked: Sequence[Request], stack: contextlib.AsyncExitStack
    ) -> AnswerGroup:
        """Answers that are made until ``stack`` ends.

        Raises:
            QueueFull: too many requests wait.
            ApiError: they cannot be answered.
        """
        if self._ending:
            raise busy("the server ends", 5, status=503)
        try:
            choices = AnswerGroup(loaded.engine, asked)
        except QueueFull:
            raise
        except HastenError as error:
            raise ApiError(400, str(error)) from None
        self._running.add(choices)
        stack.callback(self._running.discard, choices)
        stack.callback(choices.cancel)
        return choices

    async def _aside(self, work: Callable[..., Made], *given: Any) -> Made:
        """Runs what takes a while beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work, *given)

    async def _read(self, kind: type[Body], request: HttpRequest) -> Body:
        """
        Raises:
            ApiError: it is too long, too slow, or wrong.
        """
        most = self.settings.most_body
        too_long = ApiError(413, f"the body is longer than {most:,} bytes: send less", code="body_too_long")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_long
        raw = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                async for piece in request.stream():
                    raw += piece
                    if len(raw) > most:
                        raise too_long
        except TimeoutError:
            raise ApiError(408, f"the body did not come within {_BODY_SECONDS:.0f} s", code="timeout") from None
        return read_body(kind, bytes(raw))


class _Running:
    """Answers to one request, on their way.

    Args:
        api: whose metrics are told.
        model: its name.
        choices: the answers.
        answer: their common shape.
        add: takes a part, and gives choices of chunks.
        wholes: the choices of an answer that does not stream.
        answers_of_a_prompt: that stand together.
    """

    def __init__(
        self,
        api: Api,
        model: str,
        choices: AnswerGroup,
        answer: AnswerShape,
        add: Callable[[int, Any], list[dict[str, Any]]],
        wholes: Sequence[Callable[[], dict[str, Any]]],
        answers_of_a_prompt: int,
    ) -> None:
        self._api, self._model, self._choices, self._answer = api, model, choices, answer
        self._add, self._wholes, self._together = add, wholes, answers_of_a_prompt

    async def respond(
        self, request: HttpRequest, stream: bool, with_usage: bool, stack: contextlib.AsyncExitStack
    ) -> Any:
        """The response; of a stream its end, too, is what ``stack`` holds until then.

        Raises:
            ApiError: an answer came to an error.
        """
        if stream:
            return EventStream(self._events(with_usage), self._choices.cancel, stack.pop_all())
        async with _watched(request.receive, self._choices.cancel) as gone:
            async for index, part in self._choices.parts():
                if part.finish == "cancelled" and gone.done():
                    return Response(status_code=_GONE)
                self._add(index, part)
                self._count(index, part)
        body = to_text(self._answer.whole([whole() for whole in self._wholes], self._usage()))
        return Response(body, media_type="application/json")

    async def _events(self, with_usage: bool) -> AsyncIterator[bytes]:
        try:
            async for index, part in self._choices.parts():
                for choice in self._add(index, part):
                    yield self._answer.chunk([choice])
                self._count(index, part)
        except Exception as error:  # the head has gone already: the API's clients look for this
            yield event(as_api_error(error).body)
            return
        if with_usage:
            yield self._answer.chunk([], self._usage())
        yield DONE

    def _usage(self) -> dict[str, Any]:
        return usage_of(*self._choices.usage(self._together))

    def _count(self, index: int, part: Any) -> None:
        if part.finish in ("stop", "length"):
            self._api.metrics.answered(self._model, self._choices.answer(index).usage)


class EventStream:
    """A response of server-sent events; whoever leaves ends what makes them.

    Args:
        events: bytes of them.
        cancel: called when nobody listens any more.
        held: closed at the end.
    """

    def __init__(
        self, events: AsyncIterator[bytes], cancel: Callable[[], None], held: contextlib.AsyncExitStack
    ) -> None:
        self._events, self._cancel, self._held = events, cancel, held

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with self._held:
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-cache"),
                (b"x-accel-buffering", b"no"),
            ]
            async with _watched(receive, self._cancel) as gone:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                async for one in self._events:
                    if gone.done():
                        scope["hasten.gone"] = True
                        return
                    await send({"type": "http.response.body", "body": one, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})


@contextlib.asynccontextmanager
async def _watched(receive: Any, cancel: Callable[[], None]) -> AsyncIterator[asyncio.Task[None]]:
    """Within it ``cancel`` is called as soon as the client has gone; gives a task that is done then."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        cancel()

    task = asyncio.create_task(left())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def _told(endpoint: Endpoint) -> Endpoint:
    """An endpoint whose errors are the API's."""

    async def answered(request: HttpRequest) -> Any:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=_GONE)
        except Exception as error:
            return _response_of(as_api_error(error))

    return answered


def as_api_error(error: Exception) -> ApiError:
    """Any error as the API tells it; what nobody has foreseen is logged, and not told to strangers."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return busy(str(error), error.retry_after)
    if isinstance(error, HastenError):
        return ApiError(500, str(error), code="answer_failed")
    logger.error("unexpected %s", type(error).__name__, exc_info=error)
    return ApiError(500, "the server met an error that nobody has foreseen: its log says more", code="internal_error")


def _response_of(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def _api_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _response_of(error)


async def _http_error(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    method, path = request.method, request.url.path[:200]
    told = f"there is no {method} {path}" if error.status_code in (404, 405) else str(error.detail)
    return _response_of(ApiError(error.status_code, told, code="unknown_url", headers=error.headers))


async def _unexpected(request: HttpRequest, error: Exception) -> Response:
    return _response_of(as_api_error(error))


def _state(entry: Entry) -> dict[str, Any]:
    told: dict[str, Any] = {"state": entry.state, "requests": entry.users, "bytes": entry.bytes}
    if entry.note:
        told["doing"] = entry.note
    if entry.error:
        told["error"] = entry.error
    return told


def _described(entry: Entry) -> dict[str, Any]:
    told: dict[str, Any] = {"id": entry.source.name, "object": "model", "created": entry.created, "owned_by": "hasten"}
    told["state"] = entry.state
    if entry.loaded is not None:
        told["context_length"] = entry.loaded.engine.most_tokens
        own = entry.loaded.recommended
        told["recommended"] = {"temperature": min(own.temperature, 2.0), "top_p": own.top_p}
    return told


def _chat_requests(body: ChatBody, loaded: ServedModel) -> list[Request]:
    """
    Raises:
        ApiError: the model cannot be asked this.
    """
    if not loaded.template.exists:
        raise ApiError(
            400, f"{body.model} has no chat template: use /v1/completions, or a model made to chat", param="messages"
        )
    if body.tools and not loaded.template.takes_tools:
        raise ApiError(
            400, f"the chat template of {body.model} has no place for tools: leave them out", param="tools",
            code="unsupported_parameter",
        )  # fmt: skip
    try:
        prompt = loaded.template.tokens(body.messages, body.tools_in_use, loaded.engine.most_tokens)
    except HastenError as error:
        raise ApiError(400, str(error), param="messages") from None
    _check_length(prompt, loaded, "messages")
    shared = Request(
        prompt=prompt,
        max_tokens=body.most_tokens,
        sampling=body.sampling(loaded.sampling),
        stop=body.stops,
        ignore_end=bool(body.ignore_eos),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    _check_bias(shared, loaded)
    constraint = _constraint(body, loaded)
    return list(_varied(shared, body.n or 1, constraint))


def _completion_requests(body: CompletionBody, loaded: ServedModel) -> tuple[list[Request], list[str | None]]:
    """Requests, and of each what is given back before its answer.

    Raises:
        ApiError: the model cannot be asked this.
    """
    asked: list[Request] = []
    echoes: list[str | None] = []
    for given in body.prompts:
        prompt = _prompt_tokens(given, loaded)
        _check_length(prompt, loaded, "prompt", answers=body.max_tokens != 0)
        text = given if isinstance(given, str) else loaded.tokenizer.decode(prompt, skip_special_tokens=False)
        shared = Request(
            prompt=prompt,
            max_tokens=16 if body.max_tokens is None else body.max_tokens,
            sampling=body.sampling(loaded.sampling),
            stop=body.stops,
            ignore_end=bool(body.ignore_eos),
            logprobs=body.logprobs,
            prompt_logprobs=body.logprobs if body.echo else None,
        )
        _check_bias(shared, loaded)
        asked += _varied(shared, body.n or 1, None)
        echoes += [text if body.echo else None] * (body.n or 1)
    return asked, echoes


def _prompt_tokens(given: str | list[int], loaded: ServedModel) -> tuple[int, ...]:
    """
    Raises:
        ApiError: there is no token, or one that the model has not.
    """
    if isinstance(given, str):
        prompt = tokens_of(loaded.tokenizer, given, loaded.engine.most_tokens)
    else:
        prompt = tuple(given)
    most = loaded.engine.vocabulary
    wrong = next((t for t in prompt if not 0 <= t < most), None)
    if wrong is not None:
        raise ApiError(400, f"prompt has token {wrong}, and the model's are 0 to {most - 1}", param="prompt")
    if not prompt:
        # Nothing at all is what stands behind a beginning of text.
        begin = loaded.tokenizer.bos_token_id
        ends = loaded.engine.end_tokens
        if begin is None and not ends:
            raise ApiError(400, "the prompt has no token: give a text", param="prompt")
        prompt = (int(ends[0] if begin is None else begin),)
    return prompt


def _check_length(prompt: Sequence[int], loaded: ServedModel, param: str, answers: bool = True) -> None:
    most = loaded.engine.most_tokens
    if len(prompt) + answers > most:
        raise ApiError(
            400,
            f"the prompt has {len(prompt):,} tokens or more, and at most {most:,} go with an answer: make it shorter",
            param=param,
            code="context_length_exceeded",
        )


def _check_bias(request: Request, loaded: ServedModel) -> None:
    most = loaded.engine.vocabulary
    wrong = next((t for t in request.sampling.logit_bias if t >= most), None)
    if wrong is not None:
        raise ApiError(400, f"logit_bias names token {wrong}, and the model's are 0 to {most - 1}", param="logit_bias")


def _varied(shared: Request, count: int, constraint: Callable[[], Constraint] | None) -> Iterator[Request]:
    """The same request as often as asked: each with a seed of its own, and its own place in the format."""
    for number in range(count):
        seed = shared.sampling.seed
        sampling = shared.sampling if seed is None else replace(shared.sampling, seed=(seed + number) % 2**63)
        yield replace(shared, sampling=sampling, constraint=None if constraint is None else constraint())


def _constraint(body: ChatBody, loaded: ServedModel) -> Callable[[], Constraint] | None:
    """What makes the format that an answer must have.

    Raises:
        ApiError: the format cannot be held to.
    """
    calls = body.tool_choice not in (None, "none", "auto")
    if calls:
        several = body.parallel_tool_calls is not False and body.tool_choice == "required"
        schema, param = forced_schema(body.tools_in_use, body.tool_choice, several), "tools"
    elif any(tool.function.strict for tool in body.tools_in_use):
        return _strict_calls(body, loaded)
    elif body.response_format is None or body.response_format.type == "text":
        return None
    elif isinstance(body.response_format, SchemaFormat):
        schema = body.response_format.json_schema.schema_ or {"type": "object"}
        param = "response_format.json_schema.schema"
    else:
        schema, param = {"type": "object"}, "response_format"

    def make() -> Constraint:
        try:
            return loaded.grammars.json_schema(schema, narrow=calls)
        except HastenError as error:
            raise ApiError(400, f"{param} cannot be held to: {error}", param=param, code="invalid_schema") from None

    return make


def _strict_calls(body: ChatBody, loaded: ServedModel) -> Callable[[], Constraint]:
    """
    Raises:
        ApiError: calls that need not be cannot be held to a schema in this model's form of them.
    """
    number = next(i for i, tool in enumerate(body.tools_in_use) if tool.function.strict)
    param, template = f"tools[{number}].function.strict", loaded.template
    if not template.calls_by_tags:
        told = f"{param} needs tool_choice required, or a function's name, with this model: give one, or leave it out"
        raise ApiError(400, told, param=param, code="unsupported_parameter")
    if body.response_format is not None and body.response_format.type != "text":
        raise ApiError(400, f"{param} and response_format do not go together: leave one out", param=param)
    grammar = strict_calls_grammar(body.tools_in_use, template.call_tags_are_tokens)

    def make() -> Constraint:
        try:
            return loaded.grammars.lark(grammar)
        except HastenError as error:
            raise ApiError(400, f"{param} cannot be held to: {error}", param=param, code="invalid_schema") from None

    return make


class _Protocol(H11Protocol):
    """uvicorn's, with a limit on how long a request's head may take."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_for_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._answering:
            self._stop_waiting()
        elif self._head is None:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_head(self) -> None:
        self._head = self.loop.call_later(_HEAD_SECONDS, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_slow(self) -> None:
        self._head = None
        if not self._answering and not self.transport.is_closing():
            self.transport.close()


class _Uvicorn(uvicorn.Server):
    """uvicorn, without raising signals once more when it has ended."""

    stopped_by: int | None = None
    grace: float = 0.0

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        last = loop.call_later(self.grace, self.config.app.end)  # type: ignore[union-attr]
        try:
            await super().shutdown(sockets)
        finally:
            last.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {s: signal.signal(s, self.handle_exit) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.stopped_by is None:
            logger.info("ending: answers that run may end within %g s", self.grace)
        self.stopped_by = sig
        super().handle_exit(sig, frame)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that nobody else has.

    Raises:
        HastenError: somebody has it, it needs rights, or no such address is this machine's.
    """
    with contextlib.ExitStack() as stack:
        try:
            family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            found = stack.enter_context(socket.socket(family, kind, proto))
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
        except (OSError, UnicodeError, OverflowError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise HastenError(f"cannot listen on {host}:{port}: {why.lower()} (see --host and --port)") from None
        stack.pop_all()
        return found


class Server:
    """A server on a socket.

    Args:
        models: that it has.
        settings: what it lets in.
        listener: from `bound_socket`.
    """

    def __init__(self, models: ModelSet, settings: ServerSettings, listener: socket.socket) -> None:
        self.api = Api(models, settings)
        self._listener = listener
        config = uvicorn.Config(
            self.api,
            http=_Protocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=64 << 10,
            limit_concurrency=settings.most_connections,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=round(settings.grace) + 10,  # of those, too, that are told that it ends
        )
        self._uvicorn = _Uvicorn(config)
        self._uvicorn.grace = settings.grace

    @property
    def port(self) -> int:
        """That it listens on."""
        return int(self._listener.getsockname()[1])

    def run(self) -> int | None:
        """Serves until it is stopped; returns the number of the signal that did."""
        asyncio.run(self._uvicorn.serve(sockets=[self._listener]))
        return self._uvicorn.stopped_by

    def stop(self) -> None:
        """Ends it, from any thread."""
        self._uvicorn.should_exit = True
