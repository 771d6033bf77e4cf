"""What every search is held against: networks drawn at random, and evolution on a predictor of accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.search.networks.searching import (
    BudgetIsUsed,
    FoundNetwork,
    NetworkTrials,
    Progress,
    network_search,
    silent,
    until_used,
)
from hasten.search.networks.specialize import AccuracyPredictor, evolve
from hasten.tasks.task import Task

A = TypeVar("A", bound=Hashable)


def learned(trials: NetworkTrials[A], scores: Mapping[A, float]) -> AccuracyPredictor[A]:
    """A predictor of how good networks are, larger being better, that learned from their scores."""
    sign = 1.0 if trials.task.better == "higher" else -1.0
    predictor: AccuracyPredictor[A] = AccuracyPredictor(trials.space, hidden=64, seed=trials.seed)
    return predictor.fit(list(scores), [sign * score for score in scores.values()], steps=200)


def predicted_best(trials: NetworkTrials[A], predictor: AccuracyPredictor[A], seed: int) -> A:
    """The network within the limit that evolution finds best by a predictor."""
    return evolve(
        trials.space, predictor.predict, trials.seconds_of, trials.limit, population=30, generations=20, seed=seed
    ).arch


@network_search("random")
def random_networks(
    task: Task, space: ArchitectureSpace[Any], latency: Callable[[Any], float], limit: float = math.inf, *,
    seconds: float | None = None, trainings: int | None = None, seed: int = 0, progress: Progress = silent,
    **training: Any,
) -> FoundNetwork[Any]:  # fmt: skip
    """Trains networks drawn at random within the limit.

    Args:
        task, space, latency, limit, seconds, trainings, seed, progress: of `NetworkSearch`.
        training: of `NetworkTrials`: steps, batch, rate.
    """
    trials = NetworkTrials(
        task, space, latency, limit, seconds=seconds, trainings=trainings, seed=seed, progress=progress, **training
    )
    return until_used(trials, lambda: trials.score(trials.drawn(trials.anyone)))


@network_search("evolution")
def evolved_networks(
    task: Task, space: ArchitectureSpace[Any], latency: Callable[[Any], float], limit: float = math.inf, *,
    seconds: float | None = None, trainings: int | None = None, seed: int = 0, progress: Progress = silent,
    warm: float = 0.4, **training: Any,
) -> FoundNetwork[Any]:  # fmt: skip
    """Trains networks drawn at random, then those that evolution finds best by a predictor that learned from them.

    Args:
        task, space, latency, limit, seconds, trainings, seed, progress: of `NetworkSearch`.
        warm: share of the budget for networks drawn at random.
        training: of `NetworkTrials`: steps, batch, rate.
    """
    trials = NetworkTrials(
        task, space, latency, limit, seconds=seconds, trainings=trainings, seed=seed, progress=progress, **training
    )

    def step() -> None:
        if trials.used < warm or len(trials.scores) < 4:
            trials.score(trials.drawn(trials.anyone))
            return
        predictor = learned(trials, trials.scores)
        if trials.used >= 1:
            raise BudgetIsUsed
        best = predicted_best(trials, predictor, seed + trials.trained)
        # A neighbour, where the best was trained already.
        trials.score(best)
        trials.score(trials.drawn(lambda: space.mutate(best, trials.rng, 0.2)))

    return until_used(trials, step)
