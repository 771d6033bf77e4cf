"""A network that a search found, trained from random weights and judged on examples that no search has seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

from hasten.models.vision.once_for_all import resized
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.search.networks.bilevel import answering
from hasten.search.networks.searching import NetworkTrials
from hasten.tasks.images import LabelledImages
from hasten.tasks.task import Task

A = TypeVar("A", bound=Hashable)
_MOST_STEPS = 10**9  # seconds end the training


def retrained(
    task: Task, space: ArchitectureSpace[A], arch: A, seconds: float, *, seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:  # fmt: skip
    """The task's metric on test examples after a training from random weights.

    Args:
        task: of images.
        space: of the network.
        arch: the network.
        seconds: of the training.
        seed: of weights and batches.
        clock: that seconds are read from.
    """
    trials = NetworkTrials(task, space, lambda _: 0.0, math.inf, seconds=seconds, seed=seed, clock=clock)
    trials.score(arch, steps=_MOST_STEPS)
    return task.evaluate(answering(trials.found().network, space.input_shape(arch)[-1]), "test")


def at_size(task: LabelledImages, side: int) -> LabelledImages:
    """The task with its images brought to a size once, and not in each step; it is changed itself."""
    task.parts = {split: (resized(images, side), labels) for split, (images, labels) in task.parts.items()}
    return task
