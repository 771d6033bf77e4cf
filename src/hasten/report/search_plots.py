"""Figures of a search: what was tried, how each sampler came to it, which parameters matter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from plotly.graph_objects import Bar, Figure, Scatter
from plotly.subplots import make_subplots

from hasten.report import quantities as q
from hasten.report.plots import BLUE, GREY, SERIES, VERMILION, escaped, new_figure, staircase
from hasten.search.hypervolume import hypervolume
from hasten.search.problem import Objective, Problem, Trial, pareto

if TYPE_CHECKING:
    from hasten.search.study_result import StudyResult

# Units that take a prefix: 5.9 µs; a figure in decibels or parameters does not.
_PREFIXED = {"s", "W", "J", "B", "B/s", "FLOP", "FLOP/s", "Hz", "V", "A", "m", "tokens/s"}
_MOST_VOLUME = 4  # objectives, beyond which its volume takes long
_COLUMNS = 2


def title_of(objective: Objective) -> str:
    """An objective's name and unit."""
    return objective.name if not objective.unit else f"{objective.name}, {objective.unit}"


def quantity(objective: Objective, value: float) -> str:
    """A value of an objective for people."""
    if objective.unit == "s":
        return q.seconds(value)
    if objective.unit in ("W", "J"):
        return q.joules(value).removesuffix("J") + objective.unit
    if objective.unit in _PREFIXED:
        return q.si(value, objective.unit)
    return f"{value:.5g} {objective.unit}".rstrip()


def _axis(objective: Objective, values: Sequence[float]) -> dict[str, Any]:
    wanted = "less is better" if objective.direction == "minimize" else "more is better"
    axis: dict[str, Any] = {"title": {"text": escaped(f"{title_of(objective)} ({wanted})")}, "automargin": True}
    if objective.unit in _PREFIXED:
        axis |= {
            "tickformat": "~s",
            "ticksuffix": objective.unit,
            "title": {"text": escaped(f"{objective.name} ({wanted})")},
        }
    shown = [v for v in values if math.isfinite(v)]
    if shown and min(shown) > 0 and max(shown) / min(shown) > 100:
        axis["type"] = "log"
    return axis


def _grid(count: int, height: int) -> tuple[Figure, list[tuple[int, int]]]:
    """A figure of ``count`` panels, two in a row, and their places."""
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = make_subplots(
        rows, columns, horizontal_spacing=0.12, vertical_spacing=100 / (height * rows) if rows > 1 else 0.0
    )
    figure.update_layout(new_figure(height=height * rows).layout)
    return figure, [(i // columns + 1, i % columns + 1) for i in range(count)]


def _hover(problem: Problem, trial: Trial) -> str:
    lines = [f"<b>trial {trial.number}</b>, chosen by {escaped(trial.sampler or 'unknown')}"]
    lines += [escaped(f"{o.name} {quantity(o, trial.values[o.name])}") for o in problem.objectives]
    lines += [escaped(f"{name} {value:.4g}") for name, value in trial.constraints.items()]
    return "<br>".join([*lines, *(escaped(f"{k}: {v}") for k, v in trial.params.items())])


def tried(problem: Problem, result: StudyResult) -> Figure:
    """Every trial with values: a panel for each pair of objectives (of more than three, the first with each other).

    With one objective: its value over the trials' numbers.
    """
    objectives = problem.objectives
    pairs: list[tuple[Objective | None, Objective]] = [(objectives[0], o) for o in objectives[1:]]
    if len(objectives) <= 3:
        pairs = list(combinations(objectives, 2)) or [(None, objectives[0])]
    seen = [t for t in result.trials if t.values]
    best = {t.number for t in result.pareto()}
    groups = (
        ("breaks a constraint", VERMILION, "x-thin", 7, [t for t in seen if not t.feasible]),
        (
            "behind the front" if len(objectives) > 1 else "tried",
            GREY,
            "circle",
            7,
            [t for t in seen if t.feasible and t.number not in best],
        ),
        ("front" if len(objectives) > 1 else "best", BLUE, "circle", 10, [t for t in seen if t.number in best]),
    )
    figure, places = _grid(len(pairs), 430)
    for place, (across, up) in zip(places, pairs, strict=True):
        row, column = place
        if across is not None and len(objectives) == 2:
            signs = (objectives[0].sign, objectives[1].sign)
            corners = sorted((signs[0] * t.values[across.name], signs[1] * t.values[up.name]) for t in groups[2][4])
            steps = staircase(corners)
            figure.add_trace(
                Scatter(
                    x=[signs[0] * s[0] for s in steps], y=[signs[1] * s[1] for s in steps], mode="lines",
                    line={"color": BLUE, "width": 1.5}, hoverinfo="skip", showlegend=False,
                ), row, column,
            )  # fmt: skip
        for name, colour, symbol, size, members in groups:
            figure.add_trace(
                Scatter(
                    x=[t.number if across is None else t.values[across.name] for t in members],
                    y=[t.values[up.name] for t in members],
                    mode="markers", name=name, legendgroup=name, showlegend=place == (1, 1) and bool(members),
                    marker={"color": colour, "symbol": symbol, "size": size, "line": {"color": colour, "width": 1.5}},
                    text=[_hover(problem, t) for t in members], hovertemplate="%{text}<extra></extra>",
                ), row, column,
            )  # fmt: skip
        if across is None:
            figure.update_xaxes(title={"text": "trial"}, row=row, col=column)
        else:
            figure.update_xaxes(**_axis(across, [t.values[across.name] for t in seen]), row=row, col=column)
        figure.update_yaxes(**_axis(up, [t.values[up.name] for t in seen]), row=row, col=column)
    return figure


def convergence(problem: Problem, result: StudyResult) -> Figure:
    """Best so far over the points that each sampler chose: the front's volume (of several objectives), each objective.

    The volume is measured from the worst to the best value of each objective that anything feasible has, as a share
    of what all trials together reach.
    """
    objectives = problem.objectives
    known = {t.number: t for t in result.trials}
    chosen = result.chosen or _by_sampler(result.trials)
    volume = _volumes(result, chosen) if 1 < len(objectives) <= _MOST_VOLUME else {}
    figure, places = _grid(len(objectives) + bool(volume), 330)
    if volume:
        for (name, shares), colour in zip(volume.items(), SERIES * len(volume)):
            figure.add_trace(_steps(name, shares, colour, True), *places[0])
        title = {"text": "share of the front's volume"}
        figure.update_yaxes(title=title, tickformat=".0%", rangemode="tozero", row=1, col=1)
    for place, o in zip(places[bool(volume) :], objectives, strict=True):
        shown: list[float] = []
        for (name, numbers), colour in zip(chosen.items(), SERIES * len(chosen)):
            best: list[float | None] = []
            for number in numbers:
                trial, last = known.get(number), best[-1] if best else None
                if trial is not None and trial.feasible and math.isfinite(value := trial.values[o.name]):
                    last = value if last is None else min(last, value, key=lambda v: o.sign * v)
                best.append(last)
            shown += [v for v in best if v is not None]
            trace: Scatter = _steps(name, best, colour, not volume and place == (1, 1))
            figure.add_trace(trace, *place)
        axis = _axis(o, shown)
        axis["title"]["text"] = f"best {axis['title']['text']}"
        figure.update_yaxes(**axis, row=place[0], col=place[1])
    figure.update_xaxes(title={"text": "different points it chose"}, rangemode="tozero")
    return figure


def _by_sampler(trials: Sequence[Trial]) -> dict[str, list[int]]:
    chosen: dict[str, list[int]] = {}
    for t in trials:
        chosen.setdefault(t.sampler or "unknown", []).append(t.number)
    return chosen


def _steps(name: str, values: Sequence[float | None], colour: str, legend: bool) -> Any:
    return Scatter(
        x=list(range(1, len(values) + 1)), y=list(values), mode="lines", name=escaped(name), legendgroup=name,
        showlegend=legend, line={"shape": "hv", "color": colour, "width": 2},
        hovertemplate="%{y:.4s} after %{x} points<extra>" + escaped(name) + "</extra>",
    )  # fmt: skip


def _volumes(result: StudyResult, chosen: Mapping[str, Sequence[int]]) -> dict[str, list[float]]:
    """Sampler -> share of the whole front's volume after each of its points; empty when all points are alike."""
    objectives = result.objectives
    usable = {t.number: t for t in result.trials if t.feasible and all(map(math.isfinite, t.values.values()))}
    if not usable:
        return {}
    signed = {n: [o.sign * t.values[o.name] for o in objectives] for n, t in usable.items()}
    low, high = ([pick(column) for column in zip(*signed.values())] for pick in (min, max))
    if any(a == b for a, b in zip(low, high)):
        return {}
    scaled = {n: [(v - a) / (b - a) for v, a, b in zip(p, low, high)] for n, p in signed.items()}
    corner = [1.0] * len(objectives)
    whole = hypervolume([scaled[t.number] for t in pareto(list(usable.values()), objectives)], corner)
    if whole <= 0:
        return {}
    found: dict[str, list[float]] = {}
    for name, numbers in chosen.items():
        front: list[list[float]] = []
        shares: list[float] = []
        for number in numbers:
            point = scaled.get(number)
            if point is not None and not any(all(a <= b for a, b in zip(p, point)) for p in front):
                front = [p for p in front if not all(a <= b for a, b in zip(point, p))] + [point]
                shares.append(hypervolume(front, corner) / whole)
            else:
                shares.append(shares[-1] if shares else 0.0)
        found[name] = shares
    return found


def importance(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars of `hasten.report.search.importances`, the parameter that matters most on top."""
    names = list(dict.fromkeys(name for share in shares.values() for name in share))
    names.sort(key=lambda name: max(share.get(name, 0.0) for share in shares.values()))
    figure = new_figure(
        barmode="group",
        height=max(280, 110 + (16 + 12 * len(shares)) * len(names)),
        xaxis={"title": {"text": "share"}, "tickformat": ".0%", "rangemode": "tozero"},
        yaxis={"automargin": True, "type": "category"},
        legend={"traceorder": "reversed"},
    )
    # Bars of a group are drawn upwards: the first objective last, to be on top.
    for (name, share), colour in reversed(list(zip(shares.items(), SERIES * len(shares)))):
        figure.add_trace(
            Bar(
                y=[escaped(n) for n in names], x=[share.get(n, 0.0) for n in names], orientation="h",
                name=f"for {escaped(name)}", marker={"color": colour},
                hovertemplate="%{y}: %{x:.1%}<extra>for " + escaped(name) + "</extra>",
            )
        )  # fmt: skip
    return figure
