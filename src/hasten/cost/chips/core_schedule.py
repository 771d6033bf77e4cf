"""Schedules of a graph of tasks on equal cores: a task at a time, a fixed core for each, or rewired between stages.

After InTAR (arXiv 2502.08807): a schedule is a list of stages. In a stage each core has one task, or a part of one, and
tensors that pass between tasks of a stage are streamed tile by tile. What passes between stages stays on the chip, or
is spilled: written off the chip and read again. The model, ours, in cycles:

    stage = max( max over tasks of ceil(MACs * share / MACs a cycle), bytes off the chip / bytes a cycle ) + fill

with the weights read once a use, the fill of a pipeline the tiles that those beside its slowest task take to begin and
end, and a switch between stages. A tensor lives in one place for all of its life, on the chip or off it. Weights that a
pipeline reads again at each tile must stay on the chip for the stage.

*sequential* is a stage for each task with all cores on it; *dataflow* keeps each task to cores of its own, in one order
of loops, so that no task sums over what streams in; *reconfigurable* is free. The search goes over all cuts of the
graph into stages with all splits of the cores and all choices of what stays on the chip, by dynamic programming over
what has run and what is held; both fixed patterns are points of its space, so it is never worse.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hasten.cost.chips.chip_cost import ChipCost
from hasten.cost.timeline import Activity, Timeline, run_timeline
from hasten.errors import HastenError
from hasten.hardware.chips.core_array import CoreArray
from hasten.workload.work_graph import Pipeline, WorkGraph

Pattern = Literal["sequential", "dataflow", "reconfigurable", "rule-of-thumb"]
PATTERNS: tuple[Pattern, ...] = ("sequential", "dataflow", "reconfigurable", "rule-of-thumb")

_SPLITS = 5000  # ways to give cores to tasks that are all tried
_ASSIGNMENTS = 1024  # ways to give tasks to cores for good that are all tried
_MOST_WAYS = 400_000
"""Tasks of all sets, and stages, that a search looks at: a graph with branches side by side has more without end."""


@dataclass(frozen=True)
class CoreStage:
    """Tasks that run at once.

    Args:
        tasks: in the order of the graph.
        cores: task -> how many cores it has; tasks without products have none.
        kept: tensors made here that stay on the chip for later stages; others that later stages read are spilled.
    """

    tasks: tuple[str, ...]
    cores: Mapping[str, int]
    kept: frozenset[str] = frozenset()


@dataclass(frozen=True)
class CoreStageCost:
    """Of one stage: cycles, and bytes.

    Args:
        compute: of the slowest task.
        fill: of the pipeline.
        memory: in which the bytes pass.
        stall: in which cores wait for operands that they do not read ahead.
        moved: what -> bytes off the chip: ``weights``, ``inputs``, ``results``, ``spilled`` and ``reloaded``.
        held: bytes on the chip.
    """

    compute: int
    fill: int
    memory: int
    stall: int
    moved: Mapping[str, int]
    held: int

    @property
    def cycles(self) -> int:
        return max(self.compute, self.memory) + self.fill + self.stall


@dataclass(frozen=True, kw_only=True)
class ScheduleCost(ChipCost):
    """What a schedule costs; it is bound by ``cores``, ``memory`` or ``stalls``, whatever takes the most cycles.

    Args:
        cycles: from the first to the last.
        stages: of each stage.
        peak: the most bytes on the chip.
        utilization: MACs over those that all cores could do in that time.
    """

    cycles: int
    stages: tuple[CoreStageCost, ...]
    peak: int
    utilization: float

    @property
    def compute_cycles(self) -> int:
        """Of the stages' slowest tasks alone: without fill, memory, stalls and switches."""
        return sum(s.compute for s in self.stages)

    def moved(self, *kinds: str) -> int:
        """Bytes off the chip of these kinds; all of them when none is named."""
        return sum(n for s in self.stages for k, n in s.moved.items() if not kinds or k in kinds)


@dataclass(frozen=True)
class CoreSchedule:
    """Stages in order, of a graph, on an array.

    Args:
        pattern: by which rule it was made.
        graph: what runs, with the streams that the pattern may use.
        array: where.
        stages: in order.
    """

    pattern: str
    graph: WorkGraph
    array: CoreArray
    stages: tuple[CoreStage, ...]

    def cost(self, *, synchronous: bool = False) -> ScheduleCost:
        """What it costs, counted stage by stage from nothing but the stages.

        Args:
            synchronous: cores read no operand ahead: before each cycle of products every core waits `CoreArray.stall`
                for its word, all of them side by side.

        Raises:
            HastenError: the stages are no schedule: a task before what it reads, or twice, more cores than there are, a
                barrier within a stage, or more on the chip than fits.
        """
        return _evaluated(self, synchronous)

    def timeline(self) -> Timeline:
        """Cores and the way off the chip as lanes, seconds."""
        activities = []
        second = 1 / self.array.clock
        cost = self.cost()
        before: tuple[str, ...] = ()
        for number, (stage, priced) in enumerate(zip(self.stages, cost.stages, strict=True)):
            names = []
            at = 0
            for task in stage.tasks:
                for core in range(at, at + stage.cores.get(task, 0)):
                    name = f"{number}: {task} on core {core}"
                    cycles = _cycles(self.graph, self.array, task, stage.cores[task])
                    activities.append(Activity(name, f"core {core}", cycles * second, before, label=task))
                    names.append(name)
                at += stage.cores.get(task, 0)
            if priced.memory:
                name = f"{number}: off the chip"
                activities.append(Activity(name, "off the chip", priced.memory * second, before, label="memory"))
                names.append(name)
            # The fill is the difference between the slowest part and the stage.
            last = number == len(self.stages) - 1
            rest = priced.fill + priced.stall + (0 if last else self.array.switch)
            name = f"{number}: fill and switch"
            activities.append(Activity(name, "stage", rest * second, tuple(names) or before, label="fill and switch"))
            before = (name,)
        return run_timeline(activities)

    def instructions(self) -> list[dict[str, str | int]]:
        """What each core is told in each stage: the task, its part, loops, where operands come from and go to."""
        rows: list[dict[str, str | int]] = []
        where: dict[str, str] = {}
        for number, stage in enumerate(self.stages):
            pipeline = _pipeline(self.graph, stage.tasks)
            inside = frozenset(stage.tasks)
            at = 0
            for task in stage.tasks:
                count = stage.cores.get(task, 0)
                sources = ["weights"] if self.graph.named[task].weight_bytes else []
                sources += ["input"] if self.graph.named[task].input_bytes else []
                for edge in self.graph.incoming[task]:
                    from_fifo = edge.producer in inside
                    sources.append(f"fifo {edge.tensor}" if from_fifo else f"{where[edge.tensor]} {edge.tensor}")
                sinks = ["result"] if self.graph.named[task].result_bytes else []
                for tensor in dict.fromkeys(e.tensor for e in self.graph.outgoing[task]):
                    readers = {e.consumer for e in self.graph.outgoing[task] if e.tensor == tensor}
                    sinks += [f"fifo {tensor}"] if readers & inside else []
                    if readers - inside:
                        where[tensor] = "scratchpad" if tensor in stage.kept else "memory"
                        sinks.append(f"{where[tensor]} {tensor}")
                steps = max((s.steps for e, s in pipeline.streams if task in (e.producer, e.consumer)), default=1)
                rows += [
                    {
                        "stage": number,
                        "core": at + part if count else "special",
                        "task": task,
                        "part": f"{part + 1}/{max(count, 1)}",
                        "along": pipeline.along[task],
                        "tiles": steps,
                        "cycles": _cycles(self.graph, self.array, task, count),
                        "from": ", ".join(sources),
                        "to": ", ".join(sinks),
                    }
                    for part in range(max(count, 1))
                ]
                at += count
        return rows


# -- the model ------------------------------------------------------------------------------------------


def _cycles(graph: WorkGraph, array: CoreArray, task: str, cores: int) -> int:
    work = graph.named[task]
    return math.ceil(work.macs * work.share(cores) / array.macs) if work.macs else 0


def _pipeline(graph: WorkGraph, tasks: Sequence[str] | frozenset[str]) -> Pipeline:
    found = graph.pipeline(tasks)
    if found is None:
        raise HastenError(f"{', '.join(tasks)} cannot run at once: one of them needs all of what another makes")
    return found


def _fill(pipeline: Pipeline, cycles: Mapping[str, int]) -> int:
    """Cycles that a pipeline takes beyond its slowest task."""
    return pipeline.fill(cycles, {t: -(-cycles[t] // n) for t, n in pipeline.steps.items()})


def _moved(
    graph: WorkGraph, done: frozenset[str], tasks: frozenset[str], held: frozenset[str], kept: frozenset[str]
) -> dict[str, int]:
    """Bytes off the chip of a stage, by kind."""
    own = [graph.named[t] for t in tasks]
    after = done | tasks
    made = {e.tensor for t in tasks for e in graph.outgoing[t] if e.consumer not in after}
    read = {e.tensor for t in tasks for e in graph.incoming[t] if e.producer in done}
    return {
        "weights": sum(t.weight_bytes for t in own),
        "inputs": sum(t.input_bytes for t in own),
        "results": sum(t.result_bytes for t in own),
        "spilled": sum(graph.tensors[n] for n in made - kept),
        "reloaded": sum(graph.tensors[n] for n in read - held),
    }


def _crossing(graph: WorkGraph, done: frozenset[str], tasks: frozenset[str]) -> list[str]:
    """Tensors made in a stage that later ones read."""
    after = done | tasks
    return sorted({e.tensor for t in tasks for e in graph.outgoing[t] if e.consumer not in after})


def _alive(graph: WorkGraph, held: frozenset[str], done: frozenset[str]) -> frozenset[str]:
    """Of what is held, that which tasks read that have not run."""
    return frozenset(n for n in held if any(e.tensor == n and e.consumer not in done for e in graph.edges))


def _evaluated(schedule: CoreSchedule, synchronous: bool) -> ScheduleCost:
    graph, array = schedule.graph, schedule.array
    done: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    costs = []
    for stage in schedule.stages:
        tasks = frozenset(stage.tasks)
        for task in stage.tasks:
            if task not in graph.named or task in done:
                raise HastenError(f"a schedule runs {task!r} twice, or has no such task")
            if missing := graph.before[task] - done - tasks:
                raise HastenError(f"a schedule runs {task} before {min(missing)}, which it reads")
            if bool(stage.cores.get(task)) != bool(graph.named[task].macs):
                raise HastenError(f"{task} has {stage.cores.get(task, 0)} cores for {graph.named[task].macs} products")
        if sum(stage.cores.values()) > array.cores:
            raise HastenError(f"a stage uses {sum(stage.cores.values())} cores where {array.name} has {array.cores}")
        pipeline = _pipeline(graph, stage.tasks)
        on_chip = sum(graph.tensors[n] for n in held | stage.kept) + sum(pipeline.held.values())
        if on_chip > array.on_chip:
            raise HastenError(f"a stage holds {on_chip} bytes where {array.name} has {array.on_chip} on the chip")
        moved = _moved(graph, done, tasks, held, stage.kept)
        cycles = {t: _cycles(graph, array, t, stage.cores.get(t, 0)) for t in stage.tasks}
        costs.append(
            CoreStageCost(
                compute=max(cycles.values()),
                fill=_fill(pipeline, cycles),
                memory=math.ceil(sum(moved.values()) / array.bytes_a_cycle),
                stall=round(array.stall * max(cycles.values())) if synchronous else 0,
                moved=moved,
                held=on_chip,
            )
        )
        done |= tasks
        held = _alive(graph, held | stage.kept, done)
    if len(done) < len(graph):
        raise HastenError(f"a schedule leaves out {min(set(graph.named) - done)}")
    return _priced(graph, array, costs)


def _priced(graph: WorkGraph, array: CoreArray, costs: Sequence[CoreStageCost]) -> ScheduleCost:
    cycles = sum(c.cycles for c in costs) + array.switch * (len(costs) - 1)
    off = sum(sum(c.moved.values()) for c in costs)
    bounds = {
        "cores": sum(c.compute + c.fill for c in costs if c.compute >= c.memory),
        "memory": sum(c.memory for c in costs if c.memory > c.compute),
        "stalls": sum(c.stall for c in costs),
    }
    return ScheduleCost(
        latency=cycles / array.clock,
        energy=graph.macs * array.mac_energy + off * array.byte_energy,
        bytes={"memory": off},
        bound=max(bounds, key=bounds.__getitem__),
        cycles=cycles,
        stages=tuple(costs),
        peak=max(c.held for c in costs),
        utilization=graph.macs / (cycles * array.cores * array.macs) if cycles else 0.0,
    )


# -- the search -----------------------------------------------------------------------------------------


def schedule(graph: WorkGraph, array: CoreArray, pattern: Pattern = "reconfigurable") -> CoreSchedule:
    """The best schedule of a pattern: the fewest cycles, then the fewest bytes off the chip.

    Args:
        graph: what runs.
        array: where.
        pattern: one of `PATTERNS`. ``rule-of-thumb`` is the paper's: what makes more than the chip holds runs at once
            with who reads it, everything else alone on all cores. Where tasks can be given to cores for good in more
            than a thousand ways, or each takes long to try, ``dataflow`` tries two of them.

    Raises:
        HastenError: an unknown pattern, or a graph that can be cut in too many ways.
    """
    if pattern not in PATTERNS:
        raise HastenError(f"there is no schedule {str(pattern)[:20]!r}: use {', '.join(PATTERNS)}")
    if pattern == "sequential":
        stages = _Search(graph, array, most=1).best()
    elif pattern == "rule-of-thumb":
        stages = _thumb(graph, array)
    elif pattern == "dataflow":
        graph, stages = _dataflow(graph, array)
    else:
        # One order of loops may have the shorter fill, and is a point of the space too.
        tried = [CoreSchedule(pattern, g, array, _Search(g, array).best()) for g in (graph, _one_order(graph))]
        fixed = schedule(graph, array, "dataflow")
        tried.append(replace(fixed, pattern=pattern))
        return min(tried, key=_rank)
    return CoreSchedule(pattern, graph, array, stages)


def _rank(found: CoreSchedule) -> tuple[int, int]:
    cost = found.cost()
    return cost.cycles, cost.moved()


def _one_order(graph: WorkGraph) -> WorkGraph:
    """Without streams that their consumer sums over: for that its loops are turned round."""
    edges = tuple(replace(e, streams=tuple(s for s in e.streams if not s.folds)) for e in graph.edges)
    return WorkGraph(graph.name, graph.tasks, edges)


@dataclass(frozen=True)
class _Option:
    """A way to run a set of tasks at once."""

    cores: Mapping[str, int]
    compute: int
    fill: int


class _Search:
    """Dynamic programming over what has run and what is held.

    Args:
        most: tasks of a stage at most; None: as many as there are cores, and those without products.
        groups: task -> the cores that it has for good; tasks with the same cores run in different stages.
    """

    def __init__(
        self,
        graph: WorkGraph,
        array: CoreArray,
        most: int | None = None,
        groups: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.graph, self.array, self.most, self.groups = graph, array, most, groups
        self.options: dict[frozenset[str], list[_Option]] = {}
        self.ways = 0
        # Where there is room for all at once nothing is ever worth spilling.
        self.roomy = sum(graph.tensors.values()) + graph.weight_bytes <= array.on_chip

    def _count(self, ways: int) -> None:
        """More was looked at."""
        self.ways += ways
        if self.ways > _MOST_WAYS:
            raise HastenError(
                f"{self.graph.name} can be cut into stages in too many ways, with its branches side by side: take the"
                " schedule rule-of-thumb, or give a part of it"
            )

    def best(self) -> tuple[CoreStage, ...]:
        start = (frozenset[str](), frozenset[str]())
        best: dict[tuple[frozenset[str], frozenset[str]], tuple[int, int]] = {start: (-self.array.switch, 0)}
        came: dict[tuple[frozenset[str], frozenset[str]], tuple[tuple[frozenset[str], frozenset[str]], CoreStage]] = {}
        waiting: dict[int, list[tuple[frozenset[str], frozenset[str]]]] = {0: [start]}
        whole = frozenset(self.graph.named)
        for size in range(len(self.graph)):
            extended: dict[frozenset[str], list[frozenset[str]]] = {}
            for state in waiting.pop(size, []):
                done, held = state
                if done not in extended:
                    extended[done] = list(self._extensions(done))
                for tasks in extended[done]:
                    for stage, cycles, off in self._stages(done, held, tasks):
                        after = done | tasks
                        then = (after, _alive(self.graph, held | stage.kept, after))
                        rank = (best[state][0] + cycles + self.array.switch, best[state][1] + off)
                        if then not in best:
                            waiting.setdefault(len(after), []).append(then)
                        elif rank >= best[then]:
                            continue
                        best[then] = rank
                        came[then] = (state, stage)
        state = (whole, frozenset[str]())
        if state not in came:
            raise HastenError(f"{self.graph.name} has no schedule on {self.array.name}")
        stages = []
        while state in came:
            state, stage = came[state]
            stages.append(stage)
        return tuple(reversed(stages))

    def _extensions(self, done: frozenset[str]) -> Iterator[frozenset[str]]:
        """Sets of tasks that can be the next stage: in step, and with cores for all."""
        seen: set[frozenset[str]] = set()
        waiting = [frozenset[str]()]
        while waiting:
            tasks = waiting.pop()
            for name in self.graph.order:
                if name in done or name in tasks or not self.graph.before[name] <= done | tasks:
                    continue
                more = tasks | {name}
                if more in seen:
                    continue
                seen.add(more)
                self._count(len(more))
                # What does not fit or does not stream does not with more tasks either.
                if self._fits(more) and self.graph.pipeline(more) is not None:
                    waiting.append(more)
                    yield more

    def _fits(self, tasks: frozenset[str]) -> bool:
        if self.most is not None and len(tasks) > self.most:
            return False
        own = [t for t in tasks if self.graph.named[t].macs]
        if self.groups is None:
            return len(own) <= self.array.cores
        used = [c for t in own for c in self.groups[t]]
        return len(set(used)) == len(used)

    def _stages(
        self, done: frozenset[str], held: frozenset[str], tasks: frozenset[str]
    ) -> Iterator[tuple[CoreStage, int, int]]:
        """Each way to run these tasks: its stage, cycles and bytes off the chip."""
        graph, array = self.graph, self.array
        pipeline = _pipeline(graph, tasks)
        taken = sum(graph.tensors[n] for n in held) + sum(pipeline.held.values())
        crossing = _crossing(graph, done, tasks)
        order = tuple(t for t in graph.order if t in tasks)
        for count in range(len(crossing) if self.roomy else 0, len(crossing) + 1):
            for chosen in itertools.combinations(crossing, count):
                self._count(1)
                if taken + sum(graph.tensors[n] for n in chosen) > array.on_chip:
                    continue
                kept = frozenset(chosen)
                off = sum(_moved(graph, done, tasks, held, kept).values())
                memory = math.ceil(off / array.bytes_a_cycle)
                option = min(self._options(tasks), key=lambda o: (max(o.compute, memory) + o.fill, o.fill))
                yield CoreStage(order, option.cores, kept), max(option.compute, memory) + option.fill, off

    def _options(self, tasks: frozenset[str]) -> list[_Option]:
        if tasks not in self.options:
            own = [t for t in self.graph.order if t in tasks and self.graph.named[t].macs]
            pipeline = _pipeline(self.graph, tasks)
            found = []
            for cores in self._splits(own):
                cycles = {t: _cycles(self.graph, self.array, t, cores.get(t, 0)) for t in tasks}
                found.append(_Option(cores, max(cycles.values()), _fill(pipeline, cycles)))
            self.options[tasks] = found
        return self.options[tasks]

    def _splits(self, own: Sequence[str]) -> Iterator[dict[str, int]]:
        """Ways to give cores to tasks: all of them, unless they are too many."""
        if self.groups is not None:
            yield {t: len(self.groups[t]) for t in own}
        elif not own:
            yield {}
        elif math.comb(self.array.cores - 1, len(own) - 1) <= _SPLITS:
            yield from (dict(zip(own, split, strict=True)) for split in _compositions(self.array.cores, len(own)))
        else:
            yield self._balanced(own)

    def _balanced(self, own: Sequence[str]) -> dict[str, int]:
        """The split with the fastest slowest task: each further core goes to whoever is the slowest."""
        cores = dict.fromkeys(own, 1)
        for _ in range(self.array.cores - len(own)):
            cores[max(own, key=lambda t: _cycles(self.graph, self.array, t, cores[t]))] += 1
        return cores


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Ways to write a number as a sum of others from 1."""
    for cuts in itertools.combinations(range(1, total), parts - 1):
        ends = (0, *cuts, total)
        yield tuple(b - a for a, b in itertools.pairwise(ends))


def _dataflow(graph: WorkGraph, array: CoreArray) -> tuple[WorkGraph, tuple[CoreStage, ...]]:
    """A fixed core, or several, for each task; the best of all ways to give them."""
    fixed = _one_order(graph)
    own = [t for t in fixed.order if fixed.named[t].macs]
    best: tuple[tuple[int, int], tuple[CoreStage, ...]] | None = None
    waiting = list(_assignments(fixed, own, array))
    few = False
    while waiting:
        search = _Search(fixed, array, groups=waiting.pop(0))
        stages = search.best()
        rank = _rank(CoreSchedule("dataflow", fixed, array, stages))
        if best is None or rank < best[0]:
            best = (rank, stages)
        if not few and len(waiting) > 2 and search.ways * len(waiting) > _MOST_WAYS:
            waiting, few = list(_assignments(fixed, own, array, most=1)), True
    assert best is not None
    return fixed, best[1]


def _assignments(
    graph: WorkGraph, own: Sequence[str], array: CoreArray, most: int = _ASSIGNMENTS
) -> Iterator[dict[str, tuple[int, ...]]]:
    """Task -> the cores that it has for good, all ways to give them; a few of these where they are over ``most``."""
    cores = array.cores
    if len(own) <= cores:
        if math.comb(cores - 1, max(len(own) - 1, 0)) <= most:
            splits: Sequence[tuple[int, ...]] = list(_compositions(cores, len(own))) if own else [()]
        else:
            balanced = _Search(graph, array)._balanced(own)
            splits = [tuple(balanced[t] for t in own)]
        for split in splits:
            ends = list(itertools.accumulate(split, initial=0))
            yield {t: tuple(range(a, b)) for t, a, b in zip(own, ends, ends[1:], strict=False)}
    elif cores ** (len(own) - 1) <= most:
        for rest in itertools.product(range(cores), repeat=len(own) - 1):
            yield {t: (c,) for t, c in zip(own, (0, *rest), strict=True)}
    else:
        yield {t: (i % cores,) for i, t in enumerate(own)}
        loads = [0] * cores
        balanced_cores: dict[str, tuple[int, ...]] = {}
        for task in sorted(own, key=lambda t: (-graph.named[t].macs, t)):
            core = min(range(cores), key=loads.__getitem__)
            loads[core] += graph.named[task].macs
            balanced_cores[task] = (core,)
        yield balanced_cores


def _thumb(graph: WorkGraph, array: CoreArray) -> tuple[CoreStage, ...]:
    """The paper's rule: what makes more than the chip holds runs with who reads it, until the volume shrinks again."""
    search = _Search(graph, array)
    done: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    stages = []
    while len(done) < len(graph):
        first = next(t for t in graph.order if t not in done and graph.before[t] <= done)
        tasks = frozenset([first])
        while True:
            large = [n for n in _crossing(graph, done, tasks) if graph.tensors[n] > array.on_chip]
            readers = [
                e.consumer
                for t in graph.order
                if t in tasks
                for e in graph.outgoing[t]
                if e.tensor in large and e.consumer not in tasks and graph.before[e.consumer] <= done | tasks
            ]
            able = [r for r in readers if search._fits(tasks | {r}) and graph.pipeline(tasks | {r}) is not None]
            able = [r for r in able if sum(_pipeline(graph, tasks | {r}).held.values()) <= array.on_chip]
            if not able:
                break
            tasks |= {able[0]}
        room = array.on_chip - sum(graph.tensors[n] for n in held) - sum(_pipeline(graph, tasks).held.values())
        kept = set()
        for name in sorted(_crossing(graph, done, tasks), key=lambda n: (graph.tensors[n], n)):
            if graph.tensors[name] <= room:
                kept.add(name)
                room -= graph.tensors[name]
        option = min(search._options(tasks), key=lambda o: o.compute + o.fill)
        stage = CoreStage(tuple(t for t in graph.order if t in tasks), option.cores, frozenset(kept))
        stages.append(stage)
        done |= tasks
        held = _alive(graph, held | stage.kept, done)
    return tuple(stages)


def brute_force(graph: WorkGraph, array: CoreArray) -> CoreSchedule:
    """The best schedule by trying every one: all cuts, all splits of cores, all choices of what stays on the chip.

    For graphs of a handful of tasks, as an oracle of `schedule`: each is priced by `CoreSchedule.cost` alone.

    Raises:
        HastenError: more than 7 tasks.
    """
    if len(graph) > 7:
        raise HastenError(f"{graph.name} has {len(graph)} tasks, too many to try everything: at most 7")
    best: tuple[tuple[int, int], CoreSchedule] | None = None

    def go(done: frozenset[str], stages: list[CoreStage]) -> None:
        nonlocal best
        left = [t for t in graph.order if t not in done]
        if not left:
            found = CoreSchedule("brute force", graph, array, tuple(stages))
            try:
                rank = _rank(found)
            except HastenError:
                return
            if best is None or rank < best[0]:
                best = (rank, found)
            return
        for count in range(1, len(left) + 1):
            for tasks in itertools.combinations(left, count):
                chosen = frozenset(tasks)
                own = [t for t in tasks if graph.named[t].macs]
                closed = all(graph.before[t] <= done | chosen for t in tasks)
                if not closed or len(own) > array.cores or graph.pipeline(chosen) is None:
                    continue
                crossing = _crossing(graph, done, chosen)
                splits = _compositions(array.cores, len(own)) if own else iter([()])
                for split in splits:
                    cores = dict(zip(own, split, strict=True))
                    for size in range(len(crossing) + 1):
                        for kept in itertools.combinations(crossing, size):
                            go(done | chosen, [*stages, CoreStage(tasks, cores, frozenset(kept))])

    go(frozenset(), [])
    if best is None:
        raise HastenError(f"{graph.name} has no schedule on {array.name}")
    return best[1]
