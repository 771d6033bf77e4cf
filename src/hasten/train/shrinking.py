"""Training a once-for-all network: progressive shrinking with distillation (arXiv 1908.09791, section 3.3).

The largest network first; then, with it as teacher, kernels, depths and widths are added one kind after the other,
sub-networks being drawn block by block at each step.
"""

from __future__ import annotations

import copy
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.once_for_all import Architecture, OFAConfig, OnceForAll, resized

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Phase:
    """A part of the training.

    Args:
        name: for people.
        share: of the time.
        rate: highest learning rate, as a share of the recipe's.
        drawn: sub-networks of a step.
        kernels, depths, expands: how many of the largest choices may be drawn; None for all.
        sort: whether channels are sorted before it.
        warmup: share of the phase in which the rate rises.
    """

    name: str
    share: float
    rate: float
    drawn: int = 1
    kernels: int | None = None
    depths: int | None = None
    expands: int | None = None
    sort: bool = False
    warmup: float = 0.05


# Shares of the paper's epochs (180, 125, 25, 125, 25, 125), with more for the teacher; rates relative to its own.
SHRINKING = (
    Phase("largest", 0.4, 1.0, 1, 1, 1, 1),
    Phase("kernel", 0.15, 0.37, 1, None, 1, 1),
    Phase("depth 1", 0.05, 0.1, 2, None, 2, 1, warmup=0),
    Phase("depth 2", 0.15, 0.3, 2, None, None, 1),
    Phase("width 1", 0.05, 0.1, 4, None, None, 2, sort=True, warmup=0),
    Phase("width 2", 0.2, 0.3, 4, None, None, None, sort=True),
)
# All sub-networks from the first step, for comparison.
JOINT = (Phase("joint", 1.0, 1.0, 2),)


def _smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def train(
    network: OnceForAll,
    images: Tensor,
    labels: Tensor,
    *,
    seconds: float,
    phases: Sequence[Phase] = SHRINKING,
    batch: int = 64,
    rate: float = 0.1,
    distill: float = 1.0,
    weight_decay: float = 3e-5,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = lambda phase, share: None,
) -> OnceForAll | None:
    """Trains in place for about ``seconds``, leaving the network in evaluation mode.

    SGD with Nesterov momentum 0.9, labels smoothed by 0.1, no decay of vectors, a cosine in each phase. The loss of
    each drawn sub-network is the labels' plus ``distill`` times the cross entropy with the teacher's softmax; the
    teacher is the network after the first phase, if that trained the largest alone. Gradients of a step's
    sub-networks are summed before the weights move. The input size is drawn for every step.

    Args:
        network: of any `OFAConfig` that fits the images.
        images: (count, channels, height, width), fp32; resized to each step's resolution.
        labels: (count,), int64.
        clock: that ``seconds`` are read from; ``time.process_time`` makes arms comparable on a busy machine.
        progress: told the phase and the share done of all.

    Returns:
        The teacher, or None where there was none.

    Raises:
        HastenError: no time, or the loss became infinite or NaN.
    """
    if seconds <= 0 or not phases:
        raise HastenError("training a once-for-all network needs some seconds and a phase")
    config = network.config
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher: OnceForAll | None = None
    total, done = sum(p.share for p in phases), 0.0
    kept: list[int] = []
    for number, phase in enumerate(phases):
        choices = {
            name: _largest(getattr(config, name), getattr(phase, name)) for name in ("kernels", "depths", "expands")
        }
        if phase.sort:
            network.sort_channels(kept)
            kept = [e for e in choices["expands"] if e != config.expands[-1]]
        groups = [
            {"params": [p for p in network.parameters() if p.ndim > 1], "weight_decay": weight_decay},
            {"params": [p for p in network.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(groups, lr=rate, momentum=0.9, nesterov=True)
        length = seconds * phase.share / total
        begun = clock()
        while (at := (clock() - begun) / length) < 1:
            share = 0.5 * (1 + math.cos(math.pi * at))
            if phase.warmup and at < phase.warmup:
                share = at / phase.warmup
            for group in optimizer.param_groups:
                group["lr"] = rate * phase.rate * max(share, 1e-3)
            chosen = torch.randint(len(images), (batch,), generator=generator)
            size = rng.choice(config.resolutions)
            x = resized(images[chosen], size).contiguous(memory_format=torch.channels_last)
            y = labels[chosen]
            archs = [config.sample(rng, resolutions=(size,), **choices) for _ in range(phase.drawn)]
            loss = step(network, x, y, archs, teacher, distill)
            if not math.isfinite(loss):
                raise HastenError(f"the loss became {loss} in phase {phase.name!r}: lower the rate")
            nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimizer.step()
            progress(phase.name, (done + min(at, 1) * phase.share) / total)
        done += phase.share
        alone = phase.kernels == phase.depths == phase.expands == 1
        if number == 0 and alone and distill and len(phases) > 1:
            teacher = copy.deepcopy(network)
    network.eval()
    return teacher


def step(
    network: OnceForAll, images: Tensor, labels: Tensor, archs: Sequence[Architecture],
    teacher: OnceForAll | None = None, distill: float = 1.0,
) -> float:  # fmt: skip
    """Gradients of one step: those of all sub-networks, summed. Returns the mean loss.

    The teacher runs in training mode without gradients, and is left with its statistics.
    """
    network.train()
    network.zero_grad(set_to_none=True)
    soft: Tensor | None = None
    if teacher is not None:
        teacher.train()
        with torch.no_grad():
            soft = teacher(images).softmax(-1)
    total = 0.0
    for arch in archs:
        logits = network(images, arch)
        loss = _smoothed(logits, labels)
        if soft is not None:
            loss = loss - distill * (soft * logits.log_softmax(-1)).sum(-1).mean()
        loss.backward()
        total += loss.item()
    return total / len(archs)


def _largest(choices: tuple[int, ...], count: int | None) -> tuple[int, ...]:
    return choices if count is None else choices[-count:]


def corners(config: OFAConfig, resolution: int | None = None) -> list[Architecture]:
    """The eight sub-networks of the least or greatest depth, width and kernel."""
    ends = [(c[0], c[-1]) for c in (config.depths, config.expands, config.kernels)]
    return [config.architecture(k, e, d, resolution) for d in ends[0] for e in ends[1] for k in ends[2]]
