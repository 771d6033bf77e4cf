"""The one contract of a task: splits kept apart, seeded batches, a loss, a metric, what chance reaches.

    task = make("text", length=128)
    batches = task.batches("training", 16, seed=0)
    fit(model, lambda step: task.loss(model, next(batches)), steps=500, peak=3e-3)
    print(task.evaluate(model, "test"), task.metric, task.chance)

A file in this folder adds a task by the decorator `registered`; nothing else names it.
"""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.errors import HastenError

Split: TypeAlias = Literal["training", "validation", "test"]
Better: TypeAlias = Literal["higher", "lower"]
SPLITS: tuple[Split, ...] = ("training", "validation", "test")
IGNORED = -100

# torch's generator of the CPU takes the lower 32 bits of a seed: each split has a part of them to itself.
_SEEDS = 2**30
Model: TypeAlias = Callable[[Any], Any]


class Batch(NamedTuple):
    """What a model is given, and what it shall answer."""

    inputs: Any
    targets: Any


class Task(ABC):
    """What is learned or asked.

    A subclass says in `description` what the task is, in `given` what a model gets and in `answered` what it returns.
    The splits share no example; for generated data they share no seed. Some data is only split in two: its ``splits``
    are training and test.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    given: ClassVar[str]
    answered: ClassVar[str]
    metric: ClassVar[str]
    splits: tuple[Split, ...] = SPLITS
    better: ClassVar[Better]
    best: ClassVar[float]

    @property
    @abstractmethod
    def chance(self) -> float:
        """The metric of one who knows nothing."""

    def examples(self, split: Split) -> int | None:
        """How many there are; None where they are generated without end."""
        return None

    @abstractmethod
    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        """``size`` random examples of a split."""

    def take(self, split: Split, first: int, last: int) -> Batch:
        """The examples ``first`` to ``last`` (exclusive) of a split that has an end."""
        raise HastenError(f"the examples of {self.name} have no end: draw some")

    @abstractmethod
    def loss(self, model: Model, batch: Batch) -> Tensor:
        """What to train by: a scalar with a graph."""

    @abstractmethod
    def count(self, answers: Any, targets: Any) -> tuple[float, int]:
        """A sum over what was asked in a batch, and how much was asked: `score` makes the metric of their quotient."""

    def score(self, mean: float) -> float:
        """The metric of a mean of what `count` counts."""
        return mean

    @abstractmethod
    def right(self, batch: Batch) -> Any:
        """The answers of one who knows everything."""

    @abstractmethod
    def blind(self, batch: Batch, generator: torch.Generator) -> Any:
        """Answers of one who knows nothing, which reach `chance`."""

    def batches(self, split: Split = "training", size: int = 32, seed: int = 0) -> Iterator[Batch]:
        """Endless random batches of a split; the same for the same seed.

        Raises:
            HastenError: no such split, no such size or seed.
        """
        generator = self.generator(split, seed)
        self._sized(size)

        def drawn() -> Iterator[Batch]:
            while True:
                yield self.draw(split, size, generator)

        return drawn()

    def once(self, split: Split = "test", size: int = 256) -> Iterator[Batch]:
        """Every example of a split once, in order; the last batch may be smaller.

        Raises:
            HastenError: no such split or size, or the examples have no end.
        """
        self._split(split)
        self._sized(size)
        total = self.examples(split)
        if total is None:
            raise HastenError(f"the examples of {self.name} have no end: take batches of them")
        return (self.take(split, first, min(first + size, total)) for first in range(0, total, size))

    def evaluate(
        self, model: Model, split: Split = "test", *, size: int = 256, batches: int | None = None, seed: int = 0
    ) -> float:
        """The metric of a model.

        Args:
            model: of a batch's inputs to answers.
            split: of which examples.
            size: of a batch.
            batches: so many random ones; all examples once when None, or 4 batches where they have no end.
            seed: of the random ones.
        """
        if batches is None and self._split(split) and self.examples(split) is not None:
            asked = self.once(split, size)
        else:
            endless = self.batches(split, size, seed)
            asked = (next(endless) for _ in range(4 if batches is None else batches))
        total, number = 0.0, 0
        with torch.no_grad():
            for batch in asked:
                found, counted = self.count(model(batch.inputs), batch.targets)
                total, number = total + found, number + counted
        return self._scored(total, number)

    @torch.no_grad()
    def evaluate_batch(self, model: Model, batch: Batch) -> float:
        """The metric of a model on one batch, such as one drawn from a generator of one's own."""
        found, counted = self.count(model(batch.inputs), batch.targets)
        return self._scored(found, counted)

    def _scored(self, total: float, number: int) -> float:
        if not number:
            raise HastenError(f"nothing of {self.name} was asked: give at least one batch")
        return self.score(total / number)

    def generator(self, split: Split, seed: int = 0) -> torch.Generator:
        """A generator for a seed; where examples are generated without end, one that no other split has.

        Raises:
            HastenError: no such split, or a seed outside of 0 to 2^30 - 1.
        """
        self._split(split)
        if not 0 <= seed < _SEEDS:
            raise HastenError(f"a seed of {seed} is not within 0 to {_SEEDS - 1}")
        apart = SPLITS.index(split) * _SEEDS if self.examples(split) is None else 0
        return torch.Generator().manual_seed(seed + apart)

    def _split(self, split: Split) -> bool:
        if split not in self.splits:
            raise HastenError(f"{self.name} has no split {split!r}: choose one of {', '.join(self.splits)}")
        return True

    @staticmethod
    def _sized(size: int) -> None:
        if size < 1:
            raise HastenError(f"a batch of {size} is none: give at least one example")


class Classification(Task):
    """A task whose answers are logits over classes.

    Targets are (batch,) or (batch, asked), answers (batch, classes) or (batch, length, classes) with a length of at
    least as many: of a longer sequence the last positions count. Targets that are `IGNORED` are not asked.
    """

    metric = "accuracy"
    better: ClassVar[Better] = "higher"
    best = 1.0
    classes: int

    @property
    def chance(self) -> float:
        return 1 / self.classes

    def loss(self, model: Model, batch: Batch) -> Tensor:
        logits = _asked(model(batch.inputs), batch.targets)
        return F.cross_entropy(logits.flatten(0, -2), batch.targets.flatten(), ignore_index=IGNORED)

    def count(self, answers: Tensor, targets: Tensor) -> tuple[float, int]:
        asked = targets != IGNORED
        return float((_asked(answers, targets).argmax(-1) == targets)[asked].sum()), int(asked.sum())

    def right(self, batch: Batch) -> Tensor:
        return 100.0 * F.one_hot(batch.targets.clamp(min=0), self.classes)

    def blind(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return torch.rand(*batch.targets.shape, self.classes, generator=generator)


class LabelledExamples(Classification):
    """A task whose examples are all there.

    A subclass sets ``parts``: of each split inputs (count, ...) and labels (count,).
    """

    parts: dict[Split, tuple[Tensor, Tensor]]

    def examples(self, split: Split) -> int:
        return len(self.parts[split][1])

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        inputs, labels = self.parts[split]
        chosen = torch.randint(len(labels), (size,), generator=generator)
        return Batch(inputs[chosen], labels[chosen])

    def take(self, split: Split, first: int, last: int) -> Batch:
        inputs, labels = self.parts[split]
        return Batch(inputs[first:last], labels[first:last])


def _asked(answers: Tensor, targets: Tensor) -> Tensor:
    return answers[:, -targets.shape[1] :] if targets.ndim == 2 else answers


class NextToken(Classification):
    """A task whose every next token is asked; its metric is the mean loss in nats a token."""

    metric = "nats a token"
    better: ClassVar[Better] = "lower"
    best = 0.0

    @property
    def chance(self) -> float:
        return math.log(self.classes)

    def count(self, answers: Tensor, targets: Tensor) -> tuple[float, int]:
        logits = _asked(answers, targets).flatten(0, -2).float()
        total = F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
        return float(total), int((targets != IGNORED).sum())

    def blind(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return torch.zeros(*batch.targets.shape, self.classes)


_Made = TypeVar("_Made", bound=type[Task])
_TASKS: dict[str, type[Task]] = {}


def registered(name: str) -> Callable[[_Made], _Made]:
    """Decorator: this class is the task of that name.

    Raises:
        ValueError: another one has it.
    """

    def register(made: _Made) -> _Made:
        if _TASKS.get(name, made).__qualname__ != made.__qualname__:
            raise ValueError(f"two tasks are called {name}")
        made.name = name
        _TASKS[name] = made
        return made

    return register


@functools.cache
def _load() -> None:
    package = importlib.import_module("hasten.tasks")
    for found in pkgutil.walk_packages(package.__path__, "hasten.tasks."):
        importlib.import_module(found.name)


def names() -> list[str]:
    """Of every task."""
    _load()
    return sorted(_TASKS)


def of_name(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        HastenError: none is called so.
    """
    if name not in names():
        raise HastenError(f"no task is called {name!r}: choose one of {', '.join(names())}")
    return _TASKS[name]


def make(name: str, **options: Any) -> Task:
    """The task of a name with its options.

    Raises:
        HastenError: no such task or option, or its data is missing.
    """
    made = of_name(name)
    try:
        return made(**options)
    except TypeError as error:
        raise HastenError(f"the task {name} does not take these options: {error}") from None
