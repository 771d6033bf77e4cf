"""Training a module on batches: the plain recipe that the checks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Progress = Callable[[int, float], None]


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameters for an optimizer: decay for matrices, none for vectors and what is marked ``no_decay``.

    A module marks a parameter by setting its attribute ``no_decay`` to True (a state-space layer's ``A_log``).
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            exempt = parameter.ndim < 2 or getattr(parameter, "no_decay", False)
            (plain if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def fit(
    module: nn.Module,
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    peak: float,
    warmup: float = 0.1,
    final: float = 0.01,
    weight_decay: float = 0.1,
    betas: tuple[float, float] = (0.9, 0.95),
    clip: float = 1.0,
    progress: Progress = lambda step, loss: None,
) -> list[float]:
    """Trains with AdamW under a linear warm-up and a cosine to ``final`` of the peak.

    Args:
        module: what to train, in place.
        loss: the loss at a step (0, 1, ...), a scalar with a graph.
        steps: how many.
        peak: the highest learning rate.
        warmup: share of the steps in which the rate rises.
        final: the last rate, as a share of the peak.
        weight_decay: of matrices, see `parameter_groups`.
        betas, clip: AdamW's, and the largest gradient norm (0: unlimited).
        progress: told the step and its loss.

    Returns:
        The loss of every step.

    Raises:
        FloatingPointError: the loss became infinite or NaN; the module is left as it was at that step.
    """
    optimizer = torch.optim.AdamW(parameter_groups(module, weight_decay), lr=peak, betas=betas)
    rising = max(1, round(warmup * steps))
    losses = []
    for step in range(steps):
        if step < rising:
            share = (step + 1) / rising
        else:
            share = final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
        for group in optimizer.param_groups:
            group["lr"] = peak * share
        value = loss(step)
        number = value.item()
        if not math.isfinite(number):
            raise FloatingPointError(f"the loss is {number} at step {step}: lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        losses.append(number)
        progress(step, number)
    return losses


def windows(ids: Tensor, length: int, batch: int, seed: int = 0) -> Iterator[Tensor]:
    """Endless random windows (batch, length + 1) of a text's ids (n,), int64; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    reach = torch.arange(length + 1)
    while True:
        starts = torch.randint(len(ids) - length, (batch, 1), generator=generator)
        yield ids[starts + reach]
