"""Training a module on batches: AdamW, or another optimizer, with a warm-up and a cosine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import nn

from hasten.errors import HastenError
from hasten.nn.block import undecayed
from hasten.tasks.task import Model, Task
from hasten.tasks.text import windows
from hasten.train.kar import Kar2, Kar3
from hasten.train.loop import Loss, train
from hasten.train.schedules import WarmupCosine

__all__ = ["OPTIMIZERS", "Factory", "fit", "fit_task", "make_optimizer", "parameter_groups", "windows"]

Progress = Callable[[int, float], None]
Factory: TypeAlias = Callable[..., torch.optim.Optimizer]
"""Called with groups of parameters and ``lr``: an optimizer's class, or a `functools.partial` of one."""

# By how a pair of betas is read: both, the first as a momentum, or not at all.
_WITH_BETAS: Mapping[str, Factory] = {
    "adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "nadam": torch.optim.NAdam, "radam": torch.optim.RAdam,
}  # fmt: skip
_WITH_MOMENTUM: Mapping[str, Factory] = {"sgd": torch.optim.SGD}
_OTHERS: Mapping[str, Factory] = {"kar2": Kar2, "kar3": Kar3}
OPTIMIZERS: tuple[str, ...] = (*_WITH_BETAS, *_WITH_MOMENTUM, *_OTHERS)
"""Names that `fit` knows."""


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


def make_optimizer(
    optimizer: str | Factory,
    module: nn.Module,
    rate: float,
    *,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
) -> torch.optim.Optimizer:
    """An optimizer of a module's parameters.

    Args:
        optimizer: one of `OPTIMIZERS`, or what makes one of groups of parameters and ``lr``.
        module: whose parameters move.
        rate: the learning rate.
        weight_decay: of matrices, see `parameter_groups`; Kar2 and Kar3 decay nothing.
        betas: of the Adams; SGD, with Nesterov's step, has the first as its momentum. Kar2 and Kar3 have their own.

    Raises:
        HastenError: an unknown name.

    >>> made = make_optimizer("sgd", nn.Linear(2, 1), 0.1)
    >>> type(made).__name__, made.param_groups[0]["momentum"]
    ('SGD', 0.9)
    """
    groups = parameter_groups(module, weight_decay)
    if not isinstance(optimizer, str):
        return optimizer(groups, lr=rate)
    name = optimizer.lower()
    if name in _WITH_BETAS:
        return _WITH_BETAS[name](groups, lr=rate, betas=betas)
    if name in _WITH_MOMENTUM:
        return _WITH_MOMENTUM[name](groups, lr=rate, momentum=betas[0], nesterov=betas[0] > 0)
    if name in _OTHERS:
        return _OTHERS[name](groups, lr=rate)
    raise HastenError(f"optimizer {optimizer!r:.40} is unknown: one of {', '.join(OPTIMIZERS)}, or a class of yours")


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
    optimizer: str | Factory = "adamw",
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = lambda step, loss: None,
) -> list[float]:
    """Trains with AdamW, unless told otherwise, under a linear warm-up and a cosine to ``final`` of the peak: `train`
    with usual settings.

    Args:
        module: what to train, in place.
        loss: the loss at a step (0, 1, ...), see `train`.
        steps, seconds: how many, or how long.
        peak: the highest learning rate.
        warmup: share of the steps in which the rate rises.
        final: the last rate, as a share of the peak.
        weight_decay: of matrices, see `parameter_groups`.
        betas, clip: AdamW's, and the largest gradient norm (0: unlimited).
        optimizer: by name, or what makes one; see `make_optimizer`.
        clock: that seconds are read from.
        progress: told the step and its loss.

    Returns:
        The loss of every step.

    Raises:
        FloatingPointError: the loss became infinite or NaN; the module is left as it was at that step.
        HastenError: an unknown optimizer.
    """
    trained = train(
        module,
        loss,
        optimizer=make_optimizer(optimizer, module, peak, weight_decay=weight_decay, betas=betas),
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
