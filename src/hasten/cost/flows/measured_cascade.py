"""Models as stages of a cascade, really run: their scores, their seconds of one thread, and a stream through both."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hasten.cost.flows.cascade import CascadeFlow, CascadeStage, ScoredEvents, Streamed, cascade_flow
from hasten.errors import HastenError
from hasten.processes import one_thread

_BATCH = 256


class MeasuredPair(NamedTuple):
    """Two models: what they scored, and J of an event."""

    events: ScoredEvents
    joules: Mapping[str, float]


@torch.no_grad()
def scores(module: nn.Module, inputs: Tensor, batch: int = _BATCH) -> Tensor:
    """Scores (events,) of a module in the mode that it is in: its one output, or the second of two less the first.

    Raises:
        HastenError: it answers with another number of outputs.
    """
    found = []
    for first in range(0, len(inputs), batch):
        answer = module(inputs[first : first + batch])
        width = answer[0].numel() if len(answer) else 0
        if width not in (1, 2):
            raise HastenError(f"a stage gives one score for an event, or two logits, not {width} numbers")
        rows = answer.reshape(len(answer), width)
        found.append(rows[:, 0] if width == 1 else rows[:, 1] - rows[:, 0])
    if not found:
        raise HastenError("nothing is scored without events: give at least one")
    return torch.cat(found)


def stage_seconds(
    modules: Mapping[str, nn.Module], inputs: Tensor, *, batch: int = _BATCH, rounds: int = 5
) -> dict[str, float]:
    """Seconds of one thread that an event takes in each module: the median of rounds in turn over all inputs.

    Raises:
        HastenError: no rounds, batches of nothing, or no inputs.
    """
    if rounds < 1 or batch < 1:
        raise HastenError(f"{rounds} rounds over batches of {batch}: give at least 1 of each")
    taken: dict[str, list[float]] = {name: [] for name in modules}
    everything = torch.arange(len(inputs))
    with one_thread():
        for _ in range(rounds + 1):  # the first warms up
            for name, module in modules.items():
                spent = _passed(module, inputs, everything, math.inf, batch)[1]
                taken[name].append(spent / len(inputs))
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def _passed(
    module: nn.Module, inputs: Tensor, events: Tensor, threshold: float, batch: int
) -> tuple[Tensor, float]:  # fmt: skip
    """Which of some events (places in ``inputs``) score above a threshold, and seconds of this thread."""
    begun = time.thread_time()
    found = events[scores(module, inputs[events], batch) > threshold] if len(events) else events
    return found, time.thread_time() - begun


def measured_pair(
    modules: Mapping[str, nn.Module], inputs: Tensor, relevant: Tensor, *, watts: float | Sequence[float] = 1.0,
    batch: int = _BATCH, rounds: int = 5, timed: int = 4096,
) -> MeasuredPair:  # fmt: skip
    """Runs models on events that they were not trained on: scores of all, seconds of some.

    Args:
        modules: by name, from inputs to scores (`scores`).
        inputs: (events, ...).
        relevant: (events,) bool.
        watts: while a module runs, of all or of each; with 1 a joule is a second of one core.
        batch: events of a call.
        rounds: of measuring.
        timed: events that seconds are measured with.

    Raises:
        HastenError: not two models, or what they answer is no score.
    """
    power = [float(watts)] * len(modules) if isinstance(watts, int | float) else [float(w) for w in watts]
    if len(modules) != 2 or len(power) != 2 or min(power) <= 0:
        raise HastenError("a pair is two models by name, and their watts are one or two numbers above 0")
    columns = {name: scores(module, inputs, batch).double().numpy() for name, module in modules.items()}
    seconds = stage_seconds(modules, inputs[:timed], batch=batch, rounds=rounds)
    events = ScoredEvents(tuple(columns), np.stack(list(columns.values()), 1), relevant.bool().numpy())
    return MeasuredPair(events, {n: s * w for (n, s), w in zip(seconds.items(), power, strict=True)})


class RunCascade(NamedTuple):
    """A stream that was really run.

    Args:
        counted: what each stage saw and what was stored; joules are of the stages' figures.
        each: seconds of one thread that a stage took for an event that it saw, by stage, measured while it ran.
        stored: (events,) bool: which passed.
    """

    counted: Streamed
    each: tuple[float, ...]
    stored: NDArray[np.bool_]

    @property
    def seconds(self) -> float:
        """Of one thread for an event that came in."""
        received = self.counted.received.sum(1)
        return float(received @ np.array(self.each) / max(1, received[0]))


def run_cascade(
    modules: Mapping[str, nn.Module], stages: Sequence[CascadeStage], thresholds: Sequence[float], inputs: Tensor,
    relevant: Tensor, *, batch: int = _BATCH,
) -> RunCascade:  # fmt: skip
    """Runs events through a cascade, one stage after the other, each on what the one before passed, in full batches.

    Args:
        modules: by the stages' names.
        stages, thresholds: in order.
        inputs: (events, ...), in the order in which they come.
        relevant: (events,) bool, for counting alone.
    """
    left, received, each, joules = torch.arange(len(inputs)), [], [], 0.0
    kinds = relevant.long()
    with one_thread():
        for stage, threshold in zip(stages, thresholds, strict=True):
            received.append(torch.bincount(kinds[left], minlength=2).numpy())
            joules += stage.joules * len(left)
            count = max(1, len(left))
            left, seconds = _passed(modules[stage.name], inputs, left, threshold, batch)
            each.append(seconds / count)
    stored = torch.bincount(kinds[left], minlength=2).numpy()
    mask = np.zeros(len(inputs), bool)
    mask[left.numpy()] = True
    return RunCascade(Streamed(np.stack(received), stored, joules / max(1, len(inputs))), tuple(each), mask)


class TriedCascade(NamedTuple):
    """A cascade, as its graph says and as it ran.

    Args:
        flow: predicted from other events, which went through the same cascade in turn with the runs; J are s.
        run: the last of the runs, its energy counted with the flow's seconds.
        off: how far predicted seconds of an event are above those of the run: the median of rounds.
    """

    flow: CascadeFlow
    run: RunCascade
    off: float


def tried_cascade(
    modules: Mapping[str, nn.Module], events: ScoredEvents, held: Tensor, reductions: Mapping[str, float],
    inputs: Tensor, relevant: Tensor, *, rounds: int = 15,
) -> TriedCascade:  # fmt: skip
    """Predicts a cascade from some events, and runs it on others.

    Seconds of a stage are measured where it stands: on what the stages before leave, scattered and in few batches.

    Args:
        modules: by name.
        events: scored by all, from which thresholds are chosen.
        held: (events, ...) their inputs, which seconds are measured with before each run.
        reductions: name -> reduction, in the order of the stages.
        inputs, relevant: the stream.
        rounds: of measuring and running.
    """
    share = float(relevant.double().mean())
    kinds, off, each = torch.from_numpy(events.relevant), [], []
    stages = [CascadeStage(name, 1.0, reduction) for name, reduction in reductions.items()]
    unpriced = cascade_flow(events, stages, relevant=share)
    thresholds = list(unpriced.thresholds.values())
    reached = [float(unpriced.cost.nodes[s.name].received.sum()) for s in stages]  # of one event a second
    run_cascade(modules, stages, thresholds, held, kinds)  # warms up
    for _ in range(rounds):
        each.append(run_cascade(modules, stages, thresholds, held, kinds).each)
        run = run_cascade(modules, stages, thresholds, inputs, relevant)
        off.append(float(np.dot(reached, each[-1])) / run.seconds - 1)
    stages = [s._replace(joules=float(j)) for s, j in zip(stages, np.median(each, axis=0), strict=True)]
    flow = cascade_flow(events, stages, relevant=share)
    counted = run.counted._replace(joules=float(run.counted.received.sum(1) @ [s.joules for s in stages]) / len(inputs))
    run = run._replace(counted=counted)
    return TriedCascade(flow, run, statistics.median(off))


__all__ = [
    "MeasuredPair",
    "RunCascade",
    "TriedCascade",
    "measured_pair",
    "run_cascade",
    "scores",
    "stage_seconds",
    "tried_cascade",
]
