"""Several requests that are one to whoever asked: as many at a time as an engine runs, their parts in one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from hasten.serving.answer import AnswerStream
from hasten.serving.engine import Engine, QueueFull
from hasten.serving.request import AnswerPart, Request

# Of one question at a time; what else it asks for waits outside the engine's queue, so that others come to their turn.
_AT_A_TIME = 16


class AnswerGroup:
    """Answers to requests, numbered as these.

    The first ones are submitted at once, so that an engine that has no room for any says so here.

    Raises:
        QueueFull: too many requests wait.
        HastenError: a request cannot be answered.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self._engine, self._requests = engine, requests
        self._cancelled = False
        self.answers: list[AnswerStream] = []
        try:
            for request in requests[:_AT_A_TIME]:
                self.answers.append(engine.submit(request))
        except QueueFull:
            if not self.answers:
                raise
        except BaseException:
            self.cancel()
            raise
        self._later: dict[int, AnswerStream] = {}

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._cancelled = True
        for answer in (*self.answers, *getattr(self, "_later", {}).values()):
            answer.cancel()

    def answer(self, index: int) -> AnswerStream:
        """That has begun."""
        return self.answers[index] if index < len(self.answers) else self._later[index]

    def usage(self, answers_of_a_prompt: int) -> tuple[int, int, int]:
        """(tokens of prompts, of answers, of prompts that were found read); answers to one prompt stand together."""
        prompt = completion = cached = 0
        for index in range(len(self._requests)):
            begun = index < len(self.answers) or index in self._later
            if not begun:
                continue
            usage = self.answer(index).usage
            completion += usage.completion
            if index % answers_of_a_prompt == 0:
                prompt += usage.prompt
                cached += usage.cached
        return prompt, completion, cached

    async def parts(self) -> AsyncIterator[tuple[int, AnswerPart]]:
        """Parts as they come, with the number of their answer.

        Raises:
            HastenError: an answer came to an error; the others are cancelled.
        """
        try:
            if len(self._requests) == 1:
                async for part in self.answers[0]:
                    yield 0, part
                return
            async for numbered in self._merged():
                yield numbered
        finally:
            self.cancel()

    async def _merged(self) -> AsyncIterator[tuple[int, AnswerPart]]:
        queue: asyncio.Queue[tuple[int, AnswerPart] | BaseException | None] = asyncio.Queue()
        rest = iter(range(len(self.answers), len(self._requests)))

        async def follow(index: int | None) -> None:
            try:
                while index is not None:
                    async for part in await self._begun(index):
                        queue.put_nowait((index, part))
                    index = next(rest, None)
            except Exception as error:
                queue.put_nowait(error)
            queue.put_nowait(None)

        tasks = [asyncio.create_task(follow(i)) for i in range(len(self.answers))]
        try:
            running = len(tasks)
            while running:
                found = await queue.get()
                if found is None:
                    running -= 1
                elif isinstance(found, BaseException):
                    raise found
                else:
                    yield found
        finally:
            for task in tasks:
                task.cancel()

    async def _begun(self, index: int) -> AnswerStream:
        """An answer, its request submitted when the engine has room."""
        if index < len(self.answers):
            return self.answers[index]
        while True:
            try:
                answer = self._later[index] = self._engine.submit(self._requests[index])
            except QueueFull:
                await asyncio.sleep(0.05)
                continue
            if self._cancelled:
                answer.cancel()
            return answer
