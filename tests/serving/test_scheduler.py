"""Whose turn it is, over a cache that is counted and holds nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.serving.answer import AnswerRecord
from hasten.serving.choosing import TokenChooser
from hasten.serving.detokenizer import TokenTexts
from hasten.serving.request import Request, Sampling
from hasten.serving.running_text import RunningText
from hasten.serving.scheduler import Scheduler
from hasten.serving.steps import PlannedRows


class Counted:
    """Room for so many tokens in all."""

    most_tokens, notes, nbytes = 1000, (), 0

    def __init__(self, room: int) -> None:
        self.left = room

    def open(self, text: RunningText) -> bool:
        if len(text.tokens) > self.left:
            return False
        self.left -= len(text.tokens)
        text.place, text.read = len(text.tokens), 0
        return True

    def close(self, text: RunningText) -> None:
        self.left += text.place

    def make_room(self, text: RunningText) -> bool:
        if text.read < text.place:
            return True
        if not self.left:
            return False
        self.left -= 1
        text.place += 1
        return True

    def follow(self, text: RunningText) -> object:
        return None

    def piece(self, text: RunningText, most: int) -> int:
        return min(text.unread, most)

    def run(self, plan: Sequence[PlannedRows]) -> Tensor:
        for p in plan:
            p.text.read += p.count
            if not p.text.unread:
                p.text.tokens.append(0)
        return torch.zeros(0)

    def forget(self) -> None:
        pass

    def blocks(self) -> tuple[int, int, int]:
        return 0, 0, 0


def text(number: int, length: int, **settings: Any) -> RunningText:
    request = Request((0,) * length, **settings)
    return RunningText(
        request,
        AnswerRecord(length),
        TokenChooser(Sampling(temperature=0), request.prompt, 10),
        tokenizer=None,
        token_texts=TokenTexts(None),
        ends=(),
        most_new=100,
        number=number,
    )


def step(scheduler: Scheduler, steps: Counted, most: int) -> dict[int, int]:
    """Rows of each text in the next step."""
    scheduler.start()
    plan = scheduler.plan(most)
    steps.run(plan)
    return {p.text.number: p.count for p in plan}


def test_every_answer_goes_on_while_prompts_are_read_in_pieces() -> None:
    steps = Counted(1000)
    scheduler = Scheduler(steps, 4)
    scheduler.add(text(1, 1))
    assert step(scheduler, steps, 16) == {1: 1}
    scheduler.add(text(2, 100))
    scheduler.add(text(3, 20))
    # Half of what is read is of the prompt that came first, the rest of the shortest.
    assert [step(scheduler, steps, 16) for _ in range(3)] == [
        {1: 1, 2: 8, 3: 8},
        {1: 1, 2: 8, 3: 8},
        {1: 1, 2: 8, 3: 4},
    ]
    assert step(scheduler, steps, 16) == {1: 1, 3: 1, 2: 16}


def test_no_more_run_than_may_and_in_their_order() -> None:
    steps = Counted(1000)
    scheduler = Scheduler(steps, 2)
    texts = [text(i, 3) for i in (3, 1, 2)]
    for one in texts:
        scheduler.add(one)
    assert step(scheduler, steps, 16) == {1: 3, 2: 3}
    scheduler.remove(texts[1])
    assert step(scheduler, steps, 16) == {2: 1, 3: 3}
    assert len(scheduler) == 2


def test_who_has_no_room_waits_and_nobody_passes() -> None:
    steps = Counted(10)
    scheduler = Scheduler(steps, 4)
    for one in (text(1, 8), text(2, 5), text(3, 1)):
        scheduler.add(one)
    assert step(scheduler, steps, 16) == {1: 8}
    assert [t.number for t in scheduler.waiting] == [2, 3]


def test_the_newest_is_put_back_and_comes_again() -> None:
    steps = Counted(12)
    scheduler = Scheduler(steps, 4)
    first, second = text(1, 5), text(2, 5)
    scheduler.add(first)
    scheduler.add(second)
    steps_seen = [step(scheduler, steps, 16) for _ in range(3)]
    # Both have their prompts and a token each; the third step has room for the older one alone.
    assert steps_seen == [{1: 5, 2: 5}, {1: 1, 2: 1}, {1: 1}]
    assert (scheduler.put_back, second.read, len(second.tokens)) == (1, 0, 7)
    assert scheduler.waiting == [second]
    scheduler.remove(first)
    # It is read again with what it had of its answer.
    assert step(scheduler, steps, 16) == {2: 7}
    scheduler.remove(second)
    assert steps.left == 12


def test_log_probabilities_of_prompts_are_asked_for_in_bounded_pieces() -> None:
    steps = Counted(1000)
    scheduler = Scheduler(steps, 4)
    scheduler.add(text(1, 300, prompt_logprobs=0))
    scheduler.start()
    plan = scheduler.plan(512)
    assert [(p.count, p.answered) for p in plan] == [(128, 128)]
