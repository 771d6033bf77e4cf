"""Searches of networks in one form: a task, a space, a latency limit and a budget in; the best trained network out.

    table = measured(space)
    found = network_searches()["random"](task, space, table, limit=1e-3, seconds=60)
    print(found.arch, found.score, found.latency)

A search is a function of `hasten.search.networks.searches`, found by its file and the decorator `network_search`. What
it tries goes through `NetworkTrials`, which trains, counts and remembers, so that all pay the same for the same.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
import random
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from hasten.errors import HastenError
from hasten.processes import one_thread
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.search.networks.bilevel import answering
from hasten.tasks.task import Task
from hasten.train.fitting import parameter_groups
from hasten.train.loop import train
from hasten.train.schedules import WarmupCosine

A = TypeVar("A", bound=Hashable)
Progress = Callable[[str, float], None]


def silent(message: str, share: float) -> None:
    """Progress that nobody is told."""


@dataclass(frozen=True)
class FoundNetwork(Generic[A]):
    """What a search found.

    Args:
        arch: the network, as its space describes it.
        network: the same as a module in evaluation mode, trained as far as the search trained it.
        score: the task's metric on its validation examples.
        latency: seconds of one image.
        trainings: networks that were trained.
        seconds: that the search took.
        history: (seconds since the search began, best score within the limit) at each training.
    """

    arch: A
    network: nn.Module = field(repr=False)
    score: float
    latency: float
    trainings: int
    seconds: float
    history: tuple[tuple[float, float], ...] = field(repr=False)


class NetworkSearch(Protocol):
    """The form of every search of networks.

    Args:
        task: of images, such as `hasten.tasks.placed_digits.PlacedDigits`.
        space: of the networks.
        latency: seconds of one image: `hasten.search.networks.specialize.measured` or `estimated` of the space, or any
            function of a network.
        limit: seconds that no network may take longer than.
        seconds, trainings: the budget: one of them, or both, and what is used up first ends it.
        seed: of everything random.
        progress: told what is done, and the share of the budget.

    Raises:
        HastenError: no budget, a space that the search does not suit, or nothing within the limit.
    """

    def __call__(
        self,
        task: Task,
        space: ArchitectureSpace[Any],
        latency: Callable[[Any], float],
        limit: float = math.inf,
        *,
        seconds: float | None = None,
        trainings: int | None = None,
        seed: int = 0,
        progress: Progress = silent,
    ) -> FoundNetwork[Any]: ...


S = TypeVar("S", bound="Callable[..., FoundNetwork[Any]]")
_KNOWN: dict[str, Callable[..., FoundNetwork[Any]]] = {}


def network_search(name: str) -> Callable[[S], S]:
    """Registers a function of the form `NetworkSearch` under a name; its options of its own have defaults.

    Raises:
        HastenError: another function has the name.
    """

    def register(search: S) -> S:
        known = _KNOWN.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (search.__module__, search.__qualname__):
            raise HastenError(f"two searches of networks are called {name!r}: rename one")
        _KNOWN[name] = search
        return search

    return register


def network_searches() -> Mapping[str, Callable[..., FoundNetwork[Any]]]:
    """Every registered search by its name, those in the folder `hasten.search.networks.searches` among them."""
    folder = importlib.import_module("hasten.search.networks.searches")
    for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(_KNOWN.items()))


class BudgetIsUsed(Exception):
    """Raised by `NetworkTrials.score` when the seconds or trainings of a search are used up."""


class NetworkTrials(Generic[A]):
    """What a search tries: trains networks within a budget, remembers each by its description, and keeps the best.

    Args:
        task, space, latency, limit, seconds, trainings, seed, progress: of `NetworkSearch`.
        steps: of a training from random weights.
        batch: images of a step.
        rate: the highest, of AdamW.
        clock: that seconds are read from.

    Raises:
        HastenError: no budget, or one that is not above 0.
    """

    def __init__(
        self,
        task: Task,
        space: ArchitectureSpace[A],
        latency: Callable[[A], float],
        limit: float = math.inf,
        *,
        seconds: float | None = None,
        trainings: int | None = None,
        seed: int = 0,
        progress: Progress = silent,
        steps: int = 150,
        batch: int = 64,
        rate: float = 2e-3,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if seconds is None and trainings is None:
            raise HastenError("a search of networks ends by seconds or by trainings: give one of them, or both")
        if not (limit > 0 and (seconds is None or seconds > 0) and (trainings is None or trainings > 0) and steps > 0):
            raise HastenError("limit, seconds, trainings and steps of a search of networks are above 0")
        self.task, self.space, self.latency, self.limit = task, space, latency, limit
        self.seconds, self.trainings, self.seed, self.progress = seconds, trainings, seed, progress
        self.steps, self.batch, self.rate, self.clock = steps, batch, rate, clock
        self.rng = random.Random(seed)
        self.scores: dict[A, float] = {}
        self.trained = 0
        self.history: list[tuple[float, float]] = []
        self.best: tuple[float, A, nn.Module] | None = None
        self._latencies: dict[A, float] = {}
        self._begun = clock()

    @property
    def used(self) -> float:
        """Share of the budget that is used."""
        by_time = 0.0 if self.seconds is None else (self.clock() - self._begun) / self.seconds
        return max(by_time, 0.0 if self.trainings is None else self.trained / self.trainings)

    @property
    def over(self) -> bool:
        """Whether the budget is used up: it is good for one training at least."""
        return self.trained > 0 and self.used >= 1

    def seconds_of(self, arch: A) -> float:
        """Latency of a network, asked once."""
        if arch not in self._latencies:
            self._latencies[arch] = self.latency(arch)
        return self._latencies[arch]

    def admits(self, arch: A) -> bool:
        """Whether a network is within the limit."""
        return self.seconds_of(arch) <= self.limit

    def drawn(self, draw: Callable[[], A], tries: int = 1000) -> A:
        """The first network of ``draw`` that is within the limit and was not trained yet; of those that were, the last.

        Raises:
            HastenError: nothing within the limit in so many tries.
        """
        known = None
        for _ in range(tries):
            arch = draw()
            if self.admits(arch):
                if arch not in self.scores:
                    return arch
                known = arch
        if known is None:
            raise HastenError(f"no network within {self.limit:g} s in {tries} draws: raise the limit")
        return known

    def anyone(self) -> A:
        """A network drawn at random; sometimes near the smallest, as few of all may be within the limit."""
        return self.space.sample(self.rng) if self.rng.random() < 0.7 else self.space.near_smallest(self.rng)

    def build(self, arch: A) -> nn.Module:
        """The network with random weights of this search's seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.space.build(arch)

    def score(self, arch: A, network: nn.Module | None = None, steps: int | None = None) -> float:
        """The task's metric on validation examples after a training; a network that was trained already costs nothing.

        Args:
            arch: what is tried, within the limit or not.
            network: with weights to go on from, trained in place; random ones when None.
            steps: of this training.

        Raises:
            BudgetIsUsed: before the training, where the budget is used up; it is good for one at least.
        """
        if arch in self.scores:
            return self.scores[arch]
        if self.over:
            raise BudgetIsUsed
        network = self.build(arch) if network is None else network
        found = self._train(arch, network, steps or self.steps)
        self.add(arch, network, found)
        return found

    def add(self, arch: A, network: nn.Module, score: float) -> None:
        """Counts a training that the search did itself, and keeps its network where it is the best within the limit."""
        self.trained += 1
        self.scores[arch] = score
        if self.admits(arch) and (self.best is None or self.better(score, self.best[0])):
            self.best = (score, arch, network.eval())
        if self.best is not None:
            self.history.append((self.clock() - self._begun, self.best[0]))
        self.progress(f"{self.trained} networks trained", min(1.0, self.used))

    def better(self, one: float, other: float) -> bool:
        """Whether a score is better than another by the task's metric."""
        return one > other if self.task.better == "higher" else one < other

    def _train(self, arch: A, network: nn.Module, steps: int) -> float:
        answer = answering(network, self.space.input_shape(arch)[-1])
        batches = self.task.batches("training", self.batch, self.seed)
        left = None if self.seconds is None else max(1e-3, self.seconds - (self.clock() - self._begun))
        with one_thread():  # several wait longer for each other than so small a network takes
            train(
                network.train(), lambda step: self.task.loss(answer, next(batches)),
                optimizer=torch.optim.AdamW(parameter_groups(network, 0.1), lr=self.rate, betas=(0.9, 0.95)),
                steps=steps, seconds=left, schedule=WarmupCosine(0.1, 0.01), clip=1.0, keep=0, clock=self.clock,
            )  # fmt: skip
            network.eval()
            return self.task.evaluate(answer, "validation")

    def found(self) -> FoundNetwork[A]:
        """The best network within the limit.

        Raises:
            HastenError: none was trained.
        """
        if self.best is None:
            raise HastenError(f"no network within {self.limit:g} s was trained: raise the limit or the budget")
        score, arch, network = self.best
        return FoundNetwork(
            arch, network, score, self.seconds_of(arch), self.trained, self.clock() - self._begun, tuple(self.history)
        )


def until_used(trials: NetworkTrials[A], step: Callable[[], object]) -> FoundNetwork[A]:
    """Repeats ``step`` until the budget is used up, and returns what was found.

    A step that trains nothing several times in a row ends it too: what is left of the space is known.
    """
    idle = 0
    while idle < 50 and not trials.over:
        before = trials.trained
        try:
            with one_thread():  # what a search does beside its trainings is small operations
                step()
        except BudgetIsUsed:
            break
        idle = idle + 1 if trials.trained == before else 0
    return trials.found()
