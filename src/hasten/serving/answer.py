"""An answer as it comes: written by the engine's thread, read by whoever asked, in a thread or an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

from hasten.errors import HastenError
from hasten.serving.request import AnswerPart, TokenLogprob, Usage


@dataclass
class AnswerRecord:
    """What the engine and a reader share of one answer; the engine alone writes, but for `cancelled`.

    Attributes:
        prompt: tokens of the prompt.
        cached: of these how many were found read already.
        completion: tokens made.
        prompt_logprobs: of the prompt's tokens, where asked for, once the prompt has been read.
        cancelled: whether nobody waits any more.
        created, first, ended: ``time.perf_counter()`` of the request, its first token and its end.
    """

    prompt: int
    cached: int = 0
    completion: int = 0
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    cancelled: bool = False
    created: float = field(default_factory=time.perf_counter)
    first: float | None = None
    ended: float | None = None

    def __post_init__(self) -> None:
        self._parts: list[AnswerPart] = []
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._listeners: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def put(self, part: AnswerPart) -> None:
        """Adds a part; one with a ``finish`` is the last."""
        if part.tokens and self.first is None:
            self.first = time.perf_counter()
        self.completion += len(part.tokens)
        with self._changed:
            self._parts.append(part)
            if part.finish is not None:
                self.ended = time.perf_counter()
            self._tell()

    def fail(self, error: Exception) -> None:
        """Ends the answer with an error, which every reader is raised."""
        with self._changed:
            self._error = error
            self.ended = time.perf_counter()
            self._tell()

    def _tell(self) -> None:
        self._changed.notify_all()
        listeners, self._listeners = self._listeners, []
        for loop, event in listeners:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:
                pass  # that loop is closed: nobody listens there

    def wait(self, index: int, deadline: float | None) -> AnswerPart:
        """Part number ``index``, waited for.

        Raises:
            TimeoutError: it has not come by ``deadline``, a ``time.monotonic()``.
        """
        with self._changed:
            while not self._ready(index):
                left = None if deadline is None else deadline - time.monotonic()
                if (left is not None and left <= 0) or not self._changed.wait(left):
                    raise TimeoutError("the answer has not ended in time")
            return self._at(index)

    async def wait_async(self, index: int) -> AnswerPart:
        """As `wait`, for a coroutine."""
        while True:
            with self._changed:
                if self._ready(index):
                    return self._at(index)
                event = asyncio.Event()
                self._listeners.append((asyncio.get_running_loop(), event))
            await event.wait()

    def _ready(self, index: int) -> bool:
        return index < len(self._parts) or self._error is not None

    def _at(self, index: int) -> AnswerPart:
        if index < len(self._parts):
            return self._parts[index]
        assert self._error is not None
        raise _again(self._error)

    def usage(self) -> Usage:
        """Of the request so far."""
        with self._changed:
            until = time.perf_counter() if self.ended is None else self.ended
            to_first = None if self.first is None else self.first - self.created
            return Usage(self.prompt, self.cached, self.completion, to_first, until - self.created)


def _again(error: Exception) -> Exception:
    """An error of one's own for each reader: a traceback is the raiser's."""
    if isinstance(error, HastenError):
        copy = HastenError(str(error))
        copy.__cause__ = error.__cause__
        return copy
    return error


class AnswerStream:
    """An answer as it comes.

    Iterate it (``for`` or ``async for``) for its parts, from the first one each time; ``result()``, or ``await``, gives
    all of them joined. Once nobody holds it any more the engine stops making it.

    >>> parts = engine.submit(Request(prompt=(1, 2, 3)))  # doctest: +SKIP
    >>> for part in parts:  # doctest: +SKIP
    ...     print(part.text, end="")

    Raises:
        HastenError: while it is read, where the answer came to an error.
    """

    def __init__(self, record: AnswerRecord) -> None:
        self._record = record

    def __iter__(self) -> Iterator[AnswerPart]:
        index = 0
        while True:
            part = self._record.wait(index, None)
            yield part
            if part.finish is not None:
                return
            index += 1

    async def __aiter__(self) -> AsyncIterator[AnswerPart]:
        index = 0
        while True:
            part = await self._record.wait_async(index)
            yield part
            if part.finish is not None:
                return
            index += 1

    def result(self, timeout: float | None = None) -> AnswerPart:
        """All parts joined, waited for.

        Args:
            timeout: seconds at most; None: as long as it takes.

        Raises:
            TimeoutError: it has not ended in time; it goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        parts: list[AnswerPart] = []
        while not parts or parts[-1].finish is None:
            parts.append(self._record.wait(len(parts), deadline))
        return _joined(parts)

    def __await__(self) -> Generator[Any, None, AnswerPart]:
        return self._result_async().__await__()

    async def _result_async(self) -> AnswerPart:
        return _joined([part async for part in self])

    def cancel(self) -> None:
        """Ends it within a step; its last part then says so. Nothing where it has ended."""
        self._record.cancelled = True

    @property
    def usage(self) -> Usage:
        """Tokens and seconds so far."""
        return self._record.usage()

    @property
    def prompt_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of each token of the prompt, where the request asked for them; there with the first part."""
        return self._record.prompt_logprobs

    def __del__(self) -> None:
        self.cancel()


def _joined(parts: list[AnswerPart]) -> AnswerPart:
    return AnswerPart(
        "".join(p.text for p in parts),
        tuple(t for p in parts for t in p.tokens),
        tuple(x for p in parts for x in p.logprobs),
        parts[-1].finish,
    )
