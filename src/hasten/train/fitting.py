"""Training a module on batches: AdamW with a warm-up and a cosine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hasten.nn.block import undecayed
from hasten.tasks.task import Model, Task
from hasten.tasks.text import windows
from hasten.train.loop import Loss, train
from hasten.train.schedules import WarmupCosine

__all__ = ["fit", "fit_task", "parameter_groups", "windows"]

Progress = Callable[[int, float], None]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters for an optimizer: decay for matrices, none for vectors and what is marked ``no_decay``.

    A module's class names them (`hasten.nn.block.undecayed`; a state-space layer's ``A_log``), or a parameter has a
    true attribute of that name.
    """
    named = undecayed(module)
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or name in named or getattr(parameter, "no_decay", False)
            (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def fit(
    module: nn.Module,
    loss: Callable[[int], Loss],
    *,
    steps: int | None = None,
    seconds: float | None = None,
    peak: float,
    warmup: float = 0.1,
    final: float = 0.01,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = lambda step, loss: None,
) -> list[float]:
    """Trains with AdamW under a linear warm-up and a cosine to ``final`` of the peak: `train` with usual settings.

    Args:
        module: what to train, in place.
        loss: the loss at a step (0, 1, ...), see `train`.
        steps, seconds: how many, or how long.
        peak: the highest learning rate.
        warmup: share of the steps in which the rate rises.
        final: the last rate, as a share of the peak.
        weight_decay: of matrices, see `parameter_groups`.
        betas, clip: AdamW's, and the largest gradient norm (0: unlimited).
        clock: that seconds are read from.
        progress: told the step and its loss.

    Returns:
        The loss of every step.

    Raises:
        FloatingPointError: the loss became infinite or NaN; the module is left as it was at that step.
    """
    trained = train(
        module,
        loss,
        optimizer=torch.optim.AdamW(parameter_groups(module, weight_decay), lr=peak, betas=betas),
        steps=steps,
        seconds=seconds,
        schedule=WarmupCosine(warmup, final),
        clip=clip,
        keep=0,
        clock=clock,
        progress=lambda moment, value: progress(moment.step, value),
    )
    if trained.broken is not None:
        raise FloatingPointError(f"the loss is {trained.broken} at step {trained.steps}: lower the learning rate")
    return trained.losses


def fit_task(
    module: nn.Module, task: Task, *, size: int, seed: int, answer: Model | None = None, **options: Any
) -> list[float]:
    """`fit` on a task's training batches.

    Args:
        module: what to train, in place.
        task: its loss, and its batches.
        size: of a batch.
        seed: of the batches.
        answer: what the task is given in the module's place: a batch's inputs to answers, by the module's weights.
        options: of `fit`.
    """
    batches = task.batches("training", size, seed)
    asked = module if answer is None else answer
    return fit(module, lambda step: task.loss(asked, next(batches)), **options)
