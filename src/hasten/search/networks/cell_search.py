"""Searching cells by gradient: DARTS, and PC-DARTS with a part of the channels and weights of edges (arXiv 1907.05737).

Weights learn from one half of the training images and logits from the other, in turn (first order); logits begin late.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.errors import HastenError
from hasten.models.vision.darts import KINDS, Genotype
from hasten.search.networks.bilevel import Spending, answering, classification, halves
from hasten.search.networks.darts_super_net import DartsSuperNet
from hasten.tasks.task import Task
from hasten.train.loop import descend
from hasten.train.schedules import Cosine, Moment


@dataclass(frozen=True)
class CellSearch:
    """What a search for cells gave.

    Args:
        arch: the genotype.
        scores: of each kind of cell its edges' and operations' (14, 8).
        score: the task's metric of the super-network on validation examples, norms by batch.
        steps: of the weights, and of the logits.
    """

    arch: Genotype
    scores: dict[str, Tensor]
    score: float
    steps: tuple[int, int]


def search_cells(
    supernet: DartsSuperNet,
    task: Task,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    warm: float = 0.3,
    batch: int | None = None,
    rate: float | None = None,
    logit_rate: float = 6e-3,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[float], None] = lambda share: None,
) -> CellSearch:
    """Trains a super-network in place and derives its genotype.

    Args:
        supernet: trained in place.
        task: a classification of images.
        seconds, steps: the budget, in seconds or steps of the weights.
        seed: of everything random but the super-network's first weights.
        warm: share of the budget before logits move, 15 of 50 epochs in the paper.
        batch: images of a step; 64 for each part when None: what the channels left out save is spent on the batch.
        rate: the highest of the weights; 0.1 at 256 images when None, in proportion at others.
        logit_rate: the paper's for ImageNet, where logits have few steps; its 0.0006 is for ten times as many.
        clock: that seconds are read from.
        progress: told the share done.

    Raises:
        HastenError: no budget, or another task.
    """
    asked, answer = classification(task), answering(supernet, supernet.config.resolution)
    size = 64 * supernet.part if batch is None else batch
    peak = 0.1 * size / 256 if rate is None else rate
    generator = torch.Generator().manual_seed(seed)
    parts = halves(task, 0.5, (size, size), seed)
    weights = torch.optim.SGD(supernet.weights(), lr=peak, momentum=0.9, weight_decay=3e-4)
    logits = torch.optim.Adam(supernet.logits(), lr=logit_rate, betas=(0.5, 0.999), weight_decay=1e-3)
    spending, schedule, moved = Spending(seconds, steps, clock), Cosine(0.01), 0
    supernet.train()
    while (share := spending.share) < 1:
        supernet.draw(generator)
        if share >= warm:
            given = next(parts.logits)
            logits.zero_grad(set_to_none=True)
            torch.autograd.backward(F.cross_entropy(answer(given.inputs), given.targets), inputs=supernet.logits())
            logits.step()
            moved += 1
        for group in weights.param_groups:
            group["lr"] = peak * schedule(Moment(spending.done, share))
        given = next(parts.weights)
        loss = F.cross_entropy(answer(given.inputs), given.targets)
        if not math.isfinite(descend(weights, loss, parameters=supernet.weights(), clip=5.0)):
            raise HastenError("the super-network's loss is not finite: lower its rate")
        spending.done += 1
        progress(share)
    with torch.no_grad():
        score = asked.evaluate(answer, "validation", size=256)
    return CellSearch(supernet.derive(), {k: supernet.scores(k) for k in KINDS}, score, (spending.done, moved))
