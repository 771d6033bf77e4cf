"""Training an image classifier on data that fits in memory, and its accuracy."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.train.fitting import fit
from hasten.train.loop import descend, train
from hasten.train.schedules import Cosine, Product, Warmup


def classify(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: float,
    batch: int = 64,
    rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    smoothing: float = 0.0,
    seed: int = 0,
) -> None:
    """Trains in place with SGD (Nesterov) under a short warm-up and a cosine, leaving the module in evaluation mode.

    Args:
        module: images to logits (batch, classes).
        images: (count, channels, height, width), fp32.
        labels: (count,), int64.
        epochs: passes over the images; may be a fraction.
        smoothing: of labels.
        seed: of the order.

    Raises:
        HastenError: the loss became infinite or NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    decayed = [p for p in module.parameters() if p.ndim > 1]
    plain = [p for p in module.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=True)
    steps = max(1, round(epochs * len(images) / batch))
    order = torch.empty(0, dtype=torch.int64)
    module.train()

    def loss(step: int) -> Tensor:
        nonlocal order
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        chosen, order = order[:batch], order[batch:]
        return F.cross_entropy(module(images[chosen]), labels[chosen], label_smoothing=smoothing)

    schedule = Product(Warmup(0.1), Cosine())
    trained = train(module, loss, optimizer=optimizer, steps=steps, schedule=schedule, keep=0)
    module.eval()
    trained.finished("training the classifier")


@torch.no_grad()
def accuracy(module: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Share of images (count, channels, height, width) whose largest logit is their label's."""
    right = 0
    for first in range(0, len(images), batch):
        right += int((module(images[first : first + batch]).argmax(1) == labels[first : first + batch]).sum())
    return right / len(images)


def fit_timed(
    module: nn.Module, images: Tensor, labels: Tensor, held: int, steps: int, seed: int, *, batch: int = 64
) -> tuple[list[float], float, float]:
    """Trains in place with AdamW on random batches, and times it: losses, median seconds of a step, and accuracy.

    Args:
        module: images to logits (batch, classes).
        images: (count, channels, height, width), fp32.
        labels: (count,), int64.
        held: so many of the first images judge, and are not learned from.
        steps: ten of them warm up.
        seed: of the batches.
        batch: images of a step.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        chosen = torch.randint(held, len(images), (batch,), generator=generator)
        return F.cross_entropy(module(images[chosen]), labels[chosen])

    marks = [time.perf_counter()]
    losses = fit(
        module, loss, steps=steps, peak=1e-3, warmup=10 / steps, final=1.0, weight_decay=0.05,
        progress=lambda step, value: marks.append(time.perf_counter()),
    )  # fmt: skip
    seconds = statistics.median_high(b - a for a, b in itertools.pairwise(marks))
    return losses, seconds, accuracy(module, images[:held], labels[:held])


def noise_step(module: nn.Module, batch: int, side: int, seed: int) -> Callable[[], object]:
    """A call that makes a training step on one batch of noise: forward, backward and AdamW.

    Args:
        module: images (batch, 3, side, side) to at least ``batch`` logits.
        batch, side: of the images.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), 1e-3)
    images, labels = torch.randn(batch, 3, side, side, generator=generator), torch.arange(batch)
    return lambda: descend(optimizer, F.cross_entropy(module(images), labels))
