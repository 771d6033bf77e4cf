"""A workload as a graph of tasks: how much each computes, what passes between them, and what may begin on a part.

An edge is *streamable* where its consumer may begin on a tile of what its producer makes, and a *barrier* where it
needs all of it first. Which it is follows from the Einsums, by the passes over each rank
(`hasten.workload.streaming`); a graph that is read from a file says so itself. Fusion, stages of an accelerator and
sections of a dataflow chip are all sets of tasks whose inner edges stream at once: `WorkGraph.pipeline` says whether a
set is one, and along which ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Annotated, TypeAlias, TypeVar

import networkx as nx
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from hasten.errors import HastenError
from hasten.files import parse_toml, read_text
from hasten.workload.einsum import Op

N = TypeVar("N", int, float)


class EdgeKind(StrEnum):
    """Whether a consumer may begin on a part of what it is given."""

    STREAMABLE = "streamable"
    BARRIER = "barrier"


@dataclass(frozen=True)
class WorkTask:
    """A part of a workload that is scheduled whole.

    Args:
        name: unique in its graph.
        macs: multiply-accumulates.
        operations: scalar operations beside them (exponentials, sums of a norm, ...).
        weight_bytes: of the weights that it reads, once.
        input_bytes: that it reads of what comes from outside of the graph.
        result_bytes: that it makes and that leave the graph.
        kind: of the Einsum with the most work.
        module: path of the torch module it came from.
        einsums: places in the cascade that it was made from.
        anchor: place of the Einsum by whose ranks its direction is named; -1 where there is no cascade.
        ways: sizes of the ranks along which its work can be divided among cores; empty where it divides evenly.
        inputs: (name, bytes) of what comes from outside, as far as names are known: tasks of one stage read it once.
    """

    name: str
    macs: int = 0
    operations: int = 0
    weight_bytes: int = 0
    input_bytes: int = 0
    result_bytes: int = 0
    kind: Op = Op.MATMUL
    module: str = ""
    einsums: tuple[int, ...] = ()
    anchor: int = -1
    ways: tuple[int, ...] = ()
    inputs: tuple[tuple[str, int], ...] = ()

    @property
    def flops(self) -> int:
        return 2 * self.macs + self.operations

    def share(self, cores: int) -> Fraction:
        """The largest part of the work that one of several cores has, where a rank is cut into whole pieces."""
        return min((Fraction(-(-n // cores), n) for n in self.ways), default=Fraction(1, cores))


@dataclass(frozen=True)
class Stream:
    """A way in which a tensor passes from task to task a tile at a time.

    Args:
        producer, consumer: ranks along which the two go; empty where any will do.
        steps: tiles.
        folds: whether the consumer sums over that rank, so that its own result is complete only after the last tile.
        buffer_bytes: that are held between the two: a tile, or as many as a window spans.
        producer_held, consumer_held: bytes of weights that lack the rank: read again at each step, unless kept.
        producer_whole, consumer_whole: names of other tensors that lack it: all of each is needed at each step.
    """

    producer: str = ""
    consumer: str = ""
    steps: int = 1
    folds: bool = False
    buffer_bytes: int = 0
    producer_held: int = 0
    consumer_held: int = 0
    producer_whole: tuple[str, ...] = ()
    consumer_whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkEdge:
    """A tensor that one task makes and another reads.

    Args:
        producer, consumer: names of the tasks.
        nbytes: of the whole tensor.
        tensor: its name; edges of one producer with the same tensor carry the same bytes, held once.
        streams: ways in which it passes tile by tile; none where all of it is needed first.
    """

    producer: str
    consumer: str
    nbytes: int
    tensor: str
    streams: tuple[Stream, ...] = ()

    @property
    def kind(self) -> EdgeKind:
        return EdgeKind.STREAMABLE if self.streams else EdgeKind.BARRIER


@dataclass(frozen=True)
class Pipeline:
    """How a set of tasks runs at once, tile by tile.

    Args:
        along: task -> the rank along which it goes; empty where any will do.
        streams: for each inner edge, in the graph's order, how its tensor passes.
        held: task -> bytes of weights that it must keep, or read again at each step.
    """

    along: Mapping[str, str]
    streams: tuple[tuple[WorkEdge, Stream], ...]
    held: Mapping[str, int]

    @property
    def buffer_bytes(self) -> int:
        """Of what lies between the tasks: two tiles of each tensor, one being made and one being read."""
        buffers: dict[tuple[str, str], int] = {}
        for edge, stream in self.streams:
            key = (edge.producer, edge.tensor)
            buffers[key] = max(buffers.get(key, 0), 2 * stream.buffer_bytes)
        return sum(buffers.values())

    @property
    def whole(self) -> dict[str, frozenset[str]]:
        """Task -> names of tensors, weights aside, of which it needs all at each step."""
        found: dict[str, frozenset[str]] = {}
        for edge, stream in self.streams:
            for task, names in ((edge.producer, stream.producer_whole), (edge.consumer, stream.consumer_whole)):
                found[task] = found.get(task, frozenset()) | frozenset(names)
        return found

    @cached_property
    def steps(self) -> dict[str, int]:
        """Task -> tiles in which it goes, of those that stream."""
        found: dict[str, int] = {}
        for edge, stream in self.streams:
            for task in (edge.producer, edge.consumer):
                found[task] = max(found.get(task, 1), stream.steps)
        return found

    def fill(self, whole: Mapping[str, N], tile: Mapping[str, N]) -> N | int:
        """What a pipeline takes beyond its slowest task: the tiles of the others on the longest way through it.

        Args:
            whole: task -> the time that all of it takes, in whatever unit.
            tile: likewise of one of its tiles, for the tasks of `steps`.
        """
        part = {t: t for t in self.steps}  # task -> the first task of those that it is joined with

        def root(task: str) -> str:
            while part[task] != task:
                task = part[task]
            return task

        longest = {t: tile[t] for t in self.steps}
        for task in self.along:  # in the graph's order
            for edge, _ in self.streams:
                if edge.consumer == task:
                    longest[task] = max(longest[task], longest[edge.producer] + tile[task])
                    part[root(task)] = root(edge.producer)
        found: N | int = 0
        for head in {root(t) for t in self.steps}:
            own = [t for t in self.steps if root(t) == head]
            slowest = max(own, key=lambda t: whole[t])
            found = max(found, max(longest[t] for t in own) - tile[slowest])
        return found


@dataclass(frozen=True)
class WorkGraph:
    """Tasks and what passes between them.

    Raises:
        HastenError: a name twice, an edge of a task that is not there, a circle, or a number below 0.
    """

    name: str
    tasks: tuple[WorkTask, ...]
    edges: tuple[WorkEdge, ...] = ()

    def __post_init__(self) -> None:
        where = f"the work graph {self.name}"
        if not self.tasks:
            raise HastenError(f"{where} has no task")
        for task in self.tasks:
            numbers = (task.macs, task.operations, task.weight_bytes, task.input_bytes, task.result_bytes)
            if min(numbers) < 0:
                raise HastenError(f"{where}, task {task.name!r}: work and bytes are numbers from 0")
        if len(self.named) < len(self.tasks):
            names = [t.name for t in self.tasks]
            twice = next(n for n in names if names.count(n) > 1)
            raise HastenError(f"{where} has two tasks {twice!r}: rename one")
        for edge in self.edges:
            for end in (edge.producer, edge.consumer):
                if end not in self.named:
                    raise HastenError(f"{where} has an edge of {end!r}, which is no task of it")
            if edge.nbytes < 0:
                raise HastenError(f"{where}, tensor {edge.tensor!r}: bytes are a number from 0")
        if not nx.is_directed_acyclic_graph(self.graph):
            circle = [a for a, *_ in nx.find_cycle(self.graph)]
            raise HastenError(f"{where} goes in a circle: {' -> '.join([*circle, circle[0]])}: remove an edge of it")

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
    def named(self) -> dict[str, WorkTask]:
        """Tasks by name."""
        return {t.name: t for t in self.tasks}

    @cached_property
    def graph(self) -> nx.MultiDiGraph:
        """The same as a graph of networkx: nodes are names, with ``task``; edges have ``edge``."""
        graph = nx.MultiDiGraph(name=self.name)
        for task in self.tasks:
            graph.add_node(task.name, task=task)
        for edge in self.edges:
            graph.add_edge(edge.producer, edge.consumer, edge=edge)
        return graph

    @cached_property
    def _pipelines(self) -> dict[tuple[frozenset[str], PipelineCost | None], Pipeline | None]:
        return {}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Names in an order in which they can run, the earliest in the graph first."""
        place = {t.name: i for i, t in enumerate(self.tasks)}
        return tuple(nx.lexicographical_topological_sort(self.graph, key=place.__getitem__))

    @cached_property
    def before(self) -> dict[str, frozenset[str]]:
        """Task -> those whose results it reads."""
        return {n: frozenset(self.graph.predecessors(n)) for n in self.named}

    @cached_property
    def outgoing(self) -> dict[str, tuple[WorkEdge, ...]]:
        """Task -> edges of what it makes."""
        found: dict[str, list[WorkEdge]] = {n: [] for n in self.named}
        for edge in self.edges:
            found[edge.producer].append(edge)
        return {n: tuple(e) for n, e in found.items()}

    @cached_property
    def incoming(self) -> dict[str, tuple[WorkEdge, ...]]:
        """Task -> edges of what it reads."""
        found: dict[str, list[WorkEdge]] = {n: [] for n in self.named}
        for edge in self.edges:
            found[edge.consumer].append(edge)
        return {n: tuple(e) for n, e in found.items()}

    @cached_property
    def tensors(self) -> dict[str, int]:
        """Tensors that pass between tasks -> bytes, each once."""
        found: dict[str, int] = {}
        for edge in self.edges:
            found[edge.tensor] = max(found.get(edge.tensor, 0), edge.nbytes)
        return found

    @property
    def macs(self) -> int:
        return sum(t.macs for t in self.tasks)

    @property
    def flops(self) -> int:
        return sum(t.flops for t in self.tasks)

    @property
    def weight_bytes(self) -> int:
        return sum(t.weight_bytes for t in self.tasks)

    @property
    def compulsory_bytes(self) -> int:
        """Moved even if all else stays on the chip: inputs, weights and results."""
        return sum(t.weight_bytes + t.input_bytes + t.result_bytes for t in self.tasks)

    def inner(self, tasks: Iterable[str]) -> tuple[WorkEdge, ...]:
        """Edges between these tasks."""
        chosen = frozenset(tasks)
        return tuple(e for e in self.edges if e.producer in chosen and e.consumer in chosen)

    def pipeline(self, tasks: Iterable[str], cost: PipelineCost | None = None) -> Pipeline | None:
        """How these tasks run at once: every inner edge streams, each task going along one rank; None if they cannot.

        Of several ways, the one that keeps the fewest bytes of weights, then the fewest between tasks; or the one with
        the least cost.

        Args:
            tasks: names.
            cost: of a way for tasks that are joined by what streams; those of tasks that are not add up.
        """
        key = (frozenset(tasks), cost)
        if key not in self._pipelines:
            self._pipelines[key] = self._find(*key)
        return self._pipelines[key]

    def _find(self, chosen: frozenset[str], cost: PipelineCost | None) -> Pipeline | None:
        edges = self.inner(chosen)
        if any(not e.streams for e in edges):
            return None
        full = {n: "" for n in self.order if n in chosen}
        if cost is None:
            return self._best(_connected(edges), full, None)
        found = Pipeline(full, (), dict.fromkeys(full, 0))
        for part in nx.connected_components(nx.Graph((e.producer, e.consumer) for e in edges)):
            own = {n: "" for n in full if n in part}
            best = self._best(_connected([e for e in edges if e.producer in part]), own, cost)
            if best is None:
                return None
            found = Pipeline(
                {n: best.along.get(n, r) for n, r in found.along.items()},
                (*found.streams, *best.streams),
                {n: best.held.get(n, h) for n, h in found.held.items()},
            )
        return found

    def _best(self, edges: Sequence[WorkEdge], tasks: Mapping[str, str], cost: PipelineCost | None) -> Pipeline | None:
        """Edges that meet are chosen one after the other, so that a contradiction shows at once."""
        best: tuple[tuple[int, int], Pipeline] | None = None

        def go(at: int, along: dict[str, str], held: dict[str, int], taken: list[tuple[WorkEdge, Stream]]) -> None:
            nonlocal best
            if at == len(edges):
                full = {n: along.get(n, "") for n in tasks}
                found = Pipeline(full, tuple(taken), {n: held.get(n, 0) for n in full})
                rank = (sum(held.values()) if cost is None else cost(self, found), found.buffer_bytes)
                if best is None or rank < best[0]:
                    best = (rank, found)
                return
            edge = edges[at]
            for stream in edge.streams:
                ends = {edge.producer: stream.producer, edge.consumer: stream.consumer}
                if any(r and along.get(t) and along[t] != r for t, r in ends.items()):
                    continue
                kept = dict(held)
                for task, own in ((edge.producer, stream.producer_held), (edge.consumer, stream.consumer_held)):
                    kept[task] = max(kept.get(task, 0), own)
                if cost is None and best is not None and sum(kept.values()) > best[0][0]:
                    continue
                go(at + 1, along | {t: r for t, r in ends.items() if r}, kept, [*taken, (edge, stream)])

        go(0, {}, {}, [])
        return best[1] if best else None

    def downsets(self, limit: int = 200_000) -> list[frozenset[str]]:
        """Sets of tasks that can have run: with each task all those before it, the empty set first.

        Raises:
            HastenError: there are more than ``limit``.
        """
        found, waiting = {frozenset[str]()}, [frozenset[str]()]
        while waiting:
            done = waiting.pop()
            for name in self.order:
                if name not in done and self.before[name] <= done and (more := done | {name}) not in found:
                    found.add(more)
                    waiting.append(more)
                    if len(found) > limit:
                        raise HastenError(
                            f"the work graph {self.name} can be cut in more than {limit:,} ways: make its tasks larger"
                        )
        place = {n: i for i, n in enumerate(self.order)}
        return sorted(found, key=lambda d: (len(d), sorted(place[n] for n in d)))


PipelineCost: TypeAlias = Callable[[WorkGraph, Pipeline], int]
"""What a way to run tasks at once costs, in whatever unit: the least is chosen."""


def _connected(edges: Sequence[WorkEdge]) -> tuple[WorkEdge, ...]:
    left, order, met = list(edges), [], set[str]()
    while left:
        edge = next((e for e in left if e.producer in met or e.consumer in met), left[0])
        left.remove(edge)
        order.append(edge)
        met |= {edge.producer, edge.consumer}
    return tuple(order)


class _TaskTable(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(min_length=1)
    macs: NonNegativeInt = 0
    operations: NonNegativeInt = 0
    weight_bytes: NonNegativeInt = 0
    input_bytes: NonNegativeInt = 0
    result_bytes: NonNegativeInt = 0
    ways: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), strict=False)


class _EdgeTable(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    producer: str
    consumer: str
    bytes: NonNegativeInt
    kind: str
    tensor: str = ""
    steps: int = Field(default=16, ge=1)


class _GraphFile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = ""
    task: list[_TaskTable]
    edge: list[_EdgeTable] = []


def read_work_graph(path: str | Path) -> WorkGraph:
    """A graph from a TOML file: ``name``, tables ``[[task]]`` (fields of `WorkTask`), tables ``[[edge]]``.

    An edge has ``producer``, ``consumer``, ``bytes``, ``kind`` (``streamable`` or ``barrier``), and if it likes
    ``tensor`` (its producer's name where it is missing) and ``steps``, the tiles in which it streams.

    Raises:
        HastenError: no such file, not TOML, something missing, misspelt or impossible in it, or a circle.
    """
    source = Path(path)
    try:
        data = _GraphFile.model_validate(parse_toml(read_text(source, "the work graph")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise HastenError(f"the work graph {source}: {where}: {first['msg']}") from None
    except ValueError as error:
        raise HastenError(f"the work graph {source} is not TOML: {error}") from None
    edges = []
    for table in data.edge:
        if table.kind not in tuple(EdgeKind):
            raise HastenError(
                f"the work graph {source}: an edge of kind {table.kind[:20]!r}: write {' or '.join(EdgeKind)}"
            )
        tile = -(-table.bytes // table.steps)
        streams = (Stream(steps=table.steps, buffer_bytes=tile),) if table.kind == EdgeKind.STREAMABLE else ()
        edges.append(WorkEdge(table.producer, table.consumer, table.bytes, table.tensor or table.producer, streams))
    tasks = tuple(WorkTask(**t.model_dump()) for t in data.task)
    return WorkGraph(data.name or source.stem, tasks, tuple(edges))
