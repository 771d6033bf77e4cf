"""What a search found: a table of the front, and a page with it and how it was reached."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.errors import MissingExtraError
from hasten.files import write_aside, write_parquet
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
            "details": t.details, "seconds": t.seconds, "reason": t.reason, "sampler": t.sampler,
            "front": t.number in front,
        }  # fmt: skip

    return {
        "problem": problem.name,
        "objectives": [{"name": o.name, "direction": o.direction, "unit": o.unit} for o in problem.objectives],
        "identity": dict(problem.identity),
        "stopped": result.stopped,
        "trials": [one(t) for t in result.trials],
    }


def write_search(problem: Problem, result: StudyResult, folder: Path) -> list[Path]:
    """Writes ``search.json``, ``search.html``, which opens without a network, and ``search.parquet`` where pyarrow is.

    Returns:
        The files written.

    Raises:
        HastenError: a file cannot be written.
    """
    document = trials_document(problem, result)
    files = [folder / "search.html", folder / "search.json", folder / "search.parquet"]
    write_aside(files[1], json.dumps(document, indent=1, default=str) + "\n", "the trials")
    write_aside(files[0], _page(problem, result), "the page")
    try:
        write_parquet([_row(t) for t in document["trials"]], files[2])
    except MissingExtraError:
        return files[:2]
    return files


def _row(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial as one row: a column a parameter, value and constraint; details as JSON."""
    flat = {k: trial[k] for k in ("number", "sampler", "seconds", "reason", "front")}
    for label, key in (("param", "params"), ("value", "values"), ("constraint", "constraints")):
        flat |= {f"{label}.{k}": v for k, v in trial[key].items()}
    return flat | {"details": json.dumps(trial["details"], default=str)}


def importances(problem: Problem, result: StudyResult) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> share of what it takes to be among the best (PED-ANOVA), the largest first.

    Of parameters that exist at every point tried, and vary; empty with fewer than ten feasible trials.
    """
    from optuna import create_study, logging
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    feasible = [t for t in result.trials if t.feasible and all(map(math.isfinite, t.values.values()))]
    if len(feasible) < 10:
        return {}
    names = [
        p.name
        for p in problem.space
        if all(p.name in t.params for t in feasible) and len({t.params[p.name] for t in feasible}) > 1
    ]
    found = {}
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        for o in problem.objectives:
            study = create_study(direction=o.direction)
            distributions = {n: problem.space.parameters[n].distribution() for n in names}
            for t in feasible:
                study.add_trial(
                    create_trial(
                        params={n: t.params[n] for n in names}, distributions=distributions, value=t.values[o.name]
                    )
                )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it is called experimental, on every use
                try:
                    found[o.name] = dict(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
                except (RuntimeError, ValueError):  # all points are equally good
                    continue
    finally:
        logging.set_verbosity(verbosity)
    return found


def _page(problem: Problem, result: StudyResult) -> str:
    from html import escape

    from plotly.graph_objects import Bar, Scatter
    from plotly.subplots import make_subplots

    objectives = problem.objectives
    first, second = objectives[0], objectives[min(1, len(objectives) - 1)]
    feasible = [t for t in result.trials if t.feasible]
    front = result.pareto()
    shares = importances(problem, result)
    titles = ["What was tried", f"Best {escape(first.name)} so far, by who chose"]
    figure = make_subplots(
        2 if shares else 1,
        2,
        subplot_titles=[*titles, *(["Which parameters matter"] if shares else [])],
        specs=[[{}, {}], *([[{"colspan": 2}, None]] if shares else [])],
    )

    def marks(trials: list[Trial], name: str, color: str) -> Scatter:
        # Plotly reads some HTML in its labels.
        told = [escape(", ".join(f"{k} {v}" for k, v in t.params.items()), quote=False) for t in trials]
        return Scatter(
            x=[t.values[second.name] for t in trials], y=[t.values[first.name] for t in trials],
            mode="markers", name=name, marker={"color": color, "size": 9}, text=told,
            hovertemplate="%{y:.5g} at %{x:.5g}<br>%{text}<extra></extra>",
        )  # fmt: skip

    best_ones = {t.number for t in front}
    figure.add_trace(marks([t for t in feasible if t.number not in best_ones], "dominated", "#8a8f98"), 1, 1)
    figure.add_trace(marks(front, "front", "#2f7fc1"), 1, 1)
    for sampler in dict.fromkeys(t.sampler for t in feasible):
        own = [t for t in feasible if t.sampler == sampler]
        best: list[float] = []
        for t in own:
            value = t.values[first.name]
            best.append(value if not best else min(best[-1], value, key=lambda v: first.sign * v))
        name = escape(sampler or "unknown", quote=False)
        figure.add_trace(
            Scatter(x=list(range(1, len(own) + 1)), y=best, mode="lines", name=name, line={"shape": "hv"}), 1, 2
        )
    for name, share in shares.items():
        labels = [escape(p, quote=False) for p in share]
        figure.add_trace(Bar(x=labels, y=list(share.values()), name=f"for {escape(name, quote=False)}"), 2, 1)
    if shares:
        figure.update_yaxes(title_text="share", row=2, col=1)
        figure.update_layout(height=900)
    figure.update_xaxes(title_text=escape(f"{second.name} {second.unit}"), row=1, col=1)
    figure.update_yaxes(title_text=escape(f"{first.name} {first.unit}"), row=1, col=1)
    figure.update_xaxes(title_text="trials of it", row=1, col=2)
    figure.update_layout(title=escape(f"{problem.name}: {len(result.trials)} trials"), template="plotly_white")
    return str(figure.to_html(include_plotlyjs=True, full_html=True))
