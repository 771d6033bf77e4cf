"""The page that a search leaves: one file, complete in itself, that opens without a network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING

from plotly.graph_objects import Figure

from hasten import __version__
from hasten.report import quantities
from hasten.report import search_plots as plots
from hasten.report.html import headings, pairs, section, whole_page
from hasten.report.placing import placed
from hasten.search.parameter import Parameter
from hasten.search.problem import Problem, Trial

if TYPE_CHECKING:
    from hasten.search.study_result import StudyResult

_MOST_ROWS = 200

_STOPPED = {
    "trials": "It ended with the number of trials asked for.",
    "seconds": "It ended when its time was up.",
    "exhausted": "It ended with every point of the space tried.",
    "repeating": "It ended as the sampler chose nothing but points it knew.",
    "interrupted": "It was interrupted: this is what was tried until then.",
    "read": "",
}


def search_page(problem: Problem, result: StudyResult, shares: Mapping[str, Mapping[str, float]]) -> str:
    """The page as HTML: plotly.js, style and data inside; nothing is loaded from elsewhere.

    Args:
        problem: what was searched.
        result: what was tried.
        shares: objective -> parameter -> how much it matters (`hasten.report.search.importances`).
    """
    figures: dict[str, Figure] = {}

    def plot(name: str, figure: Figure) -> str:
        figures[name] = figure
        return placed(name, figure)

    several = len(problem.objectives) > 1
    sections = [("summary", "Summary", "What was found", f'<div class="found">{_summary(problem, result)}</div>')]
    if any(t.values for t in result.trials):
        told = "Each mark is a point that was tried"
        told += (
            ". A point is on the front when no other feasible one is as good in everything and better in something."
            if several
            else ", in the order of trials."
        )
        if len(problem.objectives) > 2:
            told += " It may be there for an objective that is not in the panel."
        title = "The front" if several else "What was tried"
        sections.append(("front", title, title, _explained(told) + plot("plot-front", plots.tried(problem, result))))
    if any(t.feasible for t in result.trials):
        sections.append(("best", "Best points", "The best points", _front_table(problem, result)))
        told = (
            "The best so far, over the different points each sampler chose; one that another had tried before counts"
            " for both."
        )
        if len(result.chosen) > 1:
            told += (
                " All worked on one study: who came later knew what those before had found, so this shows who brought"
                " the search on, and is no race from the same start."
            )
        if several:
            told += (
                " The volume is what the front wins over the worst value of each objective, as a share of what all"
                " trials together have."
            )
        sections.append(
            ("convergence", "Convergence", "How each sampler came to it",
             _explained(told) + plot("plot-convergence", plots.convergence(problem, result)))
        )  # fmt: skip
    sections.append(("importance", "Importance", "Which parameters matter", _importance(problem, result, shares, plot)))
    sections.append(("space", "Space", "What was searched", _space(problem)))

    links = {name: link for name, link, _, _ in sections}
    body = "".join(section(name, title, content) for name, _, title, content in sections)
    lead, content = _lead(problem, result), _headline(problem, result) + body
    return whole_page(problem.name, "hasten search", lead, links, content, figures, __version__)


def _explained(text: str) -> str:
    return f'<p class="explain">{escape(text)}</p>'


def _points(size: float) -> str:
    return "infinitely many" if size == math.inf else f"{int(size):,}"


def _lead(problem: Problem, result: StudyResult) -> str:
    wanted = ", ".join(("least " if o.sign > 0 else "most ") + o.name for o in problem.objectives)
    return escape(f"{wanted} · {len(result.trials):,} of {_points(problem.space.size)} points tried")


def _headline(problem: Problem, result: StudyResult) -> str:
    """The best value of each objective."""
    if not any(t.feasible for t in result.trials):
        return ""
    cards = [
        (plots.quantity(o, result.best(o.name).values[o.name]), f"{'least' if o.sign > 0 else 'most'} {o.name}")
        for o in problem.objectives
    ]
    if len(problem.objectives) > 1:
        cards.append((str(len(result.pareto())), "points on the front"))
    inner = "".join(f'<div class="figure"><b>{escape(n)}</b><span>{escape(t)}</span></div>' for n, t in cards)
    return f'<div class="figures">{inner}</div>\n'


def _summary(problem: Problem, result: StudyResult) -> str:
    trials = result.trials
    feasible = sum(t.feasible for t in trials)
    lines = [f"{len(trials):,} points were tried, {feasible:,} of them feasible. {_STOPPED[result.stopped]}"]
    lines += [
        f"{'Least' if o.sign > 0 else 'Most'} {o.name}: {plots.quantity(o, best.values[o.name])}, at "
        + ", ".join(f"{k} {v}" for k, v in best.params.items())
        + "."
        for o in problem.objectives
        if feasible and (best := result.best(o.name))
    ]
    notes = [
        f"{count:,} could not be had: {reason}"
        for reason, count in Counter(t.reason for t in trials if t.reason).most_common(5)
    ]
    broken = {name: sum(t.constraints.get(name, 0.0) > 0 for t in trials) for name in problem.constraints}
    notes += [f"{count:,} break the constraint {name}" for name, count in broken.items() if count]
    if trials and not feasible:
        notes.insert(0, "No point tried is feasible: loosen the constraints, or try more.")
    text = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return text + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


def _front_table(problem: Problem, result: StudyResult) -> str:
    objectives, constraints = problem.objectives, problem.constraints
    first = objectives[0]
    front = sorted(result.pareto(), key=lambda t: first.sign * t.values[first.name])
    titles = ["trial", "point", *map(plots.title_of, objectives), *constraints, "took", "chosen by"]
    groups = f'<tr><th colspan="2"></th><th colspan="{len(objectives)}">objectives</th>'
    if constraints:
        groups += f'<th colspan="{len(constraints)}">constraints (met at 0 or less)</th>'
    groups += '<th colspan="2"></th></tr>'
    body = "".join(_row(problem, t) for t in front[:_MOST_ROWS])
    more = f" The first {_MOST_ROWS} of {len(front)}; all are in search.parquet." if len(front) > _MOST_ROWS else ""
    return _explained(f"Click a heading to sort.{more}") + (
        f'<div class="scroll"><table><thead>{groups}{headings(titles)}</thead><tbody>{body}</tbody></table></div>'
    )


def _row(problem: Problem, t: Trial) -> str:
    point = escape(", ".join(f"{k} {v}" for k, v in t.params.items()))
    numbers = [(plots.quantity(o, t.values[o.name]), t.values[o.name]) for o in problem.objectives]
    numbers += [(f"{t.constraints[n]:.4g}", t.constraints[n]) for n in problem.constraints]
    numbers.append((quantities.seconds(t.seconds), t.seconds))
    cells = "".join(f'<td data-value="{raw!r}">{escape(text)}</td>' for text, raw in numbers)
    head = f'<td class="mark" data-value="{t.number}">{t.number}</td><td class="name">{point}</td>'
    return f"<tr>{head}{cells}<td>{escape(t.sampler)}</td></tr>"


def _importance(
    problem: Problem, result: StudyResult, shares: Mapping[str, Mapping[str, float]], plot: Callable[[str, Figure], str]
) -> str:
    if not shares:
        return _explained("Not known yet: it takes at least ten feasible points that differ.")
    told = (
        "How much a parameter has to do with a point being among the best tenth for an objective (PED-ANOVA); the"
        " shares of an objective add up to 100 %. With few points this is a hint."
    )
    seen = {name for share in shares.values() for name in share}
    left = [p.name for p in problem.space if p.name not in seen]
    if left:
        told += f" Left out, as they are not part of every point or never changed: {', '.join(left)}."
    return _explained(told) + plot("plot-importance", plots.importance(shares))


def _space(problem: Problem) -> str:
    rows = {p.name: _values(p) for p in problem.space}
    named = {f"objective {o.name}": f"{o.direction}{f', {o.unit}' if o.unit else ''}" for o in problem.objectives}
    limits = {f"constraint {name}": "at most 0" for name in problem.constraints}
    size = {"points": _points(problem.space.size)}
    return pairs({**named, **limits, **{k: str(v) for k, v in problem.identity.items()}, **size, **rows})


def _values(parameter: Parameter) -> str:
    if parameter.kind == "categorical":
        return ", ".join(map(str, parameter.choices))
    scale = ", logarithmic" if parameter.log else ""
    step = f" in steps of {parameter.step}" if parameter.step else ""
    return f"{parameter.low} to {parameter.high}{step}{scale}"
