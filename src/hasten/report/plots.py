"""Plotly figures. Their colours of text and grid are left to the page, so that they follow its theme."""

from __future__ import annotations

import html
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plotly.graph_objects import Bar, Figure, Scatter
from plotly.subplots import make_subplots

from hasten.report import findings
from hasten.report import quantities as q
from hasten.tuning.outcome import Combination, Kernel, Roof, TuneResult

# Okabe and Ito's palette: told apart by colour-blind readers, on light and dark ground.
BLUE, ORANGE, GREEN, PURPLE, GREY, SKY, VERMILION = (
    "#2f7fc1", "#e69f00", "#159b76", "#b8699a", "#8a8f98", "#56b4e9", "#d55e00",
)  # fmt: skip
_SECONDS = {"tickformat": "~s", "ticksuffix": "s"}
SERIES = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY, GREY)


def new_figure(**layout: Any) -> Figure:
    figure = Figure()
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 70, "r": 20, "t": 20, "b": 55},
        height=420,
        yaxis={"automargin": True},
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )
    figure.update_layout(**layout)
    return figure


def escaped(value: str) -> str:
    """Plotly reads a little HTML in its labels: user strings must not be read so."""
    return html.escape(value, quote=False)


def pareto(result: TuneResult) -> Figure:
    """Measured latency of the run against perplexity, the front joined by a line, the floor dashed."""
    figure = new_figure(
        xaxis={"title": {"text": "measured latency of the whole run"}, "type": "log"},
        yaxis={"title": {"text": _loss_title(result)}},
    )
    best = result.best
    points = [
        (c.measured.latency, c.measured.loss, c)
        for c in findings.everything(result)
        if c.measured and c.measured.loss is not None
    ]
    figure.update_xaxes(**log_seconds([p[0] for p in points]))
    front = sorted(p[:2] for p in points if p[2].pareto)
    if len(front) > 1:
        steps = staircase(front)
        figure.add_trace(
            Scatter(
                x=[s[0] for s in steps],
                y=[s[1] for s in steps],
                mode="lines",
                line={"color": BLUE, "width": 1.5},
                hoverinfo="skip",
                showlegend=False,
            )
        )
    groups = (
        ("measured", GREY, "circle", 9, [p for p in points if not p[2].pareto and p[2] != best]),
        ("Pareto", BLUE, "circle", 12, [p for p in points if p[2].pareto and p[2] != best]),
        ("best", ORANGE, "star", 18, [p for p in points if p[2] == best]),
    )
    for name, colour, symbol, size, members in groups:
        if members:
            figure.add_trace(
                Scatter(
                    x=[m[0] for m in members],
                    y=[m[1] for m in members],
                    mode="markers",
                    name=name,
                    marker={"color": colour, "symbol": symbol, "size": size},
                    text=[_combination_hover(m[2]) for m in members],
                    hovertemplate="%{text}<extra></extra>",
                )
            )
    worst = findings.worst_perplexity(result)
    if worst is not None:
        figure.add_hline(
            y=worst,
            line={"dash": "dash", "width": 1.5, "color": VERMILION},
            annotation={"text": "quality floor", "font": {"color": VERMILION}},
        )
    return figure


def _loss_title(result: TuneResult) -> str:
    """What quality is judged by, as an axis's title."""
    before = result.baseline.measured
    if not result.inputs:
        return f"perplexity on {escaped(result.text)}"
    return "difference of answers" if before is None or before.score is None else f"- {escaped(result.text)}"


def log_seconds(values: Sequence[float]) -> dict[str, Any]:
    """Round ticks for a logarithmic axis of seconds: dense where it spans little, so that two are always in sight."""
    if not values:
        return {}
    low, high = math.log10(min(values)), math.log10(max(values))
    leading = (1, 1.5, 2, 3, 4, 5, 7) if high - low < 1.2 else (1, 2, 5) if high - low < 2.5 else (1,)
    ticks = [d * 10.0**e for e in range(math.floor(low) - 1, math.ceil(high) + 1) for d in leading]
    texts = [f"{q.seconds(t).replace('.00', '').replace('.0', '').replace('.50', '.5')}" for t in ticks]
    return {"tickvals": ticks, "ticktext": texts}


def staircase(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower-left staircase through points sorted by x; points on the front for a third objective are skipped."""
    steps: list[tuple[float, float]] = []
    for x, y in points:
        if steps and y >= steps[-1][1]:
            continue
        if steps:
            steps.append((x, steps[-1][1]))
        steps.append((x, y))
    return steps


def _combination_hover(one: Combination) -> str:
    lines = [f"<b>{escaped(one.title)}</b>"]
    if one.measured:
        m = one.measured
        told = f"prefill {q.seconds(m.prefill)}, decode {q.seconds(m.decode)}"
        lines.append(f"{f'a call {q.seconds(m.forward)}' if m.forward else told}, {q.si(m.memory, 'B')}")
        if m.perplexity is not None:
            lines.append(f"perplexity {q.digits(m.perplexity)}")
    return "<br>".join(lines)


def speedups(result: TuneResult, limit: int = 20) -> Figure:
    """Predicted and measured speed-up over the unchanged model, the fastest ``limit`` that were measured."""
    shown = [r for r in findings.rows(result) if r.measured_speedup is not None][:limit]
    shown.reverse()
    labels = [_short(r.combination.title) + (" ★" if r.best else "") for r in shown]
    figure = new_figure(
        barmode="group",
        height=max(260, 110 + 34 * len(shown)),
        xaxis={"title": {"text": "speed-up of the whole run over the unchanged model"}, "ticksuffix": "×"},
        yaxis={"automargin": True, "type": "category", "tickvals": list(range(len(shown))), "ticktext": labels},
        bargap=0.25,
        legend={"traceorder": "reversed"},
    )
    series = (
        ("measured", BLUE, [r.measured_speedup for r in shown]),
        ("predicted", SKY, [r.predicted_speedup for r in shown]),
    )
    for name, colour, values in reversed(series):
        figure.add_trace(
            Bar(
                y=list(range(len(shown))),
                x=values,
                orientation="h",
                name=name,
                marker={"color": colour, "opacity": 1.0 if name == "measured" else 0.55},
                text=[q.times(v) if v is not None else "" for v in values],
                textposition="outside",
                cliponaxis=False,
                hovertext=[escaped(r.combination.title) for r in shown],
                hovertemplate="%{hovertext}<br>" + name + " %{text}<extra></extra>",
            )
        )
    return figure


def _short(label: str, limit: int = 60) -> str:
    return escaped(label if len(label) <= limit else label[: limit - 1] + "…")


def predicted_measured(result: TuneResult) -> Figure:
    """Predicted against measured seconds, of each phase, on equal logarithmic axes."""
    axis = {"type": "log"}
    figure = new_figure(
        xaxis={**axis, "title": {"text": "measured"}},
        yaxis={**axis, "title": {"text": "predicted"}},
    )
    every: list[float] = []
    for phase, colour in (("forward", BLUE),) if result.inputs else (("prefill", BLUE), ("decode", ORANGE)):
        pairs = [
            (getattr(c.measured, phase), getattr(c.predicted, phase), c)
            for c in findings.everything(result)
            if c.measured
        ]
        pairs = [p for p in pairs if p[0] > 0 and p[1] > 0]
        every += [v for p in pairs for v in p[:2]]
        figure.add_trace(
            Scatter(
                x=[p[0] for p in pairs],
                y=[p[1] for p in pairs],
                mode="markers",
                name=phase,
                marker={"color": colour, "size": 9},
                text=[f"<b>{escaped(p[2].title)}</b>" for p in pairs],
                hovertemplate="%{text}<br>measured %{x:.3~s}s, predicted %{y:.3~s}s<extra>" + phase + "</extra>",
            )
        )
    if every:
        figure.update_xaxes(**log_seconds(every)).update_yaxes(**log_seconds(every))
        low, high = min(every) / 1.3, max(every) * 1.3
        for factor, dash in ((1.0, "solid"), (1.25, "dot"), (0.8, "dot")):
            figure.add_trace(
                Scatter(
                    x=[low, high],
                    y=[low * factor, high * factor],
                    mode="lines",
                    line={"color": GREY, "width": 1.2, "dash": dash},
                    name="equal" if factor == 1 else "25 % off",
                    showlegend=factor != 0.8,
                    hoverinfo="skip",
                )
            )
    return figure


def kind_of(module: str) -> str:
    """A module's path with its layer numbers left out: the same place in every layer.

    >>> kind_of("model.layers.12.self_attn.q_proj")
    'layers.*.self_attn.q_proj'
    """
    return re.sub(r"\.\d+(?=\.|$)", ".*", module).removeprefix("network.").removeprefix("model.") or "(root)"


def roofline(kernels: Sequence[Kernel], roof: Roof, styles: Mapping[str, tuple[str, str]] | None = None) -> Figure:
    """Kernels under the roofs of a device: FLOP per byte of main memory against FLOP/s.

    The same place in every layer is one mark, whose size grows with its share of its phase's time.

    Args:
        kernels: each phase is a series.
        roof: of the device.
        styles: colour and symbol of phases, where the series should not have the next colour each.
    """
    figure = new_figure(
        xaxis={"title": {"text": "FLOP per byte of main memory"}, "type": "log", "tickformat": "~s", "dtick": 1},
        yaxis={"title": {"text": "FLOP/s"}, "type": "log", "tickformat": "~s", "dtick": 1},
        height=480,
    )
    marks = {phase: _marks([k for k in kernels if k.phase == phase]) for phase in _phases(kernels)}
    intensities = [m.intensity for members in marks.values() for m in members] or [1.0]
    rates = [m.rate for members in marks.values() for m in members]
    memory, bandwidth = list(roof.memory.items())[-1]
    low = min(intensities) / 3
    high = max(*intensities, *(peak / bandwidth for peak in roof.compute.values())) * 4
    for (name, peak), dash in zip(roof.compute.items(), ("solid", "dash", "dot", "dashdot", "longdash")):
        figure.add_trace(
            Scatter(
                x=[peak / bandwidth, high],
                y=[peak, peak],
                mode="lines",
                name=escaped(f"{name} {q.si(peak, 'FLOP/s')}"),
                line={"color": GREY, "width": 1.6, "dash": dash},
                hoverinfo="skip",
            )
        )
    knee = max(roof.compute.values()) / bandwidth
    figure.add_trace(
        Scatter(
            x=[low, knee],
            y=[low * bandwidth, knee * bandwidth],
            mode="lines",
            name=escaped(f"{memory} {q.si(bandwidth, 'B/s')}"),
            line={"color": GREEN, "width": 1.6},
            hoverinfo="skip",
        )
    )
    for (phase, members), next_colour in zip(marks.items(), itertools.cycle(SERIES)):
        colour, symbol = (styles or {}).get(phase, (next_colour, "circle"))
        figure.add_trace(
            Scatter(
                x=[m.intensity for m in members],
                y=[m.rate for m in members],
                mode="markers",
                name=escaped(phase),
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": [8 + 26 * m.share**0.5 for m in members],
                    "opacity": 0.8,
                    "line": {"width": 0},
                },
                text=[
                    f"<b>{escaped(m.name)}</b><br>{m.share * 100:.1f} % of {escaped(phase)} ({q.seconds(m.latency)}),"
                    f" bound by {escaped(m.bound)}"
                    for m in members
                ],
                hovertemplate="%{text}<br>%{x:.3~s} FLOP/B, %{y:.3~s}FLOP/s<extra></extra>",
            )
        )
    bottom = min([*rates, low * bandwidth * 3]) / 3
    figure.update_yaxes(range=[math.log10(bottom), math.log10(max(roof.compute.values()) * 2.5)])
    figure.update_layout(legend={"font": {"size": 12}, "itemsizing": "constant"}, margin={"t": 70})
    return figure


@dataclass(frozen=True)
class _Mark:
    """Kernels of one place in all layers: FLOP a byte, FLOP/s, share of the phase, seconds, what bounds it."""

    name: str
    intensity: float
    rate: float
    share: float
    latency: float
    bound: str


def _phases(kernels: Sequence[Kernel]) -> list[str]:
    return list(dict.fromkeys(k.phase for k in kernels))


def _marks(kernels: Sequence[Kernel]) -> list[_Mark]:
    """Kernels that compute and touch main memory, those of the same place in every layer summed."""
    whole = sum(k.latency for k in kernels)
    summed: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        if kernel.flops > 0 and kernel.bytes > 0 and kernel.latency > 0:
            summed.setdefault((kind_of(kernel.module), re.sub(r"\d+", "", kernel.name).strip("_.")), []).append(kernel)
    marks = []
    for (place, name), members in summed.items():
        flops, moved, latency = (sum(getattr(k, f) for k in members) for f in ("flops", "bytes", "latency"))
        bound = max(members, key=lambda k: k.latency).bound
        label = place if name in place else f"{place} · {name}"
        marks.append(_Mark(label, flops / moved, flops / latency, latency / whole, latency, bound))
    return marks


def layer_of(module: str) -> tuple[str, str]:
    """Where a module is (its layer), and what part of the layer it is.

    >>> layer_of("model.layers.3.self_attn.o_proj"), layer_of("model.layers.3.input_layernorm"), layer_of("lm_head")
    (('3', 'attention'), ('3', 'norm'), ('lm_head', 'rest'))
    """
    found = re.search(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)(?:\.(.*))?$", module)
    if not found:
        path = module.removeprefix("network.").removeprefix("model.")
        return path.split(".")[0] or "(root)", "norm" if "norm" in path else "rest"
    part = found[2] or ""
    kinds = (("norm", "norm"), ("ln_", "norm"), ("attn", "attention"), ("attention", "attention"), ("mlp", "MLP"))
    head = part.split(".")[0] if "norm" not in part else part
    return found[1], next((name for key, name in kinds if key in head), "rest")


def layers(panels: Mapping[str, Sequence[Kernel]], phase: str = "decode") -> Figure:
    """Predicted time of each layer, stacked by part, one panel a model; of one execution of ``phase``."""
    shown = {n: [k for k in kernels if k.phase == phase] for n, kernels in panels.items()}
    shown = {n: kernels for n, kernels in shown.items() if kernels}
    totals = {n: sum(k.latency for k in kernels) for n, kernels in shown.items()}
    figure = make_subplots(
        rows=1,
        cols=max(1, len(shown)),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=[f"{_short(n)}: {q.seconds(totals[n])}" for n in shown],
    )
    figure.update_layout(new_figure().layout)
    told: set[str] = set()
    for column, (name, kernels) in enumerate(shown.items(), 1):
        table = _layer_times(kernels)
        order = _layer_order(table)
        for part, colour in (("attention", BLUE), ("MLP", ORANGE), ("norm", GREEN), ("rest", GREY)):
            values = [table[layer].get(part, 0.0) for layer in order]
            if any(values):
                figure.add_trace(
                    Bar(
                        x=[escaped(layer) for layer in order],
                        y=values,
                        name=part,
                        marker={"color": colour},
                        legendgroup=part,
                        showlegend=part not in told,
                        hovertemplate=f"{escaped(name)}<br>%{{x}}, {part}: %{{y:.3~s}}s<extra></extra>",
                    ),
                    row=1,
                    col=column,
                )
                told.add(part)
        figure.update_xaxes(type="category", title={"text": "layer"}, automargin=True, row=1, col=column)
    figure.update_yaxes(**_SECONDS)
    figure.update_yaxes(title={"text": "predicted time"}, col=1)
    figure.update_layout(barmode="stack", bargap=0.15, margin={"t": 80, "b": 80}, legend={"y": 1.12})
    return figure


def _layer_times(kernels: Sequence[Kernel]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for kernel in kernels:
        layer, part = layer_of(kernel.module)
        parts = table.setdefault(layer, {})
        parts[part] = parts.get(part, 0.0) + kernel.latency
    return table


def _layer_order(table: Mapping[str, Any]) -> list[str]:
    """Embedding first, numbered layers in order, the rest (last norm, head) after them."""
    numbered = sorted((n for n in table if n.isdigit()), key=int)
    before = [n for n in table if not n.isdigit() and "emb" in n]
    return [*before, *numbered, *(n for n in table if not n.isdigit() and n not in before)]
