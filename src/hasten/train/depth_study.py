"""Deep and shallow residual networks of equal weights trained alike, on scikit-learn's digits (arXiv 2309.08414)."""

from __future__ import annotations

import bisect
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F

from hasten.models.vision.residual_convnet import ResidualConvNet
from hasten.nn.parallel_residual import taylor_gap, to_parallel
from hasten.tasks.images import Digits
from hasten.train.loop import train

COUNTS = (1200, 596, 1)  # digits for training and for validation; a task has a third split
_BORDERS = (1.0, 3.0, 10.0)


class StudySize(NamedTuple):
    """Branches, channels and kernel of a network of the study, and whether its head reads means over positions."""

    depth: int
    width: int
    kernel: int = 3
    pooled: bool = False

    def network(self, groups: int | None) -> ResidualConvNet:
        """The network: deep where groups are None, shallow where there is one."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what a study is about
            return ResidualConvNet(
                10, 1, 8, self.width, self.depth, kernel=self.kernel, groups=groups, pooled=self.pooled
            )

    @property
    def determination(self) -> float:
        """Of its network, `ResidualConvNet.determination` for the digits of training."""
        return self.network(None).determination(COUNTS[0])


def determination_bin(value: float) -> str:
    """The bin of the paper's table that a determination ratio falls in.

    >>> determination_bin(2.5), determination_bin(10.0)
    ('1 to 3', 'from 10')
    """
    i = bisect.bisect_right(_BORDERS, value)
    if i == len(_BORDERS):
        return f"from {_BORDERS[-1]:g}"
    return f"{([0.0, *_BORDERS])[i]:g} to {_BORDERS[i]:g}"


class StudyRun(NamedTuple):
    """Losses of a trained network on both splits, its accuracy in percent, and what becomes of it side by side.

    Args:
        converted: accuracy with the trained branches side by side.
        gap: of that, `TaylorGap.first`.
    """

    training: float
    validation: float
    accuracy: float
    converted: float
    gap: float

    @classmethod
    def mean(cls, runs: Iterable[StudyRun]) -> StudyRun:
        """Of several seeds or sizes."""
        return cls(*(sum(values) / len(values) for values in zip(*runs, strict=True)))


class DeepAndShallow(NamedTuple):
    """Both networks of a size, or their means."""

    deep: StudyRun
    shallow: StudyRun

    @classmethod
    def mean(cls, pairs: Sequence[DeepAndShallow]) -> DeepAndShallow:
        """Of several."""
        return cls(StudyRun.mean(p.deep for p in pairs), StudyRun.mean(p.shallow for p in pairs))


def study_run(size: StudySize, groups: int | None, steps: int, seed: int, batch: int = 64) -> StudyRun:
    """Trains a network of the study by RMSprop.

    Args:
        size, groups: of `StudySize.network`.
        steps, batch: of training; 562 steps are 30 passes.
        seed: of weights and batches.

    Raises:
        HastenError: the loss broke.
    """
    torch.manual_seed(seed)
    network, task = size.network(groups), Digits(COUNTS)
    batches = task.batches("training", batch, seed)
    optimizer = torch.optim.RMSprop(network.parameters(), 1e-3)
    trained = train(network, lambda step: task.loss(network, next(batches)), steps=steps, keep=0, optimizer=optimizer)
    trained.finished(f"a network of depth {size.depth} and width {size.width}")
    network.eval()
    with torch.no_grad():
        parts = task.parts["training"], task.parts["validation"]
        losses = [float(F.cross_entropy(network(images), labels)) for images, labels in parts]
        accuracy = 100 * task.evaluate(network, "validation", size=COUNTS[1])
        gap = taylor_gap(network.stack, network.stem(task.parts["validation"][0][:batch]), rounds=1).first
        network.stack = to_parallel(network.stack)
        converted = 100 * task.evaluate(network, "validation", size=COUNTS[1])
    return StudyRun(losses[0], losses[1], accuracy, converted, gap)
