"""Once-for-all as a search: one network is trained, its sub-networks are judged without training, the best is tuned."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.models.vision.once_for_all import Architecture, OnceForAll, SubNetwork, calibrate, resized
from hasten.processes import one_thread
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.search.networks.bilevel import answering
from hasten.search.networks.members.once_for_all import OnceForAllSpace
from hasten.search.networks.searches.sampled import learned, predicted_best
from hasten.search.networks.searching import BudgetIsUsed, FoundNetwork, NetworkTrials, Progress, network_search, silent
from hasten.tasks.task import Task
from hasten.train.shrinking import SHRINKING, train

# Shares of the budget: of the one network, and of it with judging its sub-networks; the rest tunes what was found.
_LEARNS, _JUDGED = 0.6, 0.75
_TUNING_RATE = 0.3  # of a training's from random weights
_CALIBRATING = 500  # images that a sub-network's statistics are of


def _images(task: Task) -> tuple[Tensor, Tensor]:
    """All images for training and their labels.

    Raises:
        HastenError: there is no end of them.
    """
    count = task.examples("training")
    if count is None:
        raise HastenError(f"one network learns from images that can be counted: {task.name} draws new ones for ever")
    batch = task.take("training", 0, count)
    return batch.inputs, batch.targets


def _steps(trainings: int, steps: int) -> int:
    """Steps of the one network whose images are as many as those of all trainings but the last.

    Raises:
        HastenError: fewer than two trainings.
    """
    if trainings < 2:
        raise HastenError("one network for all is trained, and what is found in it: give 2 trainings at least")
    drawn = sum(p.share * p.drawn for p in SHRINKING) / sum(p.share for p in SHRINKING)
    return max(1, round((trainings - 1) * steps / drawn))


@network_search("once-for-all")
def sub_networks(
    task: Task, space: ArchitectureSpace[Any], latency: Callable[[Any], float], limit: float = math.inf, *,
    seconds: float | None = None, trainings: int | None = None, seed: int = 0, progress: Progress = silent,
    judged: int = 60, **training: Any,
) -> FoundNetwork[Any]:  # fmt: skip
    """Trains one elastic network, judges sub-networks of it, and trains the best within the limit on (Once-for-All).

    Args:
        task, space, latency, limit, seconds, trainings, seed, progress: of `NetworkSearch`; images with labels and the
            space ``once-for-all``.
        judged: sub-networks that a predictor of accuracy learns from, at most.
        training: of `NetworkTrials`: steps, batch, rate.

    Raises:
        HastenError: as `NetworkSearch`, or another space.
    """
    if not isinstance(space, OnceForAllSpace):
        raise HastenError(
            f"one network for all searches the space once-for-all: {space.name or type(space).__name__} is another"
        )
    trials: NetworkTrials[Architecture] = NetworkTrials(
        task, space, latency, limit, seconds=seconds, trainings=trainings, seed=seed, progress=progress, **training
    )
    trials.drawn(trials.anyone)  # says at once when nothing is within the limit
    images, labels = _images(task)
    steps = None if trainings is None else _steps(trainings, trials.steps)
    drawn = {phase.name: phase.drawn for phase in SHRINKING}
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network, passes = OnceForAll(space.config), 0

        def tell(phase: str, share: float) -> None:
            nonlocal passes
            passes += drawn[phase]
            progress(f"training one network: {phase}", _LEARNS * share)

        train(
            network, images, labels, steps=None if seconds is not None else steps, batch=trials.batch, seed=seed,
            seconds=None if seconds is None else _LEARNS * seconds, clock=trials.clock, progress=tell,
        )  # fmt: skip
        known = _judged(trials, network, images[:_CALIBRATING], judged)
        arch = next(iter(known)) if len(known) < 2 else predicted_best(trials, learned(trials, known), seed)
        found = extracted(network, arch, images[:_CALIBRATING])
    # The one network counts as the trainings that its images fill.
    trials.trained = max(1, round(passes / trials.steps))
    if trainings is not None:
        trials.trained = min(trials.trained, trainings - 1)
    return _tuned(trials, arch, found)


def _judged(trials: NetworkTrials[Architecture], network: OnceForAll, images: Tensor, count: int) -> dict[Any, float]:
    """Sub-networks within the limit and their scores on validation images, until their share of the seconds is used."""
    known: dict[Architecture, float] = {}
    for done in range(count):
        if len(known) >= 4 and trials.seconds is not None and trials.used >= _JUDGED:
            break
        arch = trials.drawn(trials.anyone)
        if arch not in known:
            known[arch] = _score(trials, extracted(network, arch, images), arch)
        trials.progress("judging its sub-networks", _LEARNS + (_JUDGED - _LEARNS) * done / count)
    return known


def _score(trials: NetworkTrials[Architecture], network: SubNetwork, arch: Architecture) -> float:
    return trials.task.evaluate(answering(network, arch.resolution), "validation")


def _tuned(trials: NetworkTrials[Architecture], arch: Architecture, found: SubNetwork) -> FoundNetwork[Architecture]:
    """A sub-network trained on with what is left; as it was where that makes it worse, or where nothing is left."""
    before, start = _score(trials, found, arch), copy.deepcopy(found)
    trials.rate *= _TUNING_RATE
    try:
        after = trials.score(arch, found, trials.steps if trials.seconds is None else 10**9)
    except BudgetIsUsed:
        trials.trained -= 1  # what is added is not trained again
        trials.add(arch, start, before)
        return trials.found()
    if trials.best is not None and trials.better(before, after):
        trials.best = (before, arch, start)
        trials.history.append((trials.history[-1][0], before))
    return trials.found()


def extracted(network: OnceForAll, arch: Architecture, images: Tensor) -> SubNetwork:
    """A sub-network with statistics of its own."""
    found = network.extract(arch)
    calibrate(found, resized(images, arch.resolution))
    return found.eval()
