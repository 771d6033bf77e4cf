"""Models on chips of analogue crossbars: a table, a document, and a page with the seconds of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from plotly.graph_objects import Bar, Figure

from hasten import __version__
from hasten.cost.chips.crossbar import CrossbarCost, ReadLayer, analog_layers, crossbar_cost
from hasten.files import write_aside
from hasten.hardware.chips.crossbar import CrossbarChip
from hasten.methods.analog_arrays import AnalogArrays
from hasten.methods.method import Method
from hasten.report import quantities as q
from hasten.report.html import headings, section, whole_page
from hasten.report.placing import placed
from hasten.report.plots import SERIES, escaped, new_figure
from hasten.report.tables import Table
from hasten.workload import Workload

_MOST_LAYERS = 400


@dataclass(frozen=True)
class OnCrossbars:
    """A model's linear layers on a chip.

    Args:
        title: of the methods that put them there.
        workload: the model, as it is described with them there.
        chip: where.
        input_bits: reads of a row of inputs.
        cost: of all phases, one after the other.
        phases: name -> its repeats, and what they cost together.
        layers: each with its cost, in the order they run.
        share: of the model's operations, that are on the arrays.
        exact: whether inputs have no codes, which the chip reads as events, once.
    """

    title: str
    workload: Workload
    chip: CrossbarChip
    input_bits: int
    cost: CrossbarCost
    phases: dict[str, tuple[int, CrossbarCost]]
    layers: tuple[tuple[ReadLayer, CrossbarCost], ...]
    share: float
    exact: bool = False


def on_crossbars(workload: Workload, chip: CrossbarChip, methods: Sequence[Method] = ()) -> OnCrossbars:
    """What the linear layers of a model cost on a chip: as ``analog:...`` among its methods says, or as by default.

    Args:
        workload: as ``methods`` left it.

    Raises:
        HastenError: it has no linear layers that arrays take, or the chip has too few tiles.
    """
    asked = next((m for m in methods if isinstance(m, AnalogArrays)), None)
    method = asked or AnalogArrays()
    changed = workload if asked else method.rewrite(workload)
    title = " + ".join(m.title for m in (methods if asked else (*methods, method)))
    bits = method.input_bits or 1
    whole = method.cost(changed, chip)
    layers = analog_layers(changed)
    phases = {}
    for phase in changed.phases:
        own = [layer for layer in layers if layer.phase == phase.name]
        if own:
            phases[phase.name] = (phase.repeats, crossbar_cost(own, chip, input_bits=bits))
    each = tuple((layer, crossbar_cost([layer], chip, input_bits=bits)) for layer in layers)
    on_arrays = sum(2 * layer.inputs * layer.outputs * layer.rows for layer in layers)
    share = min(1.0, on_arrays / workload.flops) if workload.flops else 1.0  # of an empty batch there are none
    return OnCrossbars(title, changed, chip, bits, whole, phases, each, share, not method.input_bits)


def crossbar_table(found: Sequence[OnCrossbars]) -> Table:
    """A row for each phase on each chip."""
    rows = []
    for one in found:
        for name, (repeats, cost) in one.phases.items():
            rows.append((
                one.chip.name, one.title, name if repeats == 1 else f"{name} x {repeats:,}", q.seconds(cost.latency),
                q.joules(cost.energy), f"{cost.conversions:,.0f}", f"{one.cost.tiles:,} of {one.chip.tiles:,}",
                f"{q.digits((one.cost.area or 0.0) * 1e6)} mm²", cost.bound,
            ))  # fmt: skip
    columns = ("chip", "method", "phase", ">latency", ">energy", ">conversions", ">tiles", ">their area", "bound by")
    return Table(found[0].workload.name if found else "", columns, tuple(rows), notes=_notes(found))


def _notes(found: Sequence[OnCrossbars]) -> tuple[str, ...]:
    """What is left out."""
    shares = {f"{one.share:.1%}" for one in found}
    told = [
        f"the arrays do {share} of the operations: what is digital (a head, attention, convolutions) is not priced"
        for share in sorted(shares)
    ]
    if any(one.exact for one in found):
        told.append("inputs without codes are priced as one read each, as of events: give input_bits for others")
    return tuple(told)


def crossbars_document(found: Sequence[OnCrossbars]) -> dict[str, Any]:
    """The same as data, with every layer."""
    return {
        "crossbars": [
            {
                "model": one.workload.name,
                "chip": one.chip.name,
                "methods": one.title,
                "input_bits": one.input_bits,
                "latency": one.cost.latency,
                "energy": one.cost.energy,
                "area": one.cost.area,
                "tiles": one.cost.tiles,
                "conversions": one.cost.conversions,
                "bound": one.cost.bound,
                "share_of_operations": one.share,
                "phases": [
                    {"name": name, "repeats": repeats, "latency": cost.latency, "energy": cost.energy}
                    for name, (repeats, cost) in one.phases.items()
                ],
                "layers": [
                    {
                        "name": layer.name,
                        "phase": layer.phase,
                        "inputs": layer.inputs,
                        "outputs": layer.outputs,
                        "rows": layer.rows,
                        "tiles": cost.tiles,
                        "latency": cost.latency,
                        "energy": cost.energy,
                        "bound": cost.bound,
                    }
                    for layer, cost in one.layers
                ],
            }
            for one in found
        ]
    }


def write_crossbars(found: Sequence[OnCrossbars], path: str | Path) -> None:
    """Writes a page: of each model on each chip the seconds of its layers, as bars and as a table.

    Raises:
        HastenError: it cannot be written.
    """
    figures: dict[str, Figure] = {}
    body, links = "", {}
    for number, one in enumerate(found):
        name = f"crossbars-{number}"
        title = f"{one.title} on {one.chip.name}"
        figures[f"plot-{name}"] = _bars(one)
        told = f"{q.seconds(one.cost.latency)}, {q.joules(one.cost.energy)}, {one.cost.tiles:,} tiles"
        content = f'<p class="explain">{escape(one.chip.title)}: {told}, bound by {escape(one.cost.bound)}.</p>'
        content += f'<p class="explain">{escape(_notes([one])[0].capitalize())}.</p>'
        body += section(name, title, content + placed(f"plot-{name}", figures[f"plot-{name}"]) + _layers(one))
        links[name] = title
    model = found[0].workload.name if found else "no model"
    write_aside(path, whole_page(model, "hasten estimate", "analogue arrays", links, body, figures, __version__))


def _bars(one: OnCrossbars) -> Figure:
    figure = new_figure(
        xaxis={"title": {"text": "layer, in the order they run"}},
        yaxis={"title": {"text": "time"}, "tickformat": "~s", "ticksuffix": "s", "rangemode": "tozero"},
        height=380,
    )
    for number, phase in enumerate(one.phases):
        own = [(i, layer, cost) for i, (layer, cost) in enumerate(one.layers) if layer.phase == phase]
        figure.add_trace(
            Bar(
                x=[i + 1 for i, _, _ in own],
                y=[cost.latency for _, _, cost in own],
                name=escaped(phase),
                marker={"color": SERIES[number % len(SERIES)]},
                text=[f"{escaped(layer.name)}<br>{q.seconds(cost.latency)}" for _, layer, cost in own],
                textposition="none",
                hovertemplate="%{text}<extra></extra>",
            )
        )
    return figure


def _layers(one: OnCrossbars) -> str:
    titles = headings(("layer", "phase", "inputs", "outputs", "rows", "tiles", "time", "energy"), ("name", "name"))
    rows = "".join(
        f'<tr><td class="name">{escape(layer.name)}</td><td class="name">{escape(layer.phase)}</td>'
        f"<td>{layer.inputs:,}</td><td>{layer.outputs:,}</td><td>{layer.rows:,.0f}</td><td>{cost.tiles:,}</td>"
        f"<td>{q.seconds(cost.latency)}</td><td>{q.joules(cost.energy)}</td></tr>"
        for layer, cost in one.layers[:_MOST_LAYERS]
    )
    more = f"<p>{len(one.layers) - _MOST_LAYERS:,} more.</p>" if len(one.layers) > _MOST_LAYERS else ""
    return f'<div class="scroll"><table><thead>{titles}</thead><tbody>{rows}</tbody></table></div>{more}'
