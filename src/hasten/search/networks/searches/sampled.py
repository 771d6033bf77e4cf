"""What every search is held against: networks drawn at random, and evolution on a predictor of accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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
    sign = 1.0 if task.better == "higher" else -1.0

    def step() -> None:
        if trials.used < warm or len(trials.scores) < 4:
            trials.score(trials.drawn(trials.anyone))
            return
        known = list(trials.scores)
        predictor: AccuracyPredictor[Any] = AccuracyPredictor(space, hidden=64, seed=seed)
        predictor.fit(known, [sign * trials.scores[a] for a in known], steps=200)
        if trials.used >= 1:
            raise BudgetIsUsed
        found = evolve(
            space, predictor.predict, trials.seconds_of, limit, population=30, generations=20,
            seed=seed + trials.trained,
        )  # fmt: skip
        # A neighbour, where the best was trained already.
        trials.score(found.arch)
        trials.score(trials.drawn(lambda: space.mutate(found.arch, trials.rng, 0.2)))

    return until_used(trials, step)
