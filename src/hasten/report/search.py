"""What a search found: a table of the front, and a page with it and how it was reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.files import write_aside
from hasten.report.tables import Table

if TYPE_CHECKING:
    from hasten.search.problem import Problem, Trial
    from hasten.search.study import StudyResult


def search_table(problem: Problem, result: StudyResult) -> Table:
    """The trials that none dominates, the best in the first objective first."""
    objectives = problem.objectives
    names = [p.name for p in problem.space]
    rows = tuple(
        (
            str(t.number),
            *(f"{t.values[o.name]:.6g}" for o in objectives),
            *("" if name not in t.params else str(t.params[name]) for name in names),
        )
        for t in sorted(result.pareto(), key=lambda t: objectives[0].sign * t.values[objectives[0].name])
    )
    units = [f">{o.name}, {o.unit}" if o.unit else f">{o.name}" for o in objectives]
    title = f"{problem.name}: the front of {len(result.trials)} trials"
    return Table(title, (">trial", *units, *names), rows)


def trials_document(problem: Problem, result: StudyResult) -> dict[str, Any]:
    """Everything tried, as plain data."""
    front = {t.number for t in result.pareto()}

    def one(t: Trial) -> dict[str, Any]:
        return {
            "number": t.number, "params": t.params, "values": t.values, "constraints": t.constraints,
            "details": t.details, "seconds": t.seconds, "reason": t.reason, "front": t.number in front,
        }  # fmt: skip

    return {
        "problem": problem.name,
        "objectives": [{"name": o.name, "direction": o.direction, "unit": o.unit} for o in problem.objectives],
        "identity": dict(problem.identity),
        "stopped": result.stopped,
        "trials": [one(t) for t in result.trials],
    }


def write_search(problem: Problem, result: StudyResult, folder: Path) -> None:
    """Writes ``search.json`` and ``search.html``, which opens without a network.

    Raises:
        HastenError: a file cannot be written.
    """
    text = json.dumps(trials_document(problem, result), indent=1, default=str)
    write_aside(folder / "search.json", text + "\n", "the trials")
    write_aside(folder / "search.html", _page(problem, result), "the page")


def _page(problem: Problem, result: StudyResult) -> str:
    from html import escape

    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    objectives = problem.objectives
    first, second = objectives[0], objectives[min(1, len(objectives) - 1)]
    feasible = [t for t in result.trials if t.feasible]
    front = result.pareto()
    figure = make_subplots(1, 2, subplot_titles=("What was tried", f"Best {escape(first.name)} so far"))

    def marks(trials: list[Trial], name: str, color: str) -> Scatter:
        # Plotly reads some HTML in its labels.
        told = [escape(", ".join(f"{k} {v}" for k, v in t.params.items()), quote=False) for t in trials]
        return Scatter(
            x=[t.values[second.name] for t in trials], y=[t.values[first.name] for t in trials],
            mode="markers", name=name, marker={"color": color, "size": 9}, text=told,
            hovertemplate="%{y:.5g} at %{x:.5g}<br>%{text}<extra></extra>",
        )  # fmt: skip

    figure.add_trace(marks([t for t in feasible if t not in front], "dominated", "#8a8f98"), 1, 1)
    figure.add_trace(marks(front, "front", "#2f7fc1"), 1, 1)
    best: list[float] = []
    for t in feasible:
        value = t.values[first.name]
        best.append(value if not best else min(best[-1], value, key=lambda v: first.sign * v))
    figure.add_trace(
        Scatter(x=[t.number for t in feasible], y=best, mode="lines", name="best", line={"shape": "hv"}), 1, 2
    )
    figure.update_xaxes(title_text=escape(f"{second.name} {second.unit}"), row=1, col=1)
    figure.update_yaxes(title_text=escape(f"{first.name} {first.unit}"), row=1, col=1)
    figure.update_xaxes(title_text="trial", row=1, col=2)
    figure.update_layout(title=escape(f"{problem.name}: {len(result.trials)} trials"), template="plotly_white")
    return str(figure.to_html(include_plotlyjs=True, full_html=True))
