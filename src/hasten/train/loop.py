"""The one training loop: any module and loss, a budget in steps or in seconds, any optimizer and schedule.

    trained = train(model, lambda step: loss_of(model, next(batches)), seconds=60,
                    optimizer=torch.optim.AdamW(parameter_groups(model, 0.1), 3e-3), schedule=WarmupCosine(0.1))
    print(trained.steps, trained.losses[-1], trained.stopped)

Reinforcement learning and meta-learning keep outer loops of their own and share `descend`, a single step.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hasten.cost.preserving import evaluating
from hasten.errors import HastenError
from hasten.train.checkpoint import Checkpoint
from hasten.train.schedules import CONSTANT, Moment, Schedule

# A number stands for a loss whose gradients are already there.
Loss: TypeAlias = Tensor | float | Iterable[Tensor]
Stopped: TypeAlias = Literal["steps", "seconds", "not finite"]


@dataclass
class Trained:
    """What a training did.

    Args:
        steps: that moved the weights, those before it was resumed included.
        seconds: of training, without evaluations; those before it was resumed included.
        losses: of every one of these steps.
        stopped: why: the budget in ``steps`` or in ``seconds`` was used up, or a loss was ``not finite``.
        broken: the loss that was not finite; of weights that were not, NaN.
        restored: the number of the step in front of which the module is again after such a loss; None where it is as it
            was when the loss was seen.
        evaluations: (steps done, value) of each.
    """

    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    stopped: Stopped = "steps"
    broken: float | None = None
    restored: int | None = None
    evaluations: list[tuple[int, float]] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The last; NaN where there was no step."""
        return self.losses[-1] if self.losses else math.nan

    def finished(self, name: str = "the training") -> Trained:
        """Itself.

        Raises:
            HastenError: a loss was not finite.
        """
        if self.broken is not None:
            raise HastenError(f"{name} broke: the loss is {self.broken} at step {self.steps}: lower the learning rate")
        return self


def descend(
    optimizer: torch.optim.Optimizer,
    loss: Tensor | Iterable[Tensor | float],
    *,
    parameters: Iterable[Tensor] | None = None,
    clip: float = 0.0,
) -> float:
    """One step down a loss, or down the sum of several, each of which is let go before the next is computed.

    Args:
        optimizer: of what moves.
        loss: a scalar with a graph, or an iterable of such. A number in it stands for a loss that ran backward when
            the iterable was asked for it.
        parameters: whose gradients are cleared before and clipped; the optimizer's when None.
        clip: the largest norm of their gradient; 0 for any.

    Returns:
        The loss, or their sum. Where it is not finite, nothing has moved.
    """
    if parameters is None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
    else:
        parameters = list(parameters)
    for parameter in parameters:
        parameter.grad = None
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for part in (loss,) if isinstance(loss, Tensor) else loss:
        total += part if isinstance(part, float) else part.item()
        if not math.isfinite(total):
            return total
        if not isinstance(part, float):
            part.backward()
    if clip:
        nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
    return total


def moving_average(module: nn.Module, decay: float = 0.999) -> AveragedModel:
    """An exponential moving average of a module's weights, for `train`; call it as the module."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)


def train(
    module: nn.Module,
    loss: Callable[[int], Loss],
    *,
    optimizer: torch.optim.Optimizer | Callable[[nn.Module], torch.optim.Optimizer],
    steps: int | None = None,
    seconds: float | None = None,
    schedule: Schedule = CONSTANT,
    clip: float = 0.0,
    average: AveragedModel | None = None,
    bfloat16: bool = False,
    evaluate: Callable[[int], float] | None = None,
    every: int = 0,
    keep: int = 100,
    checkpoint: str | Path | None = None,
    save: int = 100,
    generators: Sequence[torch.Generator] = (),
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[Moment, float], None] = lambda moment, loss: None,
) -> Trained:
    """Trains a module in place, in the mode (training or evaluation) that it is in.

    Nothing here is random: the same loss, module and optimizer are the same training.

    Args:
        module: what to train.
        loss: the loss at a step (0, 1, ...): a scalar with a graph, or an iterable of such, whose gradients are summed;
            or a number, when it has run backward itself.
        optimizer: of any kind whose ``step`` needs no closure, or a function that makes one for the module. Its rates
            are the highest, and stand there again afterwards.
        steps, seconds: the budget: one of them, or both, and what is used up first ends it. A budget in seconds is good
            for at least one step.
        schedule: the share of the rates at each `Moment`, see `hasten.train.schedules`.
        clip: the largest norm of the gradient; 0 for any.
        average: `moving_average` of the module, kept up after each step.
        bfloat16: whether the loss is computed under autocast to bfloat16; weights and steps stay as they are.
        evaluate: told the steps done every ``every`` steps and at the end, under no_grad and in evaluation mode; its
            time is not of the budget.
        keep: steps between copies of the weights, of which the last one is restored after a loss that is not finite; 0
            for none.
        checkpoint: a safetensors file: written every ``save`` steps and at the end, and gone on from where it is there.
            A training that was cut gives the same losses as a whole one when ``loss`` depends on the step, on torch's
            own generator and on ``generators`` alone.
        generators: that ``loss`` draws from; kept in the checkpoint.
        clock: that seconds are read from; ``time.process_time`` makes trainings comparable on a busy machine.
        progress: told where a step was, and its loss.

    Raises:
        HastenError: no budget, or a checkpoint that cannot be written or is not of this training.
    """
    if (steps is None and seconds is None) or (steps or 0) < 0 or (seconds is not None and seconds < 0):
        raise HastenError("a training needs a budget: give steps or seconds that are not negative")
    chosen = optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(module)
    rates = [group["lr"] for group in chosen.param_groups]
    trained = Trained()
    kept = _Kept(module, average)
    saved = None if checkpoint is None else Checkpoint(Path(checkpoint), module, chosen, average, generators)
    if saved is not None and (found := saved.load()) is not None:
        trained.steps, trained.seconds = int(found["steps"]), float(found["seconds"])
        trained.losses = [float(value) for value in found["losses"]]
        trained.evaluations = [(int(step), float(value)) for step, value in found["evaluations"]]

    def store() -> None:
        if saved is not None:
            saved.save({
                "steps": trained.steps, "seconds": trained.seconds, "losses": trained.losses,
                "evaluations": trained.evaluations,
            })  # fmt: skip

    def judge() -> float:
        """Evaluates; the seconds that it took."""
        if evaluate is None or (trained.evaluations and trained.evaluations[-1][0] == trained.steps):
            return 0.0
        begun = clock()
        with evaluating(module), torch.no_grad():
            trained.evaluations.append((trained.steps, float(evaluate(trained.steps))))
        return clock() - begun

    device = next((p.device.type for p in module.parameters()), "cpu")
    begun = clock() - trained.seconds
    try:
        while True:
            trained.seconds = clock() - begun
            moment = _moment(trained.steps, trained.seconds, steps, seconds)
            if steps is not None and trained.steps >= steps:
                trained.stopped = "steps"
                break
            if seconds is not None and trained.seconds >= seconds and trained.steps:
                trained.stopped = "seconds"
                break
            for group, rate in zip(chosen.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(moment)
            parts = _parts(loss, trained.steps, device, bfloat16)
            if keep and trained.steps % keep == 0:
                # The loss is seen before the copy is made, so that what is kept is known to be good.
                parts = kept.before(parts, trained.steps)
            value = descend(chosen, parts, parameters=module.parameters(), clip=clip)
            if not math.isfinite(value):
                trained.stopped, trained.broken = "not finite", value
                break
            trained.steps += 1
            trained.losses.append(value)
            if average is not None:
                average.update_parameters(module)
            progress(moment, value)
            if every and trained.steps % every == 0:
                begun += judge()
            if saved is not None and save and trained.steps % save == 0:
                trained.seconds = clock() - begun
                store()
        if trained.broken is None and keep and not _finite(module):
            trained.stopped, trained.broken = "not finite", math.nan
        if trained.broken is not None:
            trained.restored = kept.restore()
        else:
            judge()
            store()
    finally:
        for group, rate in zip(chosen.param_groups, rates, strict=True):
            group["lr"] = rate
    return trained


def _moment(step: int, spent: float, steps: int | None, seconds: float | None) -> Moment:
    shares = [step / steps] if steps else []
    if seconds is not None:
        shares.append(spent / seconds if seconds else 1.0)
    return Moment(step, min(1.0, max(shares, default=1.0)), steps if seconds is None else None)


def _parts(loss: Callable[[int], Loss], step: int, device: str, bfloat16: bool) -> Iterator[Tensor | float]:
    """The losses of a step, each computed when it is asked for; backward passes stay outside of autocast."""

    def context() -> contextlib.AbstractContextManager[object]:
        return torch.autocast(device, torch.bfloat16) if bfloat16 else contextlib.nullcontext()

    with context():
        found = loss(step)
    if isinstance(found, Tensor | float):
        yield found
        return
    parts = iter(found)
    while True:
        with context():
            part = next(parts, None)
        if part is None:
            return
        yield part


def _finite(module: nn.Module) -> bool:
    return all(bool(p.isfinite().all()) for p in module.parameters() if p.requires_grad)


class _Kept:
    """The last weights and buffers that gave a finite loss."""

    def __init__(self, *modules: nn.Module | None) -> None:
        self.modules = [m for m in modules if m is not None]
        self.copies: list[Tensor] = []
        self.step: int | None = None

    def _tensors(self) -> list[Tensor]:
        return [t for m in self.modules for t in (*m.parameters(), *m.buffers())]

    def before(self, parts: Iterator[Tensor | float], step: int) -> Iterator[Tensor | float]:
        """The losses of a step; the weights in front of it are copied once they are known to be finite."""
        good = True
        for part in parts:
            good = good and math.isfinite(part if isinstance(part, float) else part.item())
            yield part
        if good:
            self._copy(step)

    @torch.no_grad()
    def _copy(self, step: int) -> None:
        if not self.copies:
            self.copies = [t.detach().clone() for t in self._tensors()]
        else:
            for copy, tensor in zip(self.copies, self._tensors(), strict=True):
                copy.copy_(tensor)
        self.step = step

    @torch.no_grad()
    def restore(self) -> int | None:
        """Brings the copies back; the step that they stood in front of, None where there are none."""
        for tensor, copy in zip(self._tensors(), self.copies, strict=False):
            tensor.copy_(copy)
        return self.step
