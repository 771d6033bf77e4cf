"""A system on chip for a graph of tasks: its parts, and which task runs on and writes to which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hasten.cost.chips.soc import MEMORIES, PROCESSORS, TOPOLOGIES, Chip, run_tasks
from hasten.data.task_graphs import GRAPHS, TaskGraph, read_task_graph, task_graph
from hasten.errors import HastenError
from hasten.search.parameter import Params, categorical, ordinal
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Space

SLOTS = 4
_NONE = "none"


def space(graph: TaskGraph) -> Space:
    """What may be chosen: a first element that is a CPU, up to three others, one or two memories, buses, places.

    An element's clock exists where the element does, and the memory of each task where there are two.
    """
    kinds = (_NONE, *PROCESSORS)
    others = [name for name in kinds if name != _NONE]
    return Space(
        [
            ordinal("clock0", [200, 400, 800]),
            *(
                parameter
                for i in range(1, SLOTS)
                for parameter in (
                    categorical(f"element{i}", kinds),
                    ordinal(f"clock{i}", [200, 400, 800], when={f"element{i}": others}),
                )
            ),
            ordinal("memories", [1, 2]),
            categorical("memory1", list(MEMORIES), when={"memories": [2]}),
            categorical("topology", TOPOLOGIES),
            ordinal("width", [32, 64, 128, 256]),
            *(categorical(f"run_{t.name}", list(range(SLOTS))) for t in graph.tasks),
            *(categorical(f"write_{t.name}", [0, 1], when={"memories": [2]}) for t in graph.tasks),
        ]
    )


def problem(graph: str | TaskGraph = "edge-detection", *, scale: int = 1) -> Problem:
    """Least latency, power and area of running a graph.

    Args:
        graph: one of `hasten.data.task_graphs.GRAPHS`, a TOML file, or a graph.
        scale: of a generated graph.

    Raises:
        HastenError: an unknown graph, or a file that is none.
    """
    if isinstance(graph, str):
        graph = read_task_graph(graph) if graph.endswith(".toml") else task_graph(graph, scale)
    tasks = graph

    def evaluate(params: Params) -> Mapping[str, Any]:
        chip, runs, writes = of(tasks, params)
        try:
            cost = run_tasks(tasks, chip, runs, writes)
        except HastenError as error:
            raise Infeasible(str(error), misplaced(tasks, chip, runs)) from None
        return {"latency": cost.latency, "power": cost.power, "area": chip.area * 1e6, "energy": cost.energy}

    return Problem(
        f"soc-{tasks.name}",
        space(tasks),
        (Objective("latency", unit="s"), Objective("power", unit="W"), Objective("area", unit="mm^2")),
        evaluate,
        identity={"tasks": repr(tasks.tasks)},
        units={"energy": "J"},
    )


def misplaced(graph: TaskGraph, chip: Chip, runs: Sequence[int]) -> int:
    """Tasks that have to move: those on an element that is not there or does not run their kind."""
    kinds = [PROCESSORS[name].rates for name, _ in chip.processors]
    return sum(
        not 0 <= at < len(kinds) or task.kind not in kinds[at] for task, at in zip(graph.tasks, runs, strict=True)
    )


def of(graph: TaskGraph, params: Mapping[str, Any]) -> tuple[Chip, list[int], list[int]]:
    """The chip of a point, and the element and memory of each task; a place without an element is -1."""
    slots, elements = [0], [("cpu", params["clock0"] * 1e6)]
    for i in range(1, SLOTS):
        kind = params[f"element{i}"]
        slots.append(-1 if kind == _NONE else len(elements))
        if kind != _NONE:
            elements.append((str(kind), params[f"clock{i}"] * 1e6))
    memories = ("dram", str(params["memory1"])) if params["memories"] == 2 else ("dram",)
    chip = Chip(tuple(elements), memories, str(params["topology"]), int(params["width"]))
    runs = [slots[int(params[f"run_{t.name}"])] for t in graph.tasks]
    return chip, runs, [int(params.get(f"write_{t.name}", 0)) for t in graph.tasks]


__all__ = ["GRAPHS", "SLOTS", "of", "problem", "space"]
