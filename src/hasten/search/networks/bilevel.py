"""What searches by gradient share: training images in two halves that never mix, and a budget of seconds or steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.vision.once_for_all import resized
from hasten.tasks.task import Batch, Classification, Task


class Halves(NamedTuple):
    """Endless batches of training examples: weights learn from some, the choice between candidates from others."""

    weights: Iterator[Batch]
    logits: Iterator[Batch]


def halves(task: Task, share: float, sizes: tuple[int, int], seed: int) -> Halves:
    """Training examples in two parts.

    Args:
        task: whose; where its examples have no end, both are drawn anew.
        share: of the examples, the last of them, for the choice.
        sizes: of a batch for weights and of one for the choice.
        seed: of the order.

    Raises:
        HastenError: a share that leaves nothing to one of them.
    """
    count = task.examples("training")
    if count is None:
        return Halves(task.batches("training", sizes[0], seed), task.batches("training", sizes[1], seed + 2**20))
    first = count - round(share * count)
    if not 0 < first < count:
        raise HastenError(f"a share of {share:g} of {count} training examples leaves nothing to learn from")
    whole = task.take("training", 0, count)

    def endless(begin: int, end: int, size: int, seed: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        order = torch.empty(0, dtype=torch.int64)
        while True:
            while len(order) < size:
                order = torch.cat([order, begin + torch.randperm(end - begin, generator=generator)])
            chosen, order = order[:size], order[size:]
            yield Batch(whole.inputs[chosen], whole.targets[chosen])

    return Halves(endless(0, first, sizes[0], 2 * seed), endless(first, count, sizes[1], 2 * seed + 1))


def classification(task: Task) -> Classification:
    """The task.

    Raises:
        HastenError: its answers are not logits over classes, by which these searches learn.
    """
    if not isinstance(task, Classification):
        raise HastenError(f"{task.name} does not ask for a class: a search by gradient needs a classification")
    return task


def answering(network: nn.Module, side: int) -> Callable[[Tensor], Tensor]:
    """A network on images that are brought to its size."""

    def answer(images: Tensor) -> Tensor:
        made: Tensor = network(resized(images, side))
        return made

    return answer


class Spending:
    """How much of a budget is used, in seconds or in steps.

    Args:
        seconds, steps: the budget; one of them.
        clock: that seconds are read from.
    """

    def __init__(
        self, seconds: float | None, steps: int | None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if (seconds is None) == (steps is None):
            raise HastenError("a super-network is trained for seconds or for steps: give one of them")
        self.seconds, self.steps, self.clock = seconds, steps, clock
        self.done = 0
        self._begun = clock()

    @property
    def share(self) -> float:
        """Of the budget, from 0 to 1; 0 before the first step, so that there is one."""
        if not self.done:
            return 0.0
        if self.steps is not None:
            return min(1.0, self.done / self.steps)
        assert self.seconds is not None
        return min(1.0, (self.clock() - self._begun) / self.seconds)
