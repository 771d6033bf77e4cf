"""Counting what `hasten.cost.chips.hls` estimates: every iteration of a nest walked through, with real addresses.

Nothing here uses the estimator's rules: banks are found from the addresses of each iteration, sums from when each
element was last folded into, and the interval of a dataflow design from stages that start when their blocks are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.cost.chips.hls import folding_latency
from hasten.errors import HastenError
from hasten.hardware.hls.directives import PORTS, HlsDesign, NestSchedule, schedule
from hasten.workload.loops import ArrayUse, LoopProgram, LoopStage

MOST_POINTS = 4_000_000


@dataclass(frozen=True)
class StageCount:
    """What was counted of a stage.

    Args:
        interval: the least number of cycles between iterations at which no bank is asked for too much and no sum is
            read before it is there.
        trips: iterations.
    """

    interval: int
    trips: int

    @property
    def started(self) -> int:
        """Cycles from the first to the last iteration's start."""
        return (self.trips - 1) * self.interval


def count_stage(stage: LoopStage, design: HlsDesign) -> StageCount:
    """Walks through all iterations of a stage.

    Raises:
        HastenError: more than `MOST_POINTS` points, or directives that do not fit.
    """
    if stage.points > MOST_POINTS:
        raise HastenError(f"stage {stage.name} has {stage.points:,} points, too many to walk through")
    directives = design.of(stage)
    plan = schedule(stage, directives)
    at = _positions(plan)
    trips = plan.trips
    folding = [i for i, level in enumerate(plan.levels) if level.rank in stage.reduced]
    counters = np.indices([level.trips for level in plan.levels]).reshape(len(plan.levels), -1)
    first, last = np.ones(trips, bool), np.ones(trips, bool)
    for i in folding:
        first &= counters[i] == 0
        last &= counters[i] == plan.levels[i].trips - 1

    finishing = set(stage.used(stage.finish)) - set(stage.used(stage.value))
    asked: dict[str, list[tuple[ArrayUse, NDArray[np.bool_]]]] = {}
    for i, use in enumerate(stage.reads):
        when = last if i in finishing else np.ones(trips, bool)
        asked.setdefault(use.array, []).append((use, when))
    for use in stage.writes:
        asked.setdefault(use.array, []).append((use, last))
    needs = [_busiest(uses, plan, at, design, name, stage.sizes) for name, uses in asked.items()]
    interval = max(1, directives.interval, *(math.ceil(n / PORTS) for n in needs))

    if stage.reduce is not None and folding:
        within = [i for i in range(plan.kept, len(plan.levels)) if i not in folding]
        element = np.zeros(trips, np.int64)
        for i in [*range(plan.kept), *within]:
            element = element * plan.levels[i].trips + counters[i]
        order = np.lexsort((np.arange(trips), element))
        gaps = np.diff(order)[(np.diff(element[order]) == 0) & ~first[order][1:]]
        if len(gaps):
            interval = max(interval, math.ceil(folding_latency(stage, plan, design.number) / int(gaps.min())))
    return StageCount(interval, trips)


def _positions(plan: NestSchedule) -> dict[str, NDArray[np.int64]]:
    """Rank -> where it stands in each iteration, before its copies."""
    grid = np.indices([level.trips for level in plan.levels]).reshape(len(plan.levels), -1)
    found: dict[str, NDArray[np.int64]] = {}
    for i, level in enumerate(plan.levels):
        found[level.rank] = found.get(level.rank, np.zeros(grid.shape[1], np.int64)) + grid[i] * level.step
    return found


def _busiest(
    uses: list[tuple[ArrayUse, NDArray[np.bool_]]],
    plan: NestSchedule,
    at: Mapping[str, NDArray[np.int64]],
    design: HlsDesign,
    name: str,
    sizes: Mapping[str, int],
) -> int:
    """The most different elements of one bank in one iteration."""
    shape, banks = design.program.arrays[name].shape, design.banks(name)
    if math.prod(banks) >= math.prod(shape):
        return 0
    unrolled = dict(plan.unrolled)
    rows: list[NDArray[np.int64]] = []
    for use, when in uses:
        mine = [r for r in unrolled if r in use.ranks]
        copies = np.indices([unrolled[r] for r in mine]).reshape(len(mine), -1) if mine else np.zeros((0, 1), np.int64)
        which = np.flatnonzero(when)
        inside = np.ones((len(which), copies.shape[1]), bool)
        bank, element = np.zeros(inside.shape, np.int64), np.zeros(inside.shape, np.int64)
        for d, s in enumerate(use.subscripts):
            place = np.full(inside.shape, s.offset, np.int64)
            for rank, factor in s.terms:
                if rank in at:
                    place += factor * at[rank][which][:, None]
                if rank in mine:
                    place += factor * copies[mine.index(rank)][None, :]
            inside &= (place >= 0) & (place < shape[d])
            bank = bank * banks[d] + place % banks[d]
            element = element * shape[d] + place
        iteration = np.broadcast_to(which[:, None], inside.shape)
        rows.append(np.stack([iteration[inside], bank[inside], element[inside]], 1))
    asked = np.unique(np.concatenate(rows), axis=0)
    if not len(asked):
        return 0
    _, counts = np.unique(asked[:, :2], axis=0, return_counts=True)
    return int(counts.max())


@dataclass(frozen=True)
class DataflowCount:
    """Cycles until the first result, and between results, mean over the later half of the inputs."""

    first: int
    interval: float


def count_dataflow(
    program: LoopProgram, latencies: Mapping[str, int], depths: Mapping[str, int], inputs: int = 0
) -> DataflowCount:
    """Runs successive inputs through a program's stages, which start as soon as they can.

    A stage starts on an input when it is done with the one before, all that it reads is made, and each array that it
    writes has a block that its reader does not need any more.

    Args:
        program: the stages.
        latencies: stage -> cycles.
        depths: array between stages -> blocks of it.
        inputs: that are run; enough for the interval to settle when 0.
    """
    inputs = max(3, inputs or 4 * len(program.stages) + 4)
    ended: dict[str, list[int]] = {s.name: [] for s in program.stages}
    makers = {u.array: s.name for s in program.stages for u in s.writes}
    readers = {u.array: s.name for s in program.stages for u in s.reads}
    for number in range(inputs):
        for stage in program.stages:
            ready = ended[stage.name][-1] if ended[stage.name] else 0
            ready = max([ready, *(ended[makers[u.array]][number] for u in stage.reads if u.array in makers)])
            for use in stage.writes:
                before = number - depths.get(use.array, 2)
                if use.array in readers and before >= 0:
                    ready = max(ready, ended[readers[use.array]][before])
            ended[stage.name].append(ready + latencies[stage.name])
    results = [max(ended[makers[n]][i] for n in program.outputs) for i in range(inputs)]
    half = inputs // 2
    return DataflowCount(results[0], (results[-1] - results[half]) / (inputs - 1 - half))
