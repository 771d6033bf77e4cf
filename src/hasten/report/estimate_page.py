"""The page of predictions: methods by devices, and for each device where its time and memory go. One file, offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from plotly.graph_objects import Figure

from hasten import __version__
from hasten.errors import HastenError
from hasten.files import write_aside
from hasten.report import estimate_plots as plots
from hasten.report import parts
from hasten.report import quantities as q
from hasten.report.estimates import Priced, bound_by, heading, in_order, notes_of
from hasten.report.html import headings, section, whole_page


def write_estimates(priced: Sequence[Priced], path: str | Path) -> None:
    """Writes the page of predictions of one model, aside first, then in place.

    Raises:
        HastenError: there are none, or it cannot be written.
    """
    write_aside(path, estimate_page(priced))


def estimate_page(priced: Sequence[Priced]) -> str:
    """The page as HTML: plotly.js, style and data inside; nothing is loaded from elsewhere. See `write_estimates`."""
    if not priced:
        raise HastenError("there are no predictions to show: name a device")
    figures: dict[str, Figure] = {}

    def plot(name: str, figure: Figure, told: str) -> str:
        """Where a figure is drawn, with words for who cannot see it."""
        figures[name] = figure
        height = f"min-height:{figure.layout.height}px"
        return f'<div class="plot" id="{name}" role="img" aria-label="{escape(told)}" style="{height}"></div>'

    shown = in_order(priced)
    rate = any(p.tokens_per_second for p in shown)
    sections = [
        ("comparison", "Comparison", "Methods and devices", _explained(_COMPARED[rate]) + _table(shown, rate)),
    ]
    if len({p.device.name for p in shown}) > 1:
        sections.append(("across", "Across devices", "Across devices", _across(shown, rate, plot)))
    sections.append(("device", "On one device", "On one device", _devices(shown, plot)))
    if notes := notes_of(shown):
        told = "".join(f"<p>{escape(note)}</p>" for note in notes)
        sections.append(("notes", "Notes", "What to know", f'<div class="found small">{told}</div>'))
    body = "".join(section(name, title, content) for name, _, title, content in sections)
    name, _, lead = heading(shown).partition(": ")
    links = {key: link for key, link, _, _ in sections}
    return whole_page(name, "hasten estimate", escape(lead), links, _headline(shown, rate) + body, figures, __version__)


_COMPARED = {
    True: "Time to the first token is that of the prompt; tokens a second are those of all sequences together, after"
    " it. Memory is what must be there at once: weights, cache and results at work. Click a heading to sort.",
    False: "Latency of one run. Memory is what must be there at once: weights and results at work. Click a heading to"
    " sort.",
}


def _explained(text: str) -> str:
    return f'<p class="explain">{escape(text)}</p>'


def _headline(shown: Sequence[Priced], rate: bool) -> str:
    """The few numbers one came for."""
    fitting = [p for p in shown if p.cost.fits] or list(shown)
    quickest = min(fitting, key=lambda p: p.first_token)
    cards = [(q.seconds(quickest.first_token), "to the first token" if rate else "a run", quickest)]
    if rate:
        most = max(fitting, key=lambda p: p.tokens_per_second or 0.0)
        cards.append((q.digits(most.tokens_per_second or 0.0), "tokens a second", most))
    least = min(shown, key=lambda p: p.cost.peak_memory)
    cards.append((q.si(least.cost.peak_memory, "B"), "least memory", least))
    several = len({p.title for p in shown}) > 1
    inner = "".join(
        f'<div class="figure"><b>{escape(number)}</b><span>{escape(text)}: {escape(p.device.title)}'
        + (f", {escape(p.title)}" if several else "")
        + "</span></div>"
        for number, text, p in cards
    )
    return f'<div class="figures">{inner}</div>\n'


def _cell(value: float | None, shown: str) -> str:
    return f'<td data-value="{"" if value is None else repr(float(value))}">{escape(shown)}</td>'


def _bound(found: tuple[str, float] | None) -> str:
    text = "–" if found is None else f"{found[0]} ({found[1] * 100:.0f} %)"
    return f'<td class="text">{escape(text)}</td>'


def _table(shown: Sequence[Priced], rate: bool) -> str:
    titles = ["device", "method", "first token" if rate else "latency", "bound by"]
    titles += ["tokens/s", "bound by"] if rate else []
    titles += ["energy", "weights", *(["cache"] if rate else []), "memory", "fits"]
    rows = []
    for p in shown:
        cells = [
            f'<td class="name short">{escape(p.device.title)}</td><td class="name short">{escape(p.title)}</td>',
            _cell(p.first_token, q.seconds(p.first_token)),
            _bound(bound_by(p.before)),
        ]
        if rate:
            tokens = p.tokens_per_second
            cells.append(_cell(tokens, "–" if tokens is None else q.digits(tokens)))
            cells.append(_bound(bound_by([p.decode] if p.decode else [])))
        cells.append(_cell(p.cost.energy, q.joules(p.cost.energy)))
        sizes = [p.workload.weight_bytes, *([p.workload.state_bytes] if rate else []), p.cost.peak_memory]
        cells += [_cell(size, q.si(size, "B")) for size in sizes]
        cells.append(f'<td data-value="{int(p.cost.fits)}">{"yes" if p.cost.fits else "no"}</td>')
        opening = "<tr>" if p.cost.fits else '<tr class="unfit">'
        rows.append(f"{opening}{''.join(cells)}</tr>")
    bounds = ["text" if title == "bound by" else "" for title in titles[2:]]
    head = headings(titles, ("name short", "name short", *bounds))
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


_Plot = Callable[[str, Figure, str], str]


def _across(shown: Sequence[Priced], rate: bool, plot: _Plot) -> str:
    told = _explained("A mark for each method; what does not fit the device's memory is hollow.")
    words = "The same figures as in the table above, a line each device: "
    if rate:
        figure = plots.across(shown, "tokens a second", lambda p: p.tokens_per_second)
        told += plot("plot-rate", figure, words + "tokens a second of each method.")
    what = "time to the first token, seconds" if rate else "latency, seconds"
    return told + plot("plot-first", plots.across(shown, what, lambda p: p.first_token), words + f"{what}.")


def _devices(shown: Sequence[Priced], plot: _Plot) -> str:
    """A block for each device, of which one is shown: the browser's own list chooses."""
    names = list(dict.fromkeys(p.device.name for p in shown))
    options = "".join(
        f'<option value="device-{i}">{escape(next(p.device.title for p in shown if p.device.name == name))}</option>'
        for i, name in enumerate(names)
    )
    chooser = f'<p><label>Device <select data-shows="device">{options}</select></label></p>' if len(names) > 1 else ""
    blocks = []
    for i, name in enumerate(names):
        own = [p for p in shown if p.device.name == name]
        hidden = " hidden" if i else ""
        blocks.append(f'<div class="choice" data-group="device" id="device-{i}"{hidden}>{_block(i, own, plot)}</div>')
    return chooser + "".join(blocks)


def _block(number: int, own: Sequence[Priced], plot: _Plot) -> str:
    """What one device does with its time and memory."""
    what = [
        ("What fits", "Bytes that must be there at once, and the dashed line that the device's memory ends at.",
         "memory", plots.memory(own), _fits(own)),
        ("Where the time goes", "Predicted time of each part of the model.",
         "parts", plots.time_by_part(own), _largest(own, parts.times)),
        ("What bounds it", "Predicted time by what it waits for: a memory, a unit that computes, or launches.",
         "bounds", plots.time_by_bound(own), _largest(own, plots.bounds)),
        ("Roofline", "Left of the bend memory bandwidth is the limit, right of it arithmetic. A larger mark takes a"
         " larger share of its phase; the same place in all layers is one mark.",
         "roofline", plots.rooflines(own), "Arithmetic by bytes of each kernel, under the roofs of the device."),
    ]  # fmt: skip
    return "".join(
        f"<h3>{title}</h3>{_explained(text)}{plot(f'plot-{name}-{number}', figure, f'{title}: {told}')}"
        for title, text, name, figure, told in what
    )


def _fits(own: Sequence[Priced]) -> str:
    device = own[0].device
    room = q.si(float(device.main_memory.capacity), "B")
    needs = "; ".join(
        f"{p.title} needs {q.si(p.cost.peak_memory, 'B')}, which {'fits' if p.cost.fits else 'does not fit'}"
        for p in own
    )
    return f"{device.title} holds {room}. {needs}."


def _largest(own: Sequence[Priced], value: Callable[..., dict[str, float]]) -> str:
    """The largest share of each method and phase, in words."""
    lines = []
    for p in own:
        for phase in p.cost.phases:
            found = value([phase])
            whole = sum(found.values())
            if whole:
                name = max(found, key=lambda n: found[n])
                lines.append(f"{p.title}, {phase.name}: {name} {found[name] / whole * 100:.0f} %")
    return "; ".join(lines) + "."
