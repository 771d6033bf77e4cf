"""Which texts run, and what each step reads of them."""

from __future__ import annotations

import bisect
from collections.abc import Iterator

from hasten.serving.running_text import RunningText, answered_rows
from hasten.serving.steps import PlannedRows, Steps

# Tokens of a prompt whose log-probabilities are asked for, a step: each has a row of logits, a number for every token.
_MOST_ANSWERED = 128


class Scheduler:
    """Texts that wait and texts that run.

    Whoever came first begins first, and is never put back for one who came later; so everyone's turn comes. A step
    reads the next token of every answer, and pieces of prompts: of the prompt that came first, and of the one that has
    least left, so that a short question need not wait for a long one.

    Args:
        steps: who runs them.
        most_running: texts at a time.
    """

    def __init__(self, steps: Steps, most_running: int) -> None:
        self._steps = steps
        self._most_running = most_running
        self.waiting: list[RunningText] = []  # first come first
        self.running: list[RunningText] = []
        self.put_back = 0  # texts so far whose room went to others
        self.cached = 0  # tokens so far that were found read

    def add(self, text: RunningText) -> None:
        """A text that waits from now on, in its place."""
        bisect.insort(self.waiting, text, key=lambda t: t.number)

    def remove(self, text: RunningText) -> None:
        """A text that has ended, whether it ran or not."""
        if text in self.running:
            self.running.remove(text)
            self._steps.close(text)
        else:
            self.waiting.remove(text)

    def __iter__(self) -> Iterator[RunningText]:
        """All texts."""
        yield from (*self.running, *self.waiting)

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting)

    def start(self) -> None:
        """Lets waiting texts run, in order, as far as there is room."""
        while self.waiting and len(self.running) < self._most_running:
            text = self.waiting[0]
            if not self._steps.open(text):
                return
            self.waiting.pop(0)
            bisect.insort(self.running, text, key=lambda t: t.number)
            self._found(text, text.read)

    def _found(self, text: RunningText, count: int) -> None:
        self.cached += count
        if not text.new:
            text.record.cached += count

    def plan(self, most: int) -> list[PlannedRows]:
        """What the next step reads, with about ``most`` tokens of prompts."""
        plan = [
            PlannedRows(text, 1, answered_rows(text, 1))
            for text in list(self.running)
            if text.unread == 1 and text in self.running and self._with_room(text)
        ]
        shared: set[object] = set()
        reading = [t for t in self.running if t.unread > 1]
        by_length = sorted(reading[1:], key=lambda t: t.unread)
        for index, text in enumerate([*reading[:1], *by_length]):
            if most <= 0:
                break
            before = text.read
            following = self._steps.follow(text)
            self._found(text, text.read - before)
            if following is not None and following in shared:
                continue  # another text reads just this: it is there at the next step
            shared.add(following)
            # The first one leaves half of it to a shorter one, the others take what there is.
            leaves = index == 0 and bool(by_length) and by_length[0].unread < text.unread
            count = max(1, most // 2) if leaves else most
            if text.wants_prompt:
                count = min(count, _MOST_ANSWERED)
            count = self._steps.piece(text, count)
            plan.append(PlannedRows(text, count, answered_rows(text, count)))
            most -= count
        return plan

    def _with_room(self, text: RunningText) -> bool:
        """Room for its next token, that of texts which came last if need be; False where that is its own."""
        while not self._steps.make_room(text):
            newest = self.running.pop()
            self._steps.close(newest)
            newest.read = 0
            self.put_back += 1
            self.add(newest)
            if newest is text:
                return False
        return True
