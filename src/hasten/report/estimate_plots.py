"""Plots of predictions: methods beside each other on every device, and where one device's time and memory go."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from plotly.graph_objects import Bar, Figure, Scatter
from plotly.subplots import make_subplots

from hasten.cost.estimate import PhaseCost
from hasten.hardware import Device
from hasten.report import parts
from hasten.report import quantities as q
from hasten.report.estimates import Priced
from hasten.report.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SERIES,
    SKY,
    VERMILION,
    escaped,
    log_seconds,
    new_figure,
    roofline,
)
from hasten.tuning.outcome import Kernel, Roof, kernels_of, roof_of
from hasten.workload import Op

_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star")
_PARTS = {
    parts.EMBEDDING: PURPLE,
    parts.ATTENTION: BLUE,
    parts.CACHE: SKY,
    parts.STATE_SPACE: "#0072b2",
    parts.FEED_FORWARD: ORANGE,
    parts.EXPERTS: VERMILION,
    parts.NORM: GREEN,
    parts.HEAD: "#c9a227",
    parts.REST: GREY,
}


def wrapped(label: str, width: int = 20) -> str:
    """A label over several lines, so that it leaves room for the plot on a small screen."""
    return "<br>".join(escaped(line) for line in textwrap.wrap(label, width) or [label])


def _titles(priced: Sequence[Priced]) -> list[str]:
    return list(dict.fromkeys(p.title for p in priced))


def across(priced: Sequence[Priced], what: str, value: Callable[[Priced], float | None]) -> Figure:
    """One figure of every method on every device, a line each device, on a logarithmic axis.

    Args:
        priced: rows, best first.
        what: title of the axis; one that ends with ``seconds`` is of times.
        value: the figure; None where there is none.
    """
    devices = list(dict.fromkeys(p.device.name for p in priced))
    figure = new_figure(
        xaxis={"title": {"text": what}, "type": "log"},
        yaxis={"type": "category", "categoryorder": "array", "categoryarray": [wrapped(d) for d in devices[::-1]],
               "automargin": True},
        height=130 + 34 * len(devices) + 22 * len(_titles(priced)),
    )  # fmt: skip
    known: list[float] = []
    for title, colour, symbol in _styled(_titles(priced)):
        members = [(p, v) for p in priced if p.title == title and (v := value(p))]
        known += [v for _, v in members]
        figure.add_trace(
            Scatter(
                x=[v for _, v in members],
                y=[wrapped(p.device.name) for p, _ in members],
                mode="markers",
                name=escaped(title),
                # What does not fit is hollow.
                marker={
                    "color": colour,
                    "size": 12,
                    "symbol": [symbol if p.cost.fits else f"{symbol}-open" for p, _ in members],
                    "line": {"width": 2, "color": colour},
                },
                text=[
                    f"<b>{escaped(p.device.name)}</b>, {escaped(title)}<br>{_shown(v, what)}"
                    + ("" if p.cost.fits else "<br>does not fit")
                    for p, v in members
                ],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    if what.endswith("seconds"):
        figure.update_xaxes(**log_seconds(known))
    else:
        figure.update_xaxes(tickformat="~s", dtick=1)
    return figure


def _shown(value: float, what: str) -> str:
    return q.seconds(value) if what.endswith("seconds") else q.digits(value)


def _styled(titles: Sequence[str]) -> list[tuple[str, str, str]]:
    """Each title with a colour and a symbol of its own."""
    found = []
    for i, title in enumerate(titles):
        found.append((title, SERIES[i % len(SERIES)], _SYMBOLS[i % len(_SYMBOLS)]))
    return found


def _panels(priced: Sequence[Priced]) -> dict[str, Callable[[Priced], Sequence[PhaseCost]]]:
    """What is shown beside each other: all before the first token, and one step; or the whole run."""
    if not any(p.decode for p in priced):
        return {"the whole run": lambda p: p.cost.phases}
    return {"until the first token": lambda p: p.before, "one step": lambda p: [p.decode] if p.decode else []}


def _repeats(phases: Sequence[PhaseCost]) -> int:
    """Times that a step is made; 1 for what runs once."""
    return phases[0].repeats if len(phases) == 1 and phases[0].name == "decode" else 1


def stacked(
    priced: Sequence[Priced], value: Callable[[Sequence[PhaseCost]], Mapping[str, float]], colours: Mapping[str, str]
) -> Figure:
    """Seconds of each method on one device, stacked by ``value``: until the first token, and of one step.

    Args:
        priced: one device's.
        value: name -> seconds of some phases.
        colours: of the names; others have those that are left.
    """
    panels = _panels(priced)
    figure = make_subplots(rows=len(panels), cols=1, vertical_spacing=0.2, subplot_titles=list(panels))
    rows = [wrapped(p.title) for p in priced]
    spare = iter([c for c in (*SERIES, "#0072b2", "#c9a227", "#7a5195") if c not in colours.values()] * 5)
    names: dict[str, str] = dict(colours)
    told: set[str] = set()
    for number, (panel, phases) in enumerate(panels.items(), 1):
        tables = [value(phases(p)) for p in priced]
        for name in dict.fromkeys([n for n in colours if any(n in t for t in tables)] + [n for t in tables for n in t]):
            colour = names.setdefault(name, next(spare, GREY))
            values = [t.get(name, 0.0) / _repeats(phases(p)) for t, p in zip(tables, priced, strict=True)]
            figure.add_trace(
                Bar(
                    y=rows,
                    x=values,
                    orientation="h",
                    name=escaped(name),
                    legendgroup=name,
                    showlegend=name not in told,
                    marker={"color": colour},
                    text=[q.seconds(v) for v in values],
                    textposition="none",
                    hovertemplate=f"%{{y}}<br>{escaped(name)}: %{{text}}<extra>{panel}</extra>",
                ),
                row=number,
                col=1,
            )
            told.add(name)
    height = 150 + len(panels) * (70 + 46 * len(rows))
    figure.update_layout(new_figure(height=height, barmode="stack", bargap=0.3).layout)
    figure.update_layout(legend={"traceorder": "normal", "y": 1 + 40 / height}, margin={"t": 70, "l": 20})
    figure.update_xaxes(tickformat="~s", ticksuffix="s", nticks=4, tickangle=0, rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    return figure


def time_by_part(priced: Sequence[Priced]) -> Figure:
    """Where the time goes on one device: attention, feed-forward parts, experts, the head, ..."""
    return stacked(priced, parts.times, _PARTS)


def time_by_bound(priced: Sequence[Priced]) -> Figure:
    """What the time is spent waiting for on one device: a memory, a unit, launches."""
    return stacked(priced, bounds, {})


def bounds(phases: Sequence[PhaseCost]) -> dict[str, float]:
    """Seconds that each bound holds, all repeats."""
    found: dict[str, float] = {}
    for phase in phases:
        for kernel in phase.einsums:
            found[kernel.bound] = found.get(kernel.bound, 0.0) + kernel.latency * kernel.repeats
    return found


def memory(priced: Sequence[Priced]) -> Figure:
    """Bytes of weights, cache and intermediate results of each method, and what one device holds."""
    rows = [wrapped(p.title) for p in priced]
    figure = new_figure(
        barmode="stack",
        bargap=0.3,
        height=170 + 46 * len(rows),
        xaxis={"tickformat": "~s", "ticksuffix": "B", "nticks": 4, "tickangle": 0, "rangemode": "tozero"},
        yaxis={"autorange": "reversed", "automargin": True, "type": "category"},
        margin={"l": 20},
    )
    series: tuple[tuple[str, str, list[float]], ...] = (
        ("weights", BLUE, [float(p.workload.weight_bytes) for p in priced]),
        ("cache and state", ORANGE, [float(p.workload.state_bytes) for p in priced]),
        ("at work", GREY, [max(0.0, p.cost.peak_memory - _kept(p)) for p in priced]),
    )
    for name, colour, values in series:
        if any(values):
            figure.add_trace(
                Bar(
                    y=rows,
                    x=values,
                    orientation="h",
                    name=name,
                    marker={"color": colour},
                    text=[q.si(v, "B") for v in values],
                    textposition="none",
                    hovertemplate=f"%{{y}}<br>{name}: %{{text}}<extra></extra>",
                )
            )
    device = priced[0].device
    room = float(device.main_memory.capacity)
    figure.add_vline(x=room, line={"dash": "dash", "width": 1.6, "color": VERMILION})
    # Beside the line, where the plot has room for it.
    largest = max(p.cost.peak_memory for p in priced)
    figure.add_annotation(
        x=room, y=1, yref="paper", yanchor="bottom", xanchor="right" if room >= largest / 2 else "left",
        text=escaped(f"{device.main_memory.name} {q.si(room, 'B')}"), showarrow=False, font={"color": VERMILION},
    )  # fmt: skip
    figure.update_layout(legend={"y": 1 + 30 / figure.layout.height, "traceorder": "normal"}, margin={"t": 70})
    return figure


def _kept(one: Priced) -> float:
    return float(one.workload.weight_bytes + one.workload.state_bytes)


def rooflines(priced: Sequence[Priced]) -> Figure:
    """Every method's kernels on one device under its roofs, those of the formats that are computed in."""
    kernels: list[Kernel] = []
    styles: dict[str, tuple[str, str]] = {}
    several = len(priced) > 1
    for one, (title, colour, _) in zip(priced, _styled([p.title for p in priced]), strict=True):
        for number, phase in enumerate(one.cost.phases):
            series = f"{title}: {phase.name}" if several else phase.name
            tint = colour if several else SERIES[number % len(SERIES)]
            styles[series] = (tint, _SYMBOLS[number % len(_SYMBOLS)])
            own = [k for k in kernels_of(one.cost) if k.phase == phase.name]
            kernels += [k.model_copy(update={"phase": series}) for k in own]
    device = priced[0].device
    roof = roof_of(device)
    used = _units(device, priced) & set(roof.compute)
    chosen = {name: peak for name, peak in roof.compute.items() if name in used} or roof.compute
    figure = roofline(kernels, Roof(compute=chosen, memory=roof.memory), styles)
    # Below, where its many lines take the room that they need and no more of the plot.
    height = 480 + 20 * (len(chosen) + 1 + len(styles))
    figure.update_layout(height=height, margin={"t": 30}, legend={"y": -110 / height, "yanchor": "top"})
    figure.update_xaxes(title={"text": "FLOP / B of main memory"})
    figure.for_each_trace(lambda trace: trace.update(name="<br>".join(textwrap.wrap(trace.name, 34))))
    return figure


def _units(device: Device, priced: Sequence[Priced]) -> set[str]:
    """Units and formats in which a device computes what is asked of it."""
    found = set()
    for one in priced:
        for phase in one.workload.phases:
            tensors = phase.cascade.tensors
            wanted = {
                ("contraction" if e.op in (Op.MATMUL, Op.CONV) else "vector", tensors[e.inputs[0].tensor].dtype)
                for e in phase.cascade.einsums
                if e.inputs and e.flops + e.operations
            }
            for runs, dtype in wanted:
                unit, _, used = device.unit(runs, dtype)  # type: ignore[arg-type]
                found.add(f"{unit.name} {used}")
    return found
