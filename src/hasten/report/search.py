"""What a search found: a table of the front, and a page with it and how it was reached."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna import create_study, logging
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from hasten.errors import MissingExtraError
from hasten.files import to_json, write_aside, write_parquet
from hasten.report.search_page import search_page
from hasten.report.tables import Table

if TYPE_CHECKING:
    from hasten.search.problem import Problem, Trial
    from hasten.search.study_result import StudyResult


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
        "units": dict(problem.units),
        "identity": dict(problem.identity),
        "stopped": result.stopped,
        "trials": [one(t) for t in result.trials],
    }


def write_search(problem: Problem, result: StudyResult, folder: Path) -> list[Path]:
    """Writes ``search.json``, ``search.html``, which opens without a network, ``search.csv``, and ``search.parquet``
    where pyarrow is.

    A value that is not finite is in the JSON as a text: ``"Infinity"``, ``"-Infinity"`` or ``"NaN"``. Units stand in
    the CSV's headings, and in the Parquet's fields as metadata.

    Returns:
        The files written.

    Raises:
        HastenError: a file cannot be written.
    """
    document = trials_document(problem, result)
    files = [folder / f"search.{kind}" for kind in ("html", "json", "csv", "parquet")]
    write_aside(files[1], to_json(document, indent=1) + "\n", "the trials")
    write_aside(files[0], search_page(problem, result, importances(problem, result)), "the page")
    rows = [_row(t) for t in document["trials"]]
    columns = [*(f"value.{o.name}" for o in problem.objectives), *(f"constraint.{c}" for c in problem.constraints)]
    units = {c: unit for c in columns if (unit := problem.unit(c.partition(".")[2]))} | {"seconds": "s"}
    write_aside(files[2], _csv(rows, units), "the trials")
    try:
        write_parquet(rows, files[3], units)
    except MissingExtraError:
        return files[:3]
    return files


def _csv(rows: Sequence[Mapping[str, Any]], units: Mapping[str, str]) -> str:
    """A line a row, with a heading; what a row has not is empty."""
    names = list(dict.fromkeys(k for row in rows for k in row))
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(f"{n} [{units[n]}]" if n in units else n for n in names)
    out.writerows([row.get(n, "") for n in names] for row in rows)
    return text.getvalue()


def _row(trial: dict[str, Any]) -> dict[str, Any]:
    """A trial as one row: a column a parameter, value and constraint; details as JSON."""
    flat = {k: trial[k] for k in ("number", "sampler", "seconds", "reason", "front")}
    for label, key in (("param", "params"), ("value", "values"), ("constraint", "constraints")):
        flat |= {f"{label}.{k}": v for k, v in trial[key].items()}
    return flat | {"details": to_json(trial["details"])}


def importances(problem: Problem, result: StudyResult) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> share of what it takes to be among the best (PED-ANOVA), the largest first.

    Of parameters that exist at every point tried, and vary; empty with fewer than ten feasible trials.
    """
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
                        params=problem.space.to_trial({n: t.params[n] for n in names}),
                        distributions=distributions,
                        value=t.values[o.name],
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
