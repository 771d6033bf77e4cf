"""Sections of a graph on a streaming chip: what is fused, how many units each task has, where tensors lie, how it runs.

After SN40L (arXiv 2405.07518, sections III to V). A section is launched as one. All of its tasks have compute units of
their own from its begin to its end, and what passes between them stays on the chip: tile by tile through two tiles of
buffer where the graph says that it streams, whole where the reader needs all of it, at once or at each tile. Only a
section's inputs, weights and results pass the fast memory. Tasks between which nothing waits for a whole tensor are a
*phase*; phases follow each other. In seconds, the model being ours:

    section = max( sum over phases of (slowest task + fill), bytes / bandwidth ) + launch

A phase's units are divided in proportion to its tasks' work, so that these take equally long, and all units among the
phases in proportion to the roots of their work, which makes the sum of their times the least. Weights that a pipeline
reads again at each tile stay on the chip for the section. A task alone has what it needs beside.

`plan_sections` finds the fastest sections of all that are runs of tasks in the graph's order, by dynamic programming.
More memory on the chip only adds to what may be chosen, so no plan is slower with more. `unfused_sections` is a task at
a time, as the baseline: every tensor passes the fast memory.

A section is launched by *software* (a host sends three commands, and waits for its end) or by *hardware* (the chip
walks through a schedule that was given once, for all repeats). Units that compute element by element count as fast as
those that multiply.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from hasten.cost.chips.chip_cost import ChipCost
from hasten.cost.timeline import Activity, Timeline, run_timeline
from hasten.errors import HastenError
from hasten.hardware.chips.streaming_chip import StreamingChip
from hasten.workload.memories import Allocation, LiveBuffer, allocate
from hasten.workload.work_graph import Pipeline, WorkGraph

Launcher = Literal["software", "hardware"]
LAUNCHERS: tuple[Launcher, ...] = ("software", "hardware")
HOST_COMMANDS = ("program", "arguments", "execute")

TILE = 16
"""Steps of a rank in a tile, where nobody says otherwise: a choice of ours, as the paper names no sizes."""


@dataclass(frozen=True)
class Section:
    """Tasks that are launched as one.

    Args:
        tasks: in the order of the graph.
        phases: the same, those of a phase together.
        units: task -> compute units, for those that compute.
        compute: seconds of all phases.
        held: bytes on the chip: weights that are read at each tile, two tiles of what streams, whole tensors.
        moved: name of a tensor, or of what a task's weights are (``weights of TASK``), -> bytes from and to the fast
            memory.
    """

    tasks: tuple[str, ...]
    phases: tuple[tuple[str, ...], ...]
    units: Mapping[str, int]
    compute: float
    held: int
    moved: Mapping[str, int]

    @property
    def nbytes(self) -> int:
        """From and to the fast memory."""
        return sum(self.moved.values())


@dataclass(frozen=True, kw_only=True)
class SectionsCost(ChipCost):
    """What all sections cost, as often as they run, without energy or area.

    They are bound by ``compute``, ``memory``, ``store`` or ``launch``, whatever takes the most seconds.

    Args:
        launches: that the host makes.
        launching: seconds of them.
        flops: of all repeats.
    """

    launches: int
    launching: float
    flops: int

    @property
    def intensity(self) -> float:
        """FLOPs a byte that passes the fast memory."""
        return self.flops / self.bytes["memory"] if self.bytes["memory"] else math.inf

    def share_of(self, bandwidth: float) -> float:
        """Of a bandwidth to the fast memory (B/s) what is used, launches and all."""
        return self.bytes["memory"] / self.latency / bandwidth if self.latency else 0.0


@dataclass(frozen=True)
class Placement:
    """Where symbols lie: weights, inputs, results, and tensors that pass between sections.

    Args:
        fast: addresses in the fast memory; what never is alive at once shares bytes.
        stored: symbols that had no room there and are read from the store, with their bytes.
    """

    fast: Allocation
    stored: Mapping[str, int]


@dataclass(frozen=True)
class SectionPlan:
    """Sections in order, of a graph, on a chip."""

    graph: WorkGraph
    chip: StreamingChip
    sections: tuple[Section, ...]

    @cached_property
    def symbols(self) -> tuple[LiveBuffer, ...]:
        """What passes the fast memory, alive from the first section that has it to the last that reads it.

        Weights are there for all of the time, inputs from the first section on, and results to the last.
        """
        last = len(self.sections) - 1
        lives: dict[str, tuple[int, int]] = {}
        sizes: dict[str, int] = {}
        between, weights = set(self.graph.tensors), {_weights(t.name) for t in self.graph.tasks}
        results = {_results(t.name) for t in self.graph.tasks}
        for number, section in enumerate(self.sections):
            for name, nbytes in section.moved.items():
                begin, _ = lives.get(name, (number, number))
                lives[name] = (begin, number)
                sizes[name] = self.graph.tensors.get(name, max(sizes.get(name, 0), nbytes))
        found = []
        for name, (begin, end) in lives.items():
            if name not in between:
                begin, end = (begin if name in results else 0), (last if name in weights or name in results else end)
            found.append(LiveBuffer(name, sizes[name], begin, end))
        return tuple(found)

    @cached_property
    def placement(self) -> Placement:
        """Addresses in the fast memory; where not all fits, what moves least goes to the store first.

        Raises:
            HastenError: a section needs more than both hold.
        """
        volume: dict[str, int] = {}
        for section in self.sections:
            for name, nbytes in section.moved.items():
                volume[name] = volume.get(name, 0) + nbytes
        kept = sorted(self.symbols, key=lambda b: (-volume[b.name], b.size, b.name))
        stored: dict[str, int] = {}
        while (found := allocate(kept)).peak > self.chip.memory_bytes:
            # What lies beyond the lower bound in any case goes at once.
            over = max(1, found.lower - self.chip.memory_bytes)
            while over > 0 and kept:
                gone = kept.pop()
                stored[gone.name] = gone.size
                over -= gone.size
        if sum(stored.values()) > self.chip.store_bytes:
            raise HastenError(
                f"{self.graph.name} needs {sum(stored.values()):,} bytes beside the fast memory of {self.chip.name}, "
                f"whose store has {self.chip.store_bytes:,}: use more sockets, or a smaller model"
            )
        return Placement(found, stored)

    def bounds(self, section: Section) -> dict[str, float]:
        """Seconds of one section without its launch, by what could bound it: they are the largest of these."""
        stored = self._stored(section)
        return {
            "compute": section.compute,
            "memory": (section.nbytes - stored) / self.chip.bandwidth,
            "store": stored / self.chip.store_bandwidth,
        }

    def _stored(self, section: Section) -> int:
        return sum(n for name, n in section.moved.items() if name in self.placement.stored)

    def cost(self, launch: Launcher = "hardware", repeats: int = 1) -> SectionsCost:
        """What all sections cost, one run after the other.

        Args:
            launch: by whom.
            repeats: runs, such as tokens that are made.

        Raises:
            HastenError: another way to launch, no repeat, or more than the chip holds.
        """
        _check(launch, repeats)
        commands = len(HOST_COMMANDS) * self.chip.host_command
        count = len(self.sections) * repeats
        launching = count * commands if launch == "software" else commands + count * self.chip.scheduled_launch
        stored = sum(map(self._stored, self.sections))
        bound = {"compute": 0.0, "memory": 0.0, "store": 0.0, "launch": launching}
        for section in self.sections:
            own = self.bounds(section)
            kind = max(own, key=own.__getitem__)
            bound[kind] += own[kind] * repeats
        return SectionsCost(
            latency=sum(bound.values()),
            energy=0.0,
            bytes={"memory": (sum(s.nbytes for s in self.sections) - stored) * repeats, "store": stored * repeats},
            bound=max(bound, key=bound.__getitem__),
            launches=count if launch == "software" else 1,
            launching=launching,
            flops=self.graph.flops * repeats,
        )

    def timeline(self, launch: Launcher = "hardware", repeats: int = 1) -> Timeline:
        """The host's commands and the chip's sections as lanes."""
        _check(launch, repeats)
        found: list[Activity] = []

        def told(name: str, after: tuple[str, ...]) -> tuple[str, ...]:
            for command in HOST_COMMANDS:
                found.append(Activity(f"{name}: {command}", "host", self.chip.host_command, after, label=command))
                after = (found[-1].name,)
            return after

        after = () if launch == "software" else told("schedule", ())
        between = 0.0 if launch == "software" else self.chip.scheduled_launch
        for run in range(repeats):
            for number, section in enumerate(self.sections):
                name = f"{run}.{number}: {section.tasks[0]}"
                if launch == "software":
                    after = told(name, after)
                seconds = max(self.bounds(section).values())
                found.append(Activity(name, "chip", seconds, after, launch=between, label=f"section {number}"))
                after = (name,)
        return run_timeline(found)


def _check(launch: str, repeats: int) -> None:
    if launch not in LAUNCHERS:
        raise HastenError(f"sections are launched by {' or '.join(LAUNCHERS)}, not by {launch[:20]!r}")
    if repeats < 1:
        raise HastenError(f"sections run {repeats} times: give at least 1")


def _weights(task: str) -> str:
    return f"weights of {task}"


def _results(task: str) -> str:
    return f"results of {task}"


def plan_sections(
    graph: WorkGraph, chip: StreamingChip, *, launch: Launcher = "hardware", tile: int = TILE
) -> SectionPlan:
    """The fastest sections; of those the ones that move the fewest bytes, then the fewest.

    Args:
        graph: what runs.
        chip: where.
        launch: by whom sections are launched: the more a launch takes, the more is fused.
        tile: steps of a rank that pass at once.

    Raises:
        HastenError: another way to launch, or a tile of nothing.

    >>> from hasten.hardware.chips.streaming_chip import streaming_chip
    >>> from hasten.workload.work_graph import Stream, WorkEdge, WorkTask
    >>> tasks = [WorkTask("a", 10**9, weight_bytes=10**6), WorkTask("b", 10**9, weight_bytes=10**6)]
    >>> edge = WorkEdge("a", "b", 10**6, "t", (Stream(steps=64, buffer_bytes=10**6 // 64),))
    >>> plan = plan_sections(WorkGraph("two", tuple(tasks), (edge,)), streaming_chip("sn40l"))
    >>> [s.tasks for s in plan.sections], plan.sections[0].units
    ([('a', 'b')], {'a': 520, 'b': 520})
    """
    _check(launch, 1)
    if tile < 1:
        raise HastenError(f"a tile of {tile} steps: give at least 1")
    each = len(HOST_COMMANDS) * chip.host_command if launch == "software" else chip.scheduled_launch
    order = graph.order
    # Place in the order -> (seconds, bytes, sections) of the best way to there, and its last section.
    best: list[tuple[tuple[float, int, int], tuple[Section, ...]]] = [((0.0, 0, 0), ())]
    best += [((math.inf, 0, 0), ())] * len(order)
    for begin in range(len(order)):
        (seconds, nbytes, count), before = best[begin]
        for section in _growing(graph, chip, order, begin, tile):
            own = max(section.compute, section.nbytes / chip.bandwidth) + each
            rank = (seconds + own, nbytes + section.nbytes, count + 1)
            end = begin + len(section.tasks)
            if rank < best[end][0]:
                best[end] = (rank, (*before, section))
    return SectionPlan(graph, chip, best[-1][1])


def unfused_sections(graph: WorkGraph, chip: StreamingChip) -> SectionPlan:
    """A section for each task."""
    return SectionPlan(graph, chip, tuple(next(_growing(graph, chip, graph.order, i, TILE)) for i in range(len(graph))))


def one_section(graph: WorkGraph, chip: StreamingChip, tasks: Sequence[str], *, tile: int = TILE) -> Section:
    """A run of tasks in the graph's order as one section.

    Raises:
        HastenError: they are no such run, or larger than the chip.
    """
    begin = graph.order.index(tasks[0]) if tasks and tasks[0] in graph.named else 0
    if not tasks or tuple(tasks) != graph.order[begin : begin + len(tasks)]:
        raise HastenError(f"{', '.join(tasks) or 'nothing'} is no run of tasks of {graph.name}: give some in its order")
    for section in _growing(graph, chip, graph.order, begin, tile):
        if len(section.tasks) == len(tasks):
            return section
    raise HastenError(f"{tasks[0]} to {tasks[-1]} as one section are larger than {chip.name}: cut them")


@dataclass
class _Phase:
    tasks: list[str] = field(default_factory=list)
    pipeline: Pipeline | None = None


def _growing(graph: WorkGraph, chip: StreamingChip, order: Sequence[str], begin: int, tile: int) -> Iterator[Section]:
    """Sections from a task on, each a task longer, that fit on the chip; one task always does."""
    phases: list[_Phase] = []
    where: dict[str, int] = {}
    for end in range(begin, len(order)):
        task = order[end]
        _join(graph, phases, where, task)
        tasks = order[begin : end + 1]
        section = _section(graph, chip, tasks, phases, where, tile)
        if len(tasks) > 1 and len(section.units) > chip.compute_units:
            return
        # A longer one may take less: what one task leaves whole the next takes tile by tile.
        if len(tasks) == 1 or section.held <= chip.on_chip:
            yield section


def _memory(graph: WorkGraph, pipeline: Pipeline) -> int:
    """Bytes on the chip that a way to go through tasks needs with tiles of one step: what is held whole decides."""
    sizes: dict[str, int] = {}
    for task, names in pipeline.whole.items():
        given = dict(graph.named[task].inputs) | {e.tensor: e.nbytes for e in graph.incoming[task]}
        sizes |= {name: given[name] for name in names & given.keys()}
    for task in {e.consumer for e, stream in pipeline.streams if stream.folds}:
        sizes |= {e.tensor: e.nbytes for e in graph.outgoing[task]}
        sizes[_results(task)] = graph.named[task].result_bytes
    return sum(pipeline.held.values()) + pipeline.buffer_bytes + sum(sizes.values())


def _join(graph: WorkGraph, phases: list[_Phase], where: dict[str, int], task: str) -> None:
    """Puts a task in the first phase that it can run in: with those whose results stream to it, after all others."""
    at = max((where[e.producer] + (not e.streams) for e in graph.incoming[task] if e.producer in where), default=0)
    while True:
        if at == len(phases):
            phases.append(_Phase())
        found = graph.pipeline([*phases[at].tasks, task], _memory)
        if found is not None:
            break
        at += 1
    phases[at].tasks.append(task)
    phases[at].pipeline = found
    where[task] = at


def _section(
    graph: WorkGraph, chip: StreamingChip, tasks: Sequence[str], phases: Sequence[_Phase], where: Mapping[str, int],
    tile: int,
) -> Section:  # fmt: skip
    units = _units(graph, chip, phases)
    compute, held = 0.0, 0
    tiles: dict[str, int] = {}
    for phase in phases:
        assert phase.pipeline is not None
        steps = {t: -(-n // tile) for t, n in phase.pipeline.steps.items()}
        # Whoever streams to nobody goes along his longest rank.
        tiles |= {t: steps.get(t, -(-max(graph.named[t].ways, default=1) // tile)) for t in phase.tasks}
        seconds = {
            t: graph.named[t].flops / chip.flops * chip.compute_units / units[t] if t in units else 0.0
            for t in phase.tasks
        }
        compute += max(seconds.values()) + phase.pipeline.fill(seconds, {t: seconds[t] / n for t, n in steps.items()})
        held += sum(phase.pipeline.held.values())
    if len(tasks) > 1:
        held += _buffers(graph, phases, where, tiles, tile)
    return Section(
        tuple(tasks), tuple(tuple(p.tasks) for p in phases), units, compute, held, _moved(graph, tasks, where)
    )


def _buffers(
    graph: WorkGraph, phases: Sequence[_Phase], where: Mapping[str, int], tiles: Mapping[str, int], tile: int
) -> int:
    """Bytes of two tiles of all that tasks make, and of all of what is read whole, by another phase or at each tile."""
    sizes: dict[str, int] = {}

    def keep(name: str, nbytes: int) -> None:
        sizes[name] = max(sizes.get(name, 0), nbytes)

    pipelines = [p.pipeline for p in phases if p.pipeline is not None]
    # Who sums over what streams in has his result only at the end.
    sums = {e.consumer for p in pipelines for e, stream in p.streams if stream.folds}
    for task in where:
        parts = 1 if task in sums else tiles[task]
        for edge in graph.outgoing[task]:
            later = edge.consumer in where and where[edge.consumer] != where[task]
            keep(edge.tensor, edge.nbytes if later else min(edge.nbytes, 2 * -(-edge.nbytes // parts)))
        result = graph.named[task].result_bytes
        keep(_results(task), min(result, 2 * -(-result // parts)))
    for pipeline in pipelines:
        for edge, stream in pipeline.streams:
            keep(edge.tensor, min(edge.nbytes, 2 * tile * stream.buffer_bytes))
        for task, names in pipeline.whole.items():
            given = dict(graph.named[task].inputs) | {e.tensor: e.nbytes for e in graph.incoming[task]}
            for name in names & given.keys():
                keep(name, given[name])
    return sum(sizes.values())


def _units(graph: WorkGraph, chip: StreamingChip, phases: Sequence[_Phase]) -> dict[str, int]:
    """Task -> compute units; at least one for each that computes, also where that is more than there are."""
    work = {t: graph.named[t].flops for p in phases for t in p.tasks if graph.named[t].flops}
    if not work:
        return {}
    wanted: dict[str, float] = {}
    roots = {i: math.sqrt(sum(work.get(t, 0) for t in p.tasks)) for i, p in enumerate(phases)}
    for i, phase in enumerate(phases):
        for task in phase.tasks:
            if task in work:
                wanted[task] = chip.compute_units * roots[i] / sum(roots.values()) * work[task] / roots[i] ** 2
    found = {t: max(1, math.floor(n + 1e-9)) for t, n in wanted.items()}
    spare = chip.compute_units - sum(found.values())
    # The rest goes to whoever is the furthest below his share; what those with one unit took is taken from the largest.
    for task in sorted(wanted, key=lambda t: found[t] - wanted[t]):
        if spare <= 0:
            break
        found[task] += 1
        spare -= 1
    while spare < 0 and max(found.values()) > 1:
        found[max(found, key=lambda t: found[t])] -= 1
        spare += 1
    return found


def _moved(graph: WorkGraph, tasks: Sequence[str], where: Mapping[str, int]) -> dict[str, int]:
    """What passes the fast memory: what comes from outside, what later sections read, results."""
    found: dict[str, int] = {}
    for name in tasks:
        task = graph.named[name]
        if task.weight_bytes:
            found[_weights(name)] = task.weight_bytes
        unnamed = task.input_bytes - sum(n for _, n in task.inputs)
        if unnamed:
            found[f"inputs of {name}"] = unnamed
        for given, nbytes in task.inputs:
            found[given] = max(found.get(given, 0), nbytes)
        for edge in graph.incoming[name]:
            if edge.producer not in where:
                found[edge.tensor] = edge.nbytes
        leaving = {e.tensor: e.nbytes for e in graph.outgoing[name] if e.consumer not in where}
        found |= leaving
        if task.result_bytes:
            found[_results(name)] = task.result_bytes
    return found
