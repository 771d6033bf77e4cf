"""Schedules of a model on arrays of cores: a table, a document, and a page with a Gantt chart of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from plotly.graph_objects import Figure

from hasten import __version__
from hasten.cost.chips.core_schedule import CoreSchedule, Pattern, ScheduleCost, schedule
from hasten.errors import HastenError
from hasten.files import write_aside
from hasten.hardware.chips.core_array import CoreArray
from hasten.report import quantities as q
from hasten.report.html import section, whole_page
from hasten.report.placing import placed
from hasten.report.tables import Table
from hasten.report.timeline_plots import gantt
from hasten.workload import Workload
from hasten.workload.streaming import work_graph

_MOST_TASKS = 400
_MOST_ROWS = 400


@dataclass(frozen=True)
class Scheduled:
    """A phase of a model on an array.

    Args:
        title: of the methods that changed the model, ``unchanged`` without any.
        model: its name.
        phase: its name.
        repeats: how often it runs.
        schedule: in what order.
        cost: of one run.
    """

    title: str
    model: str
    phase: str
    repeats: int
    schedule: CoreSchedule
    cost: ScheduleCost

    @property
    def array(self) -> CoreArray:
        return self.schedule.array


def scheduled(workload: Workload, array: CoreArray, pattern: Pattern, title: str = "unchanged") -> list[Scheduled]:
    """The schedule of each phase of a workload, in the number format of the array.

    Raises:
        HastenError: a phase of more than 400 tasks, or that can be cut in too many ways.
    """
    found = []
    for phase in workload.phases:
        graph = work_graph(phase, f"{workload.name} ({phase.name})", dtype=array.dtype)
        if len(graph) > _MOST_TASKS:
            raise HastenError(
                f"{graph.name} has {len(graph)} tasks where at most {_MOST_TASKS} are scheduled: give fewer layers"
            )
        plan = schedule(graph, array, pattern)
        found.append(Scheduled(title, workload.name, phase.name, phase.repeats, plan, plan.cost()))
    return found


def schedule_table(found: Sequence[Scheduled]) -> Table:
    """A row for each phase on each array."""
    several = len({s.title for s in found}) > 1
    columns = ("array", *(["method"] if several else []), "phase", ">stages", ">cycles", ">latency", ">off chip")
    rows = []
    for one in found:
        cost = one.cost
        name = one.phase if one.repeats == 1 else f"{one.phase} x {one.repeats:,}"
        row = [one.array.name, *([one.title] if several else []), name, f"{len(one.schedule.stages):,}"]
        row += [f"{cost.cycles * one.repeats:,}", q.seconds(cost.latency * one.repeats)]
        row += [q.si(cost.moved() * one.repeats, "B"), q.si(cost.peak, "B"), f"{cost.utilization:.0%}", cost.bound]
        rows.append(tuple(row))
    title = f"{found[0].model}, {found[0].schedule.pattern}" if found else "no schedules"
    return Table(title, (*columns, ">on chip", ">used", "bound by"), tuple(rows))


def schedules_document(found: Sequence[Scheduled]) -> dict[str, Any]:
    """The same as data, with the stages and what each core is told in each."""
    return {
        "schedules": [
            {
                "model": s.model,
                "array": s.array.name,
                "methods": s.title,
                "phase": s.phase,
                "repeats": s.repeats,
                "pattern": s.schedule.pattern,
                "cycles": s.cost.cycles,
                "latency": s.cost.latency,
                "off_chip_bytes": s.cost.moved(),
                "peak_bytes": s.cost.peak,
                "utilization": s.cost.utilization,
                "bound": s.cost.bound,
                "stages": [
                    {
                        "tasks": list(stage.tasks),
                        "cores": dict(stage.cores),
                        "kept": sorted(stage.kept),
                        "cycles": cost.cycles,
                        "moved": dict(cost.moved),
                        "held": cost.held,
                    }
                    for stage, cost in zip(s.schedule.stages, s.cost.stages, strict=True)
                ],
                "instructions": s.schedule.instructions(),
            }
            for s in found
        ]
    }


def write_schedules(found: Sequence[Scheduled], path: str | Path) -> None:
    """Writes a page: for each schedule a Gantt chart and the table of instructions.

    Raises:
        HastenError: it cannot be written.
    """
    figures: dict[str, Figure] = {}
    body, links = "", {}
    for number, one in enumerate(found):
        name = f"schedule-{number}"
        title = f"{one.phase} on {one.array.name}" + ("" if one.title == "unchanged" else f", {one.title}")
        figures[f"plot-{name}"] = gantt(one.schedule.timeline())
        content = f'<p class="explain">{escape(one.array.title)}: {one.cost.cycles:,} cycles, '
        content += f"{q.seconds(one.cost.latency)}; {q.si(one.cost.moved(), 'B')} off the chip.</p>"
        content += placed(f"plot-{name}", figures[f"plot-{name}"]) + _instructions(one.schedule)
        body += section(name, title, content)
        links[name] = title
    model = found[0].model if found else "no model"
    pattern = found[0].schedule.pattern if found else ""
    write_aside(path, whole_page(model, "hasten estimate", escape(pattern), links, body, figures, __version__))


def _instructions(plan: CoreSchedule) -> str:
    rows = plan.instructions()
    if not rows:
        return ""
    heads = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    shown = "".join(
        "<tr>"
        + "".join(f"<td>{v:,}</td>" if isinstance(v, int) else f"<td>{escape(v)}</td>" for v in row.values())
        + "</tr>"
        for row in rows[:_MOST_ROWS]
    )
    more = f"<p>{len(rows) - _MOST_ROWS:,} more.</p>" if len(rows) > _MOST_ROWS else ""
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{shown}</tbody></table></div>{more}'
