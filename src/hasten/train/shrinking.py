"""Training a once-for-all network: progressive shrinking with distillation (arXiv 1908.09791, section 3.3).

The largest network first; then, with it as teacher, kernels, depths and widths are added one kind after the other,
sub-networks being drawn block by block at each step.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.models.vision.once_for_all import Architecture, OFAConfig, OnceForAll, SubNetwork, resized
from hasten.train import loop
from hasten.train.fitting import parameter_groups
from hasten.train.loop import Trained
from hasten.train.schedules import Moment, WarmupCosine

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class ShrinkingPhase:
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


# The paper's phases in its order, at rates and shares that suit minutes: its own (a largest network that is trained to
# the end, then rates of a tenth to a third, four sub-networks a step) left the small ones several points behind after
# the same time. Short phases still have a low rate.
SHRINKING = (
    ShrinkingPhase("largest", 0.2, 1.0, 1, 1, 1, 1),
    ShrinkingPhase("kernel", 0.05, 0.5, 1, None, 1, 1),
    ShrinkingPhase("depth 1", 0.03, 0.2, 2, None, 2, 1, warmup=0),
    ShrinkingPhase("depth 2", 0.1, 0.7, 2, None, None, 1),
    ShrinkingPhase("width 1", 0.04, 0.2, 2, None, None, 2, sort=True, warmup=0),
    ShrinkingPhase("width 2", 0.58, 1.0, 2, None, None, None, sort=True),
)
# All sub-networks from the first step, for comparison.
JOINT = (ShrinkingPhase("joint", 1.0, 1.0, 2),)
# The same with the same teacher, trained as long and gone on from: what is left of the difference is the order alone.
JOINT_TAUGHT = (SHRINKING[0], ShrinkingPhase("joint", 1.0 - SHRINKING[0].share, 1.0, 2))


def _smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=0.1)


def train(
    network: OnceForAll,
    images: Tensor,
    labels: Tensor,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    phases: Sequence[ShrinkingPhase] = SHRINKING,
    batch: int = 128,
    rate: float = 0.15,
    distill: float = 1.0,
    weight_decay: float = 3e-5,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress = lambda phase, share: None,
) -> OnceForAll | None:
    """Trains in place for about ``seconds``, or for ``steps``, leaving the network in evaluation mode.

    SGD with Nesterov momentum 0.9, labels smoothed by 0.1, no decay of vectors, a warm-up and a cosine in each phase,
    gradients clipped at a norm of 5. The loss of each drawn sub-network is the labels' plus ``distill`` times the cross
    entropy with the teacher's softmax; the teacher is the network after the first phase, if that trained the largest
    alone. Gradients of a step's sub-networks are summed before the weights move. The input size is drawn each step.

    Args:
        network: of any `OFAConfig` that fits the images.
        images: (count, channels, height, width), fp32; resized to each step's resolution.
        labels: (count,), int64.
        seconds, steps: one of them; each phase has its share, at least one step.
        clock: that ``seconds`` are read from; ``time.process_time`` makes arms comparable on a busy machine.
        progress: told the phase and the share done of all.

    Returns:
        The teacher, or None where there was none.

    Raises:
        HastenError: no time, or the loss became infinite or NaN.
    """
    budget = seconds if steps is None else steps
    if budget is None or budget <= 0 or not phases or (seconds is not None and steps is not None):
        raise HastenError("training a once-for-all network needs some seconds, or steps, and a phase")
    config = network.config
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    teacher: OnceForAll | None = None
    total, done = sum(p.share for p in phases), 0.0
    kept: list[int] = []

    def losses(
        phase: ShrinkingPhase, allowed: dict[str, tuple[int, ...]], teacher: OnceForAll | None
    ) -> Callable[[int], float]:
        def loss(_: int) -> float:
            chosen = torch.randint(len(images), (batch,), generator=generator)
            size = rng.choice(config.resolutions)
            x = resized(images[chosen], size).contiguous(memory_format=torch.channels_last)
            archs = [config.sample(rng, resolutions=(size,), **allowed) for _ in range(phase.drawn)]
            return step(network, x, labels[chosen], archs, teacher, distill)

        return loss

    def tell(phase: ShrinkingPhase, before: float) -> Callable[[Moment, float], None]:
        return lambda moment, _: progress(phase.name, (before + moment.share * phase.share) / total)

    for number, phase in enumerate(phases):
        allowed = choices(config, phase)
        if phase.sort:
            network.sort_channels(kept)
            kept = [e for e in allowed["expands"] if e != config.expands[-1]]
        length, schedule = budget * phase.share / total, _schedule(phase.warmup)
        optimizer = _optimizer(network, rate * phase.rate, weight_decay)
        trained = loop.train(
            network, losses(phase, allowed, teacher), optimizer=optimizer, schedule=schedule, clip=5.0, keep=0,
            seconds=length if steps is None else None, steps=None if steps is None else max(1, round(length)),
            clock=clock, progress=tell(phase, done),
        )  # fmt: skip
        _whole(trained, phase.name)
        done += phase.share
        alone = phase.kernels == phase.depths == phase.expands == 1
        if number == 0 and alone and distill and len(phases) > 1:
            teacher = copy.deepcopy(network)
    network.eval()
    return teacher


def train_alone(
    network: SubNetwork,
    images: Tensor,
    labels: Tensor,
    *,
    seconds: float,
    soft: Tensor | None = None,
    batch: int = 128,
    rate: float = 0.15,
    weight_decay: float = 3e-5,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Trains one ordinary network in place by the same recipe as `train`, at its own resolution.

    It goes on from the weights there are: one that has left its once-for-all network is trained on for a device, as in
    the paper (25 or 75 epochs).

    Args: as of `train`, and
        soft: (count, classes), a teacher's softmax of the images, see `soft_labels`; it should know more than the
            network is to learn.

    Raises:
        HastenError: no time, or the loss became infinite or NaN.
    """
    if seconds <= 0:
        raise HastenError("training a network needs some seconds")
    generator = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()

    def loss(_: int) -> Tensor:
        chosen = torch.randint(len(images), (batch,), generator=generator)
        x = resized(images[chosen], network.arch.resolution).contiguous(memory_format=torch.channels_last)
        logits = network(x)
        found = _smoothed(logits, labels[chosen])
        return found if soft is None else found + _distilled(logits, soft[chosen])

    optimizer = _optimizer(network, rate, weight_decay)
    trained = loop.train(
        network, loss, optimizer=optimizer, seconds=seconds, schedule=_schedule(0.05), clip=5.0, keep=0, clock=clock
    )
    _whole(trained, "alone")
    network.eval()


@torch.no_grad()
def soft_labels(teacher: SubNetwork, images: Tensor, batch: int = 500) -> Tensor:
    """A network's softmax (count, classes) of images (count, channels, height, width), brought to its resolution."""
    teacher.eval()
    made = [teacher(resized(x, teacher.arch.resolution)).softmax(-1) for x in images.split(batch)]
    return torch.cat(made)


def _distilled(logits: Tensor, soft: Tensor) -> Tensor:
    """Cross entropy with a teacher's softmax."""
    return -(soft * logits.log_softmax(-1)).sum(-1).mean()


def _optimizer(network: nn.Module, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameter_groups(network, weight_decay), lr=rate, momentum=0.9, nesterov=True)


def _schedule(warmup: float) -> WarmupCosine:
    return WarmupCosine(warmup, least=1e-3)


def _whole(trained: Trained, phase: str) -> None:
    if trained.broken is not None:
        raise HastenError(f"the loss became {trained.broken} in phase {phase!r}: lower the rate")


def step(
    network: OnceForAll, images: Tensor, labels: Tensor, archs: Sequence[Architecture],
    teacher: OnceForAll | None = None, distill: float = 1.0,
) -> float:  # fmt: skip
    """Gradients of one step: those of all sub-networks, summed. Returns the mean loss.

    The teacher runs in training mode, by the batch's statistics, without gradients.
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
            loss = loss + distill * _distilled(logits, soft)
        loss.backward()
        total += loss.item()
    return total / len(archs)


def choices(config: OFAConfig, phase: ShrinkingPhase) -> dict[str, tuple[int, ...]]:
    """What may be drawn in a phase, by name: ``kernels``, ``depths``, ``expands``."""
    names = {"kernels": phase.kernels, "depths": phase.depths, "expands": phase.expands}
    return {n: getattr(config, n) if count is None else getattr(config, n)[-count:] for n, count in names.items()}


def corners(config: OFAConfig, resolution: int | None = None) -> list[Architecture]:
    """The eight sub-networks of the least or greatest depth, width and kernel."""
    ends = [(c[0], c[-1]) for c in (config.depths, config.expands, config.kernels)]
    return [config.architecture(k, e, d, resolution) for d in ends[0] for e in ends[1] for k in ends[2]]
