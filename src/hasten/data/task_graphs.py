"""Graphs of tasks that a system on chip runs: generated from what they compute, or read from a file.

The three that are generated are of the kind that FARSI, behind ArchGym's FARSIGym, designs chips for: parts of
augmented reality. Their operations and bytes follow from the sizes of pictures and blocks of sound, counted here.

A file is TOML: ``name``, and for each task a table ``[[task]]`` with ``name``, ``kind``, ``operations``, ``bytes``
written, and ``after``, the tasks whose output it reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.errors import HastenError
from hasten.files import parse_toml, read_text

GRAPHS = ("edge-detection", "spatial-audio", "head-tracking")
KINDS = ("filter", "transform", "control")


@dataclass(frozen=True)
class GraphTask:
    """A part of a program.

    Args:
        name: unique in its graph.
        kind: one of `KINDS`: what an accelerator may be made for.
        operations: that it takes.
        bytes: that it writes; who follows reads them.
        after: tasks whose output it reads.
    """

    name: str
    kind: str
    operations: float
    bytes: float
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskGraph:
    """Tasks, each behind those whose output it reads.

    Raises:
        HastenError: a name used twice, a task after one that does not come before it, a kind that is not known, or
            operations or bytes that are no numbers above 0.
    """

    name: str
    tasks: tuple[GraphTask, ...]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise HastenError(f"the task graph {self.name} has no task")
        seen: set[str] = set()
        for task in self.tasks:
            where = f"the task graph {self.name}, task {task.name!r}"
            if task.name in seen:
                raise HastenError(f"{where}: it is there twice: rename one")
            if missing := [a for a in task.after if a not in seen]:
                raise HastenError(f"{where}: it is after {missing[0]!r}, which does not come before it: reorder them")
            if task.kind not in KINDS:
                raise HastenError(f"{where}: kind {task.kind!r} is not known: use {', '.join(KINDS)}")
            if not (0 < task.operations < math.inf and 0 <= task.bytes < math.inf):
                raise HastenError(f"{where}: operations must be a number above 0, and bytes one from 0")
            seen.add(task.name)

    def __len__(self) -> int:
        return len(self.tasks)


def task_graph(name: str, scale: int = 1) -> TaskGraph:
    """A generated graph.

    ``edge-detection``: a picture of 640 x 480 smoothed, its gradients, their size, thinned, linked. ``spatial-audio``:
    a block of 1024 samples of 16 sources to the frequency domain, rotated, filtered for two ears, and back.
    ``head-tracking``: two camera pictures rectified, corners found and matched, a pose from them.

    Args:
        name: one of `GRAPHS`.
        scale: pictures or blocks at once.

    Raises:
        HastenError: an unknown name, or a scale below 1.
    """
    if name not in GRAPHS:
        raise HastenError(f"there is no task graph {name!r}: choose one of {', '.join(GRAPHS)}, or give a .toml file")
    if scale < 1:
        raise HastenError("a task graph's scale is at least 1")
    made = {"edge-detection": _edges, "spatial-audio": _audio, "head-tracking": _tracking}[name](scale)
    return TaskGraph(name, tuple(made))


def _edges(scale: int) -> list[GraphTask]:
    pixels = 640 * 480 * scale
    word = 2  # bytes
    return [
        GraphTask("gray", "control", 5 * pixels, word * pixels),
        GraphTask("smooth", "filter", 2 * 25 * pixels, word * pixels, ("gray",)),
        GraphTask("laplace", "filter", 2 * 9 * pixels, word * pixels, ("smooth",)),
        GraphTask("across", "filter", 2 * 9 * pixels, word * pixels, ("smooth",)),
        GraphTask("down", "filter", 2 * 9 * pixels, word * pixels, ("smooth",)),
        GraphTask("size", "control", 10 * pixels, word * pixels, ("across", "down")),
        GraphTask("thin", "control", 8 * pixels, pixels, ("laplace", "size")),
        GraphTask("link", "control", 16 * pixels, pixels, ("thin",)),
    ]


def _audio(scale: int) -> list[GraphTask]:
    block, sources, ears, word = 1024 * scale, 16, 2, 4
    fourier = 5 * block * math.log2(block)
    tasks = [GraphTask("mix", "control", 4 * sources * block, word * sources * block)]
    parts = []
    for i in range(4):
        part = sources // 4
        tasks.append(GraphTask(f"forward{i}", "transform", part * fourier, 2 * word * part * block, ("mix",)))
        parts.append(f"forward{i}")
    tasks += [
        GraphTask("rotate", "filter", 2 * sources * sources * block, 2 * word * sources * block, tuple(parts)),
        GraphTask("zoom", "control", 6 * sources * block, 2 * word * sources * block, ("rotate",)),
        GraphTask("left", "filter", 8 * sources * block, 2 * word * block, ("zoom",)),
        GraphTask("right", "filter", 8 * sources * block, 2 * word * block, ("zoom",)),
        GraphTask("back", "transform", ears * fourier, word * ears * block, ("left", "right")),
    ]
    return tasks


def _tracking(scale: int) -> list[GraphTask]:
    pixels, corners = 640 * 480 * scale, 500 * scale
    tasks = []
    for eye in ("left", "right"):
        tasks += [
            GraphTask(f"rectify-{eye}", "transform", 20 * pixels, pixels),
            GraphTask(f"pyramid-{eye}", "filter", 2 * 25 * pixels * 4 / 3, pixels * 4 / 3, (f"rectify-{eye}",)),
            GraphTask(f"corners-{eye}", "filter", 2 * 27 * pixels, 64 * corners, (f"pyramid-{eye}",)),
        ]
    return [
        *tasks,
        GraphTask("match", "control", 3 * 32 * corners * 60, 16 * corners, ("corners-left", "corners-right")),
        GraphTask("flow", "filter", 2 * 15 * 15 * 12 * corners * 3, 16 * corners, ("pyramid-left", "match")),
        GraphTask("pose", "transform", 40 * 6 * 6 * corners * 4, 4096, ("flow",)),
    ]


def read_task_graph(path: str | Path) -> TaskGraph:
    """A graph from a TOML file.

    Raises:
        HastenError: no such file, not TOML, or something missing, misspelt or impossible in it.
    """
    source = Path(path)
    try:
        data = parse_toml(read_text(source, "the task graph"))
    except ValueError as error:
        raise HastenError(f"the task graph {source} is not TOML: {error}") from None
    tables = data.get("task")
    if not isinstance(tables, list) or not tables:
        raise HastenError(f"the task graph {source} has no task: write a table [[task]] for each")
    return TaskGraph(str(data.get("name", source.stem)), tuple(_task(source, i, t) for i, t in enumerate(tables, 1)))


def _task(source: Path, number: int, table: Any) -> GraphTask:
    where = f"the task graph {source}, task {number}"
    known = {"name": str, "kind": str, "operations": int | float, "bytes": int | float, "after": list}
    if not isinstance(table, dict) or set(table) - set(known):
        raise HastenError(f"{where}: it is a table of {', '.join(known)} and nothing else")
    for key, kind in known.items():
        if key not in table and key != "after":
            raise HastenError(f"{where}: {key} is missing")
        if key in table and (not isinstance(table[key], kind) or isinstance(table[key], bool)):
            raise HastenError(f"{where}: {key} is {table[key]!r:.40}")
    return GraphTask(
        table["name"],
        table["kind"],
        float(table["operations"]),
        float(table["bytes"]),
        tuple(map(str, table.get("after", []))),
    )
