"""Generative architecture search, as TurboViT's (arXiv 2308.11421): a generator and an inquisitor teach each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from hasten.errors import HastenError
from hasten.models.vision.once_for_all import resized
from hasten.search.agents.agent import Indices
from hasten.search.agents.generator import GeneratorTraining, PointGenerator
from hasten.search.codec import Codec
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.search.networks.inquisitor import Inquisitor, probe_responses
from hasten.search.networks.searching import (
    BudgetIsUsed,
    FoundNetwork,
    NetworkTrials,
    Progress,
    network_search,
    silent,
    until_used,
)
from hasten.tasks.task import Task

A = TypeVar("A", bound=Hashable)


class ArchitectureGenerator(Generic[A]):
    """A generator of networks of a space: a seed and a condition make one.

    Args:
        space: of the networks.
        generator: over the points of its `space`; a new one, near the smallest network, when None.
        condition: how many numbers a new one is asked by.
        seed: of a new one's weights.
    """

    def __init__(
        self, space: ArchitectureSpace[A], generator: PointGenerator | None = None, condition: int = 0, seed: int = 0
    ) -> None:
        self.space, self.codec = space, Codec(space.space())
        if generator is not None and generator.sizes != self.codec.sizes:
            raise HastenError("this generator is of another space: give the one that it was made for")
        self.points = generator or PointGenerator(self.codec.sizes, condition, seed=seed)

    def near(self, arch: A, by: float = 2.0) -> ArchitectureGenerator[A]:
        """Begins near a prototype. Returns itself."""
        self.points.near(self.codec.encode(self.space.to_params(arch)), by)
        return self

    def __call__(self, seed: int, condition: tuple[float, ...] = (), heat: float = 1.0) -> A:
        """The network of a seed; the likeliest of all with ``heat`` 0."""
        (point,) = self.points.points([seed], condition, heat)
        return self.network(point)

    def network(self, point: Indices) -> A:
        """The network of a point.

        Raises:
            HastenError: it stands for none.
        """
        return self.space.from_params(self.codec.decode(point))


@dataclass
class Analytic(Generic[A]):
    """Teaches a generator where a score needs no training.

    Args:
        generator: taught in place.
        score: of a network; larger is better.
        admits: whether it keeps all requirements: asked exactly, apart from the score.
        options: of `GeneratorTraining`.
    """

    generator: ArchitectureGenerator[A]
    score: Callable[[A, tuple[float, ...]], float]
    admits: Callable[[A, tuple[float, ...]], bool] = lambda arch, condition: True
    options: dict[str, float] = field(default_factory=dict)
    training: GeneratorTraining = field(init=False)
    known: dict[tuple[A, tuple[float, ...]], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.training = GeneratorTraining(self.generator.points, **self.options)  # type: ignore[arg-type]

    def step(self, seeds: list[int], condition: tuple[float, ...] = ()) -> list[float]:
        """One round: the networks of some seeds are scored, and the generator learns; their scores, -inf where a
        requirement is not kept."""
        points = self.generator.points.points(seeds, condition)
        scores = []
        for point in points:
            arch = self.generator.network(point)
            if (arch, condition) not in self.known:
                kept = self.admits(arch, condition)
                self.known[arch, condition] = self.score(arch, condition) if kept else -math.inf
            scores.append(self.known[arch, condition])
        self.training.update(points, seeds, scores, condition)
        return scores


@network_search("generative")
def generated_networks(
    task: Task, space: ArchitectureSpace[Any], latency: Callable[[Any], float], limit: float = math.inf, *,
    seconds: float | None = None, trainings: int | None = None, seed: int = 0, progress: Progress = silent,
    utility: Callable[[Any, float], float] | None = None, probes: bool = True, batch_of: int = 4, offered: int = 24,
    **training: Any,
) -> FoundNetwork[Any]:  # fmt: skip
    """A generator offers networks, an inquisitor probes those within the limit and says which few to train, and both
    learn from how these score.

    Args:
        task, space, latency, limit, seconds, trainings, seed, progress: of `NetworkSearch`.
        utility: of a network and its score, larger is better; the score itself when None. `FoundNetwork` is the best
            by the score; `found_by` of `GenerativeSearch` has the best by the utility.
        probes: whether the inquisitor sees how networks respond to real images, or their genes alone.
        batch_of: networks trained in a round.
        offered: networks of a round.
        training: of `NetworkTrials`: steps, batch, rate.
    """
    trials = NetworkTrials(
        task, space, latency, limit, seconds=seconds, trainings=trainings, seed=seed, progress=progress, **training
    )
    search = GenerativeSearch(trials, utility, probes, batch_of, offered)
    return until_used(trials, search.step)


class GenerativeSearch(Generic[A]):
    """The loop of `generated_networks`, with the generator that it taught.

    Args:
        trials: what trains, within a budget.
        utility, probes, batch_of, offered: of `generated_networks`.
    """

    def __init__(
        self, trials: NetworkTrials[A], utility: Callable[[A, float], float] | None = None, probes: bool = True,
        batch_of: int = 4, offered: int = 24,
    ) -> None:  # fmt: skip
        if batch_of < 1 or offered < batch_of:
            raise HastenError("a round trains one network or more of those that are offered")
        self.trials, self.probes, self.batch_of, self.offered = trials, probes, batch_of, offered
        sign = 1.0 if trials.task.better == "higher" else -1.0
        self.utility = utility or (lambda arch, score: sign * score)
        self.generator: ArchitectureGenerator[A] = ArchitectureGenerator(trials.space, seed=trials.seed)
        self.generator.near(trials.space.smallest(), 1.0)
        self.training = GeneratorTraining(self.generator.points)
        self.inquisitor = Inquisitor(self.generator.codec.sizes, seed=trials.seed)
        self.utilities: dict[A, float] = {}
        self._points: dict[A, Indices] = {}
        self._responses: dict[A, list[float]] = {}
        self._next = trials.seed * 1_000_003
        batch = next(trials.task.batches("training", 32, trials.seed))
        self._stimulus = (batch.inputs, batch.targets)

    @property
    def found_by(self) -> tuple[A, float]:
        """The network of the largest utility, and this.

        Raises:
            HastenError: none was trained.
        """
        if not self.utilities:
            raise HastenError("no network was trained: raise the limit or the budget")
        best = max(self.utilities, key=lambda a: self.utilities[a])
        return best, self.utilities[best]

    def step(self) -> None:
        """One round.

        Raises:
            BudgetIsUsed: before a training, where the budget is used up.
            HastenError: nothing within the limit.
        """
        seeds = list(range(self._next, self._next + self.offered))
        self._next += self.offered
        points = self.generator.points.points(seeds)
        archs = [self.generator.network(p) for p in points]
        within = [a for a in dict.fromkeys(archs) if self.trials.admits(a)]
        if not within:  # nothing to learn from yet but that: networks near the smallest are offered too
            within = [self.trials.drawn(lambda: self.trials.space.near_smallest(self.trials.rng))]
        fresh = [a for a in within if a not in self.utilities]
        for arch in self._ranked(fresh)[: self.batch_of]:
            score = self.trials.score(arch)
            self.utilities[arch] = self.utility(arch, score)
        self._teach(points, seeds, archs)

    def _ranked(self, archs: list[A]) -> list[A]:
        codec = self.generator.codec
        for arch in archs:
            self._points[arch] = codec.encode(self.trials.space.to_params(arch))
            self._responses[arch] = self._probed(arch)
        if len(self.utilities) < 4 or not archs:
            return archs
        known = list(self.utilities)
        self.inquisitor.fit(
            [self._points[a] for a in known], [self._responses[a] for a in known], [self.utilities[a] for a in known]
        )
        mean, spread = self.inquisitor.predict([self._points[a] for a in archs], [self._responses[a] for a in archs])
        # What the members differ about is worth a look.
        return [archs[int(i)] for i in (-(mean + 0.5 * spread)).argsort()]

    def _probed(self, arch: A) -> list[float]:
        if not self.probes:
            return []
        if self.trials.over:
            raise BudgetIsUsed
        images, labels = self._stimulus
        with torch.random.fork_rng(devices=[]):
            network = self.trials.build(arch)
            return probe_responses(network, resized(images, self.trials.space.input_shape(arch)[-1]), labels)

    def _teach(self, points: list[Indices], seeds: list[int], archs: list[A]) -> None:
        """What was trained has its utility, what was not what the inquisitor expects, what exceeds the limit none."""
        learned = self.inquisitor.weights is not None
        scores = []
        for arch in archs:
            if not self.trials.admits(arch):
                scores.append(-math.inf)
            elif arch in self.utilities:
                scores.append(self.utilities[arch])
            elif learned and arch in self._responses:
                mean, _ = self.inquisitor.predict([self._points[arch]], [self._responses[arch]])
                scores.append(float(mean[0]))
            else:
                scores.append(min(self.utilities.values(), default=0.0))
        credit = torch.tensor(self.inquisitor.credit(points), dtype=torch.float32) if learned else None
        self.training.update(points, seeds, scores, credit=credit, sure=[a in self.utilities for a in archs])
