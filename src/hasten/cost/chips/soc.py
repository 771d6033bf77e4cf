"""A system on chip that runs a graph of tasks: a simulation from phase to phase, with contention.

As in FARSI, the simulator behind ArchGym's FARSIGym: a phase is a time in which the same tasks run, so that rates do
not change. A task computes as fast as its processing element lets it unless a memory or bus on its way is shared with
others; what is shared is divided evenly, and what one cannot use goes to the rest. Elements run one task at a time, of
those that are ready the one with the longest way to the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hasten.cost.chips.chip_cost import ChipCost
from hasten.data.task_graphs import KINDS, TaskGraph
from hasten.errors import HastenError


@dataclass(frozen=True)
class Processor:
    """A kind of processing element.

    Args:
        name: its name.
        rates: kind of task -> operations a cycle; tasks of kinds that are left out cannot run there.
        energy: J an operation at the reference clock; it grows with the square of the clock, as voltage follows.
        leakage: W, always.
        area: square metres.
    """

    name: str
    rates: Mapping[str, float]
    energy: float
    leakage: float
    area: float


# Plausible figures of a mobile chip in 5 nm (our own): what matters is their order, not the chip.
PROCESSORS = {
    p.name: p
    for p in (
        Processor("cpu", dict.fromkeys(KINDS, 4.0), 60e-12, 0.030, 0.60e-6),
        Processor("dsp", {"filter": 32.0, "transform": 32.0, "control": 2.0}, 12e-12, 0.020, 0.80e-6),
        Processor("filter-unit", {"filter": 256.0}, 2e-12, 0.015, 0.50e-6),
        Processor("transform-unit", {"transform": 128.0}, 3e-12, 0.015, 0.60e-6),
    )
}
"""Kinds of processing elements by name."""


@dataclass(frozen=True)
class MemoryBlock:
    """A kind of memory: B/s, J a byte, W always, square metres."""

    name: str
    bandwidth: float
    energy: float
    leakage: float
    area: float


MEMORIES = {
    m.name: m
    for m in (
        MemoryBlock("dram", 12.8e9, 40e-12, 0.040, 0.0),
        MemoryBlock("sram", 51.2e9, 4e-12, 0.060, 2.5e-6),
    )
}
"""Kinds of memories by name."""

TOPOLOGIES = ("shared", "split", "crossbar")
REFERENCE_CLOCK = 800e6
_BUS_AREA = 0.002e-6  # square metres for each bit of a bus's width, twice that for each port of a crossbar
_BUS_ENERGY = 1e-12  # J a byte


@dataclass(frozen=True)
class Chip:
    """What a chip consists of.

    Args:
        processors: (kind, clock in Hz) of each element.
        memories: kind of each.
        topology: ``shared`` (all on one bus), ``split`` (two buses and a bridge; elements and memories of odd number on
            the second) or ``crossbar`` (a way from each element to each memory).
        width: bits of a bus, which runs at `REFERENCE_CLOCK`.

    Raises:
        HastenError: nothing of a kind, an unknown kind, or a clock or width that is no number above 0.
    """

    processors: tuple[tuple[str, float], ...]
    memories: tuple[str, ...]
    topology: str = "shared"
    width: int = 64

    def __post_init__(self) -> None:
        if not self.processors or not self.memories:
            raise HastenError("a chip needs a processing element and a memory")
        for known, found in ((PROCESSORS, [p for p, _ in self.processors]), (MEMORIES, list(self.memories))):
            if unknown := [f for f in found if f not in known]:
                raise HastenError(f"a chip has no part {unknown[0]!r}: choose from {', '.join(known)}")
        if self.topology not in TOPOLOGIES:
            raise HastenError(f"no topology {self.topology!r}: choose one of {', '.join(TOPOLOGIES)}")
        if not (self.width >= 1 and all(0 < clock < math.inf for _, clock in self.processors)):
            raise HastenError("a chip's clocks and the width of its bus must be numbers above 0")

    @property
    def area(self) -> float:
        """Square metres."""
        parts = sum(PROCESSORS[p].area for p, _ in self.processors) + sum(MEMORIES[m].area for m in self.memories)
        ports = {"shared": 1, "split": 2, "crossbar": 2 * len(self.memories)}[self.topology]
        return parts + ports * self.width * _BUS_AREA

    @property
    def leakage(self) -> float:
        """W."""
        return sum(PROCESSORS[p].leakage for p, _ in self.processors) + sum(MEMORIES[m].leakage for m in self.memories)

    def way(self, processor: int, memory: int) -> tuple[str, ...]:
        """Buses between an element and a memory."""
        if self.topology == "shared":
            return ("bus",)
        if self.topology == "crossbar":
            return (f"port {memory}",)
        sides = {processor % 2, memory % 2}
        return tuple(f"bus {s}" for s in sorted(sides)) + (("bridge",) if len(sides) > 1 else ())


@dataclass(frozen=True, kw_only=True)
class SystemCost(ChipCost):
    """What running a graph once costs; levels are the chip's memories, ``memory 0`` and so on.

    It is bound by what would take the longest if nothing else took time: an element (``cpu 0``), a memory or bus
    (``memory 0``, ``bus``), or ``order``, the longest chain of tasks that follow each other.

    Args:
        ends: task -> s at which it is done.
        phases: periods in which the same tasks ran.
    """

    ends: Mapping[str, float]
    phases: int


def run_tasks(graph: TaskGraph, chip: Chip, processors: Sequence[int], memories: Sequence[int]) -> SystemCost:
    """Runs a graph.

    Args:
        graph: the tasks.
        chip: where.
        processors: for each task the number of the element that runs it.
        memories: for each task the number of the memory that it writes to, from which those after it read.

    Raises:
        HastenError: numbers of other length or of parts that are not there, or a task where it cannot run.
    """
    jobs = _jobs(graph, chip, processors, memories)
    ranks = _ranks(graph, jobs)
    left = [1.0] * len(jobs)
    waits = [len(t.after) for t in graph.tasks]
    place = {t.name: i for i, t in enumerate(graph.tasks)}
    followers: list[list[int]] = [[] for _ in jobs]
    for i, task in enumerate(graph.tasks):
        for name in task.after:
            followers[place[name]].append(i)
    ready = [i for i, w in enumerate(waits) if w == 0]
    running: dict[int, int] = {}  # element -> task
    ends: dict[str, float] = {}
    now, phases = 0.0, 0
    limits = _limits(chip)
    while ready or running:
        for i in sorted(ready, key=lambda i: (-ranks[i], i)):
            if processors[i] not in running:
                running[processors[i]] = i
                ready.remove(i)
        active = sorted(running.values())
        rates = _rates([jobs[i] for i in active], limits)
        step = min(left[i] / r for i, r in zip(active, rates, strict=True))
        now += step
        phases += 1
        for i, r in zip(active, rates, strict=True):
            left[i] -= r * step
            if left[i] <= 1e-9:
                ends[graph.tasks[i].name] = now
                del running[processors[i]]
                for f in followers[i]:
                    waits[f] -= 1
                    if waits[f] == 0:
                        ready.append(f)
    moved: dict[str, float] = {f"memory {i}": 0.0 for i in range(len(chip.memories))}
    alone: dict[str, float] = {"order": max(ranks, default=0.0)}
    for job, at in zip(jobs, processors, strict=True):
        name = f"{chip.processors[at][0]} {at}"
        alone[name] = alone.get(name, 0.0) + job.seconds
        for part, size in job.moves.items():
            alone[part] = alone.get(part, 0.0) + size / limits[part]
            if part in moved:
                moved[part] += size
    return SystemCost(
        latency=now,
        energy=sum(j.energy for j in jobs) + chip.leakage * now,
        bytes=moved,
        area=chip.area,
        bound=max(alone, key=alone.__getitem__),
        ends=ends,
        phases=phases,
    )


@dataclass(frozen=True)
class _Job:
    """Seconds that a task computes, bytes that it moves over each memory and bus, J of both."""

    seconds: float
    moves: Mapping[str, float]
    energy: float


def _jobs(graph: TaskGraph, chip: Chip, processors: Sequence[int], memories: Sequence[int]) -> list[_Job]:
    if len(processors) != len(graph) or len(memories) != len(graph):
        raise HastenError(f"the task graph {graph.name} has {len(graph)} tasks: give each an element and a memory")
    if not all(0 <= p < len(chip.processors) for p in processors):
        raise HastenError(f"a task is on an element that is not there: the chip has {len(chip.processors)}")
    if not all(0 <= m < len(chip.memories) for m in memories):
        raise HastenError(f"a task writes to a memory that is not there: the chip has {len(chip.memories)}")
    written = {t.name: (m, t.bytes) for t, m in zip(graph.tasks, memories, strict=True)}
    jobs = []
    for task, at, into in zip(graph.tasks, processors, memories, strict=True):
        name, clock = chip.processors[at]
        processor = PROCESSORS[name]
        if task.kind not in processor.rates:
            raise HastenError(f"a {name} cannot run {task.name}, a task of kind {task.kind}: choose another element")
        moves: dict[str, float] = {}
        energy = task.operations * processor.energy * (clock / REFERENCE_CLOCK) ** 2
        for memory, size in [*(written[a] for a in task.after), (into, task.bytes)]:
            way = chip.way(at, memory)
            for part in (f"memory {memory}", *way):
                moves[part] = moves.get(part, 0.0) + size
            energy += size * (MEMORIES[chip.memories[memory]].energy + _BUS_ENERGY * len(way))
        jobs.append(_Job(task.operations / (processor.rates[task.kind] * clock), moves, energy))
    return jobs


def _limits(chip: Chip) -> dict[str, float]:
    """B/s of memories and buses."""
    bus = chip.width / 8 * REFERENCE_CLOCK
    limits = {f"memory {i}": MEMORIES[m].bandwidth for i, m in enumerate(chip.memories)}
    ways = ["bus", "bus 0", "bus 1", "bridge", *(f"port {i}" for i in range(len(chip.memories)))]
    return limits | dict.fromkeys(ways, bus)


def _ranks(graph: TaskGraph, jobs: Sequence[_Job]) -> list[float]:
    """Seconds of computing from the begin of each task to the end of the graph, the longest way."""
    place = {t.name: i for i, t in enumerate(graph.tasks)}
    after = [0.0] * len(jobs)
    for i in range(len(jobs) - 1, -1, -1):
        for name in graph.tasks[i].after:
            after[place[name]] = max(after[place[name]], after[i] + jobs[i].seconds)
    return [a + j.seconds for a, j in zip(after, jobs, strict=True)]


def _rates(jobs: Sequence[_Job], limits: Mapping[str, float]) -> list[float]:
    """Parts of themselves that tasks do in a second: shares of what is scarce rise together until it is used up."""
    speed = [0.0] * len(jobs)
    free = dict(limits)
    growing = set(range(len(jobs)))
    while growing:
        # Full speed is 1; bytes a second at speed s are s * bytes / seconds.
        rise = min(1 - speed[i] for i in growing)
        for part, limit in free.items():
            wanted = sum(jobs[i].moves.get(part, 0.0) / jobs[i].seconds for i in growing)
            if wanted * rise > limit:
                rise = limit / wanted
        for i in growing:
            speed[i] += rise
            for part, size in jobs[i].moves.items():
                free[part] -= rise * size / jobs[i].seconds
        full = {part for part, limit in free.items() if limit <= 1e-9 * limits[part]}
        growing = {i for i in growing if speed[i] < 1 - 1e-12 and not any(jobs[i].moves.get(p, 0.0) for p in full)}
    return [s / j.seconds for s, j in zip(speed, jobs, strict=True)]
