"""Answers as they come, to readers in threads and event loops."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from hasten.errors import HastenError
from hasten.serving.answer import AnswerRecord, AnswerStream
from hasten.serving.request import AnswerPart

PARTS = (AnswerPart("a", (1,)), AnswerPart("", (2,)), AnswerPart("bc", (3, 4), finish="stop"))


def test_every_reader_is_given_every_part() -> None:
    record = AnswerRecord(5)
    stream = AnswerStream(record)
    found: list[list[AnswerPart]] = []
    threads = [threading.Thread(target=lambda: found.append(list(stream))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for part in PARTS:
        record.put(part)
    for thread in threads:
        thread.join()
    assert found == [list(PARTS)] * 3
    assert stream.result() == AnswerPart("abc", (1, 2, 3, 4), finish="stop")
    usage = stream.usage
    assert (usage.prompt, usage.cached, usage.completion) == (5, 0, 4)
    assert usage.seconds_to_first is not None
    assert 0 <= usage.seconds_to_first <= usage.seconds == stream.usage.seconds


def test_event_loops_are_woken_from_another_thread() -> None:
    record = AnswerRecord(1)
    stream = AnswerStream(record)

    async def read() -> list[AnswerPart]:
        first = asyncio.create_task(_parts(stream))
        second = asyncio.create_task(_parts(stream))
        await asyncio.sleep(0)
        writer = threading.Thread(target=lambda: [record.put(p) for p in PARTS])
        writer.start()
        found = await first
        assert await second == found
        writer.join()
        return found

    assert asyncio.run(read()) == list(PARTS)


async def _parts(stream: AnswerStream) -> list[AnswerPart]:
    return [part async for part in stream]


def test_a_reader_whose_loop_has_ended_stops_nobody() -> None:
    record = AnswerRecord(1)
    stream = AnswerStream(record)

    async def leaves() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(_parts(stream), 0.01)

    asyncio.run(leaves())
    for part in PARTS:
        record.put(part)
    assert list(stream) == list(PARTS)


def test_an_error_comes_after_the_parts_before_it() -> None:
    record = AnswerRecord(1)
    stream = AnswerStream(record)
    record.put(PARTS[0])
    record.fail(HastenError("no room: wait"))
    parts = iter(stream)
    assert next(parts) == PARTS[0]
    errors = []
    for _ in range(2):
        with pytest.raises(HastenError, match="no room: wait") as caught:
            stream.result()
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    with pytest.raises(HastenError, match="no room"):
        next(parts)


def test_an_answer_that_nobody_holds_is_cancelled() -> None:
    record = AnswerRecord(1)
    stream = AnswerStream(record)
    parts = iter(stream)
    record.put(PARTS[0])
    next(parts)
    del stream
    gc.collect()
    assert not record.cancelled  # whoever iterates holds it
    del parts
    gc.collect()
    assert record.cancelled
