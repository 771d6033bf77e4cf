"""A schedule run tile by tile in torch, on memories that enforce their size: what its model counts, counted.

Every task has tensors of its own, filled with NaN (a strange number where there is none): what it reads that no queue,
no scratchpad and no memory brought it shows in the result. Stages run as `CoreSchedule` says: what streams goes through
queues of two tiles, what is kept lies in a scratchpad that refuses a byte too many, all else is loaded and stored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.cost.chips.core_schedule import CoreSchedule, CoreStage
from hasten.errors import HastenError
from hasten.workload.einsum import Cascade, Role
from hasten.workload.execution import compute_at, merge, read_at, write_at
from hasten.workload.memories import BackingMemory, Fifo, Scratchpad
from hasten.workload.passes import PassReport, passes
from hasten.workload.streaming import apart, by_dimension
from hasten.workload.work_graph import Pipeline

Values = dict[str, Tensor]
Tile = tuple[int, int, Tensor]  # Einsum, step, what it made


@dataclass(frozen=True)
class Replay:
    """What a schedule did.

    Args:
        outputs: tensors of role OUTPUT by name, in the shapes of the cascade.
        moved: what -> bytes off the chip, as in `CoreStageCost.moved`.
        peak: the most bytes in the scratchpad.
        queues: the most tiles in any queue.
    """

    outputs: Mapping[str, Tensor]
    moved: Mapping[str, int]
    peak: int
    queues: int


def replay(schedule: CoreSchedule, cascade: Cascade, inputs: Mapping[str, Tensor]) -> Replay:
    """Runs a schedule of a cascade's graph.

    Args:
        schedule: of `hasten.workload.streaming.work_graph` of the cascade.
        cascade: what is computed, by operators that `hasten.workload.execution` knows.
        inputs: every tensor that no Einsum writes, of the size that the cascade gives.

    Raises:
        HastenError: an input is missing, the scratchpad overflows, tensors stream at different speeds (pooling,
            upsampling), or an operator has no meaning here.
    """
    return _Machine(schedule, cascade, inputs).run()


class _Machine:
    def __init__(self, schedule: CoreSchedule, cascade: Cascade, inputs: Mapping[str, Tensor]) -> None:
        self.schedule, self.graph = schedule, schedule.graph
        self.original = cascade
        self.cascade = by_dimension(cascade).cascade
        written = {e.output.tensor for e in cascade.einsums}
        self.dtype = next((t.dtype for t in inputs.values()), torch.float32)
        given: dict[str, tuple[Tensor, int]] = {}
        for name, tensor in self.cascade.tensors.items():
            if name in written:
                continue
            found = inputs.get(name)
            if found is None or found.numel() != tensor.elements:
                raise HastenError(f"input {name} is missing or has not {tensor.elements} elements: give it")
            given[name] = (found.contiguous().reshape(tensor.shape), tensor.nbytes)
        self.given = frozenset(given)
        self.outside: BackingMemory[Tensor] = BackingMemory(given)
        self.scratchpad: Scratchpad[Tensor] = Scratchpad(schedule.array.on_chip)
        self.moved = dict.fromkeys(("weights", "inputs", "results", "spilled", "reloaded"), 0)
        self.queues = 0
        self.of = {i: t.name for t in self.graph.tasks for i in t.einsums}

    def run(self) -> Replay:
        done: set[str] = set()
        for stage in self.schedule.stages:
            self._stage(stage, done)
            done |= set(stage.tasks)
            for name in self.graph.tensors:
                if name in self.scratchpad and all(e.consumer in done for e in self.graph.edges if e.tensor == name):
                    self.scratchpad.free(name)
        outputs = {
            n: self.outside.load(n, 0).reshape(t.shape)
            for n, t in self.original.tensors.items()
            if t.role is Role.OUTPUT
        }
        return Replay(outputs, self.moved, self.scratchpad.peak, self.queues)

    def _empty(self, name: str) -> Tensor:
        """A tensor of which nothing is known."""
        poison = math.nan if self.dtype.is_floating_point else 0x5A5A % torch.iinfo(self.dtype).max
        return torch.full(self.cascade.tensors[name].shape, poison, dtype=self.dtype)

    def _stage(self, stage: CoreStage, done: set[str]) -> None:
        pipeline = self.graph.pipeline(stage.tasks)
        if pipeline is None:
            raise HastenError(f"{', '.join(stage.tasks)} cannot run at once")
        with ExitStack() as held:
            held.enter_context(self.scratchpad.room(sum(pipeline.held.values())))
            for name in sorted(stage.kept):
                self.scratchpad.put(name, self._empty(name), self.graph.tensors[name])
            values = self._brought(stage)
            for tasks in _parts(stage, pipeline):
                self._run(tasks, pipeline, values)
            self._taken(stage, done, values)

    def _brought(self, stage: CoreStage) -> dict[str, Values]:
        """What each task has at the begin: what it was given or fetched, and room for what it makes or streams in."""
        values: dict[str, Values] = {}
        fetched: Values = {}
        for task in stage.tasks:
            own: Values = {}
            sizes: dict[str, int] = {}
            members = self.graph.named[task].einsums
            made = {self.cascade.einsums[i].output.tensor for i in members}
            for i in members:
                einsum = self.original.einsums[i]
                for access in einsum.inputs:
                    if access.tensor in self.given:
                        size = self.original.access_bytes(einsum, access)
                        sizes[access.tensor] = max(sizes.get(access.tensor, 0), size)
            for name, size in sizes.items():
                own[name] = self.outside.load(name, size)
                weight = self.cascade.tensors[name].role in (Role.WEIGHT, Role.STATE)
                self.moved["weights" if weight else "inputs"] += size
            for edge in self.graph.incoming[task]:
                if edge.producer in stage.tasks:
                    own[edge.tensor] = self._empty(edge.tensor)
                elif edge.tensor in self.scratchpad:
                    own[edge.tensor] = self.scratchpad.get(edge.tensor)
                else:
                    if edge.tensor not in fetched:
                        fetched[edge.tensor] = self.outside.load(edge.tensor)
                        self.moved["reloaded"] += edge.nbytes
                    own[edge.tensor] = fetched[edge.tensor]
            for name in made:
                own[name] = self.scratchpad.get(name) if name in stage.kept else self._empty(name)
            values[task] = own
        return values

    def _taken(self, stage: CoreStage, done: set[str], values: Mapping[str, Values]) -> None:
        """Stores what later stages read from outside of the chip, and results."""
        after = done | set(stage.tasks)
        for task in stage.tasks:
            crossing = {e.tensor: e.nbytes for e in self.graph.outgoing[task] if e.consumer not in after}
            for name, size in sorted(crossing.items()):
                if name not in stage.kept:
                    self.outside.store(name, values[task][name], size)
                    self.moved["spilled"] += size
            for i in self.graph.named[task].einsums:
                tensor = self.cascade.tensors[self.cascade.einsums[i].output.tensor]
                if tensor.role is Role.OUTPUT:
                    self.outside.store(tensor.name, values[task][tensor.name], tensor.nbytes)
                    self.moved["results"] += tensor.nbytes

    # -- tiles --

    def _run(self, tasks: Sequence[str], pipeline: Pipeline, values: Mapping[str, Values]) -> None:
        """Tasks that stream into each other, or one alone."""
        members = sorted(i for t in tasks for i in self.graph.named[t].einsums)
        streams = [(e, s) for e, s in pipeline.streams if e.producer in tasks]
        if not streams:
            for i in members:
                self._whole(i, values)
            return
        report, place = self._report(members, streams[0][0].tensor, pipeline)
        along = {i: report.along[p].rpartition("@")[0] for i, p in place.items()}
        tiled = [i for i in members if along[i] and report.einsums[place[i]] == 1]
        delays = {i: report.delays[place[i]] for i in tiled}
        sizes = {i: self.cascade.einsums[i].sizes[along[i]] for i in tiled}
        if len(set(sizes.values())) > 1:
            raise HastenError(f"{', '.join(tasks)} stream at different speeds: no replay of that is written")
        queues: dict[tuple[str, str], Fifo[Tile]] = {(e.tensor, e.consumer): Fifo(2) for e, _ in streams}
        for i in members:
            if i not in tiled and report.einsums[place[i]] == 1:
                self._whole(i, values)
        started: set[int] = set()
        for now in range(max(sizes[i] + delays[i] for i in tiled)):
            for i in tiled:
                task = self.of[i]
                for (_, consumer), queue in queues.items():
                    while consumer == task and len(queue):
                        maker, step, tile = queue.take()
                        write_at(self.cascade.einsums[maker], values[task], {along[maker]: step}, tile)
                step = now - delays[i]
                if 0 <= step < sizes[i]:
                    self._tile(i, along[i], step, values[task], started)
                    made = self.cascade.einsums[i]
                    for (tensor, _), queue in queues.items():
                        if tensor == made.output.tensor:
                            tile = read_at(made, made.output, values[task], {along[i]: step}).clone()
                            queue.put((i, step, tile), tile.numel() * tile.element_size())
                            self.queues = max(self.queues, queue.peak)
        if any(len(q) for q in queues.values()):
            raise HastenError(f"{', '.join(tasks)} end with tiles that nobody took")
        for i in members:
            if i not in tiled and report.einsums[place[i]] > 1:
                self._whole(i, values)

    def _report(self, members: Sequence[int], tensor: str, pipeline: Pipeline) -> tuple[PassReport, dict[int, int]]:
        """Passes over the rank along which the tasks go, as if they were a cascade of their own."""
        cascade, place = apart(self.cascade, members)
        writer = next(i for i in members if self.cascade.einsums[i].output.tensor == tensor)
        for rank in self.cascade.einsums[writer].output.ranks:
            report = passes(cascade, f"{rank}@{writer}")
            reached = {
                report.along[place[i]].rpartition("@")[0] == pipeline.along[self.of[i]]
                for t in {self.of[i] for i in members}
                for i in [self.graph.named[t].anchor]
            }
            if reached == {True}:
                return report, place
        raise HastenError(f"nobody goes along one rank with {tensor}")

    def _whole(self, index: int, values: Mapping[str, Values]) -> None:
        einsum = self.cascade.einsums[index]
        if einsum.iterative:
            raise HastenError(f"{einsum.output.tensor} goes on step by step: no replay of that is written")
        write_at(einsum, values[self.of[index]], {}, compute_at(einsum, values[self.of[index]], {}))

    def _tile(self, index: int, along: str, step: int, values: Values, started: set[int]) -> None:
        einsum = self.cascade.einsums[index]
        made = compute_at(einsum, values, {along: step})
        if along not in einsum.reduced:
            write_at(einsum, values, {along: step}, made)
            return
        if index in started:
            made = merge(einsum, read_at(einsum, einsum.output, values, {}), made)
        started.add(index)
        write_at(einsum, values, {}, made)


def _parts(stage: CoreStage, pipeline: Pipeline) -> list[tuple[str, ...]]:
    """Tasks of a stage that are joined by what streams, each part in order."""
    parts: list[set[str]] = [{t} for t in stage.tasks]
    for edge, _ in pipeline.streams:
        joined = [p for p in parts if edge.producer in p or edge.consumer in p]
        parts = [p for p in parts if p not in joined] + [set().union(*joined)]
    return sorted((tuple(t for t in stage.tasks if t in p) for p in parts), key=lambda p: stage.tasks.index(p[0]))
