"""The page that a tuning run leaves: one file, complete in itself, that opens without a network."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from itertools import zip_longest
from pathlib import Path

from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

from hasten.files import write_aside
from hasten.report import findings, plots
from hasten.report import quantities as q
from hasten.report.findings import Row
from hasten.report.placing import NO_SCRIPT, placed
from hasten.tuning.outcome import Figures, TuneResult

# Of a language model, and of any other network.
_LOSSES = ("perplexity", "quality")
_TIMES = (
    "Times are of the whole run: the prompt for prefill, all new tokens for decode.",
    "Times are of one call. Quality is how far answers moved, as a share of their size, or the user's own score.",
)
_BETTER = ("better text", "better quality")


def write_html(result: TuneResult, path: str | Path) -> None:
    """Writes the report of a tuning run, aside first, then in place.

    Raises:
        HastenError: it cannot be written, as on a full disk.
    """
    write_aside(path, page(result))


def page(result: TuneResult) -> str:
    """The report as HTML: plotly.js, style and data inside; nothing is loaded from elsewhere."""
    figures: dict[str, Figure] = {}

    def plot(name: str, make: Callable[[], Figure]) -> str:
        figure = make()
        figures[name] = figure
        return placed(name, figure)

    parts = [
        section("summary", "What was found", f'<div class="found">{_summary(result)}</div>'),
        section(
            "combinations",
            "All combinations",
            '<p class="explain">★ the fastest within the quality floor, ● on the Pareto front of measured latency,'
            f" {_LOSSES[bool(result.inputs)]} and memory; {_LOSSES[bool(result.inputs)]} in red is worse than the"
            f" quality floor. {_TIMES[bool(result.inputs)]} Click a heading to sort.</p>" + _table(result),
        ),
    ]
    if result.best_of_each:
        parts.append(
            section(
                "best",
                "The best of each",
                '<p class="explain">Of what was measured within the quality floor, for each thing that may count as'
                f" fast; marked is what this run was asked for.</p>{_best(result)}",
            )
        )
    if rungs := findings.ladder(result):
        parts.append(
            section(
                "ladder",
                "What each method gave",
                '<p class="explain">Measured with one method more at a time, in the order they are applied: each line'
                " over the one above it, the first over the unchanged model.</p>" + _ladder(rungs),
            )
        )
    if any(c.measured for c in findings.everything(result)):
        error = findings.prediction_error(result)
        told = f" The median error of the whole run is {error * 100:.0f} %." if error is not None else ""
        if (rank := findings.prediction_rank(result)) is not None:
            told += f" The ranks of predictions and measurements correlate by {rank:.2f} (Spearman)."
        parts += [
            section(
                "pareto",
                "Speed against quality",
                f'<p class="explain">Left is faster, down is {_BETTER[bool(result.inputs)]}. What lies above the dashed'
                " line is worse than the quality floor.</p>" + plot("plot-pareto", lambda: plots.pareto(result)),
            ),
            section(
                "speed-ups",
                "Speed-up of each combination",
                '<p class="explain">Over the unchanged model in the same runtime: what each method brings by'
                " itself, and what they bring together.</p>" + plot("plot-speedups", lambda: plots.speedups(result)),
            ),
            section(
                "prediction",
                "Prediction against measurement",
                '<p class="explain">On the line the prediction was right; the dotted lines are 25 % off.'
                f"{told}</p>" + plot("plot-prediction", lambda: plots.predicted_measured(result)),
            ),
        ]
    panels = {name: kernels for name, kernels in result.kernels.items() if kernels}
    if panels:
        name, kernels = list(panels.items())[-1]
        phases = [k.phase for k in kernels]
        phase = "decode" if "decode" in phases else phases[-1]
        parts += [
            section(
                "layers",
                "Where the time goes",
                f'<p class="explain">Predicted time of each layer in one {escape(phase)} step.</p>'
                + plot("plot-layers", lambda: plots.layers(panels, phase)),
            ),
            section(
                "roofline",
                "What bounds it",
                f'<p class="explain">Operators ({escape(name)}) under the roofs of this machine, as predicted. Left'
                " of the bend memory bandwidth is the limit, right of it arithmetic. A larger mark takes a larger"
                " share of its phase; the same place in all layers is one mark.</p>"
                + plot("plot-roofline", lambda: plots.roofline(kernels, result.roof)),
            ),
        ]
    parts.append(
        '<div class="pair">'
        + section("machine", "The machine", _machine(result))
        + section("versions", "The versions", pairs(result.versions))
        + "</div>"
    )
    parts.append(section("command", "The command", _command(result)))

    links = (
        ("summary", "Summary"), ("combinations", "Combinations"), ("best", "Best of each"),
        ("ladder", "What each gave"), ("pareto", "Pareto"),
        ("speed-ups", "Speed-ups"), ("layers", "Layers"), ("roofline", "Roofline"), ("prediction", "Prediction"),
        ("machine", "Machine"), ("command", "Command"),
    )  # fmt: skip
    body = "".join(parts)
    shown = {name: title for name, title in links if f'id="{name}"' in body}
    made_by = result.versions.get("hasten", "")
    return whole_page(result.model, "hasten", _lead(result), shown, _headline(result) + body, figures, made_by)


def whole_page(
    heading: str, what: str, lead: str, links: Mapping[str, str], body: str, figures: Mapping[str, Figure], version: str
) -> str:
    """A page with plots as HTML: plotly.js, style and data inside; nothing is loaded from elsewhere.

    Args:
        heading: at its top, and in its title.
        what: kind of page, for the title.
        lead: HTML of the line beneath the heading.
        links: names of sections and what the links to them say.
        body: HTML of the sections.
        figures: what is drawn in the elements of these ids.
        version: of the hasten that made it.
    """
    data = json.dumps({name: json.loads(figure.to_json()) for name, figure in figures.items()})
    nav = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in links.items())
    return "".join(
        (
            '<!doctype html>\n<html lang="en" data-theme="light">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
            '<link rel="icon" href="data:,">\n',
            f"<title>{escape(heading)} · {escape(what)}</title>\n",
            f"<style>\n{content_of('page.css')}</style>\n</head>\n<body>\n",
            '<header><div><button class="theme" id="theme" type="button">Dark</button>',
            f'<h1>{escape(heading)}</h1><p class="lead">{lead}</p><nav>{nav}</nav></div></header>\n',
            f"<main>\n{NO_SCRIPT if figures else ''}{body}</main>\n",
            f"<footer>Made by hasten {escape(version)}. Everything on this page is in this file.</footer>\n",
            # "<" may end the script early, whatever a user's strings hold: JSON has another way to write it.
            f'<script type="application/json" id="figures">{inert(data)}</script>\n',
            f"<script>{get_plotlyjs()}</script>\n<script>\n{content_of('page.js')}</script>\n</body>\n</html>\n",
        )
    )


def inert(data: str) -> str:
    """JSON as it may stand within a script element: nothing in it ends the element."""
    return data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def content_of(name: str) -> str:
    """A file that lies beside this one, such as ``page.css``."""
    return (resources.files("hasten.report") / name).read_text("utf-8")


def section(name: str, title: str, content: str) -> str:
    """A part of a page, that links may lead to by its name."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{content}</section>\n'


def _lead(result: TuneResult) -> str:
    if result.inputs:
        made = f" · {escape(result.started)}" if result.started else ""
        return f"calls with {escape(result.inputs)} · on {escape(result.device)}{made}"
    batch = f", batch {result.batch}" if result.batch != 1 else ""
    when = f" · {escape(result.started)}" if result.started else ""
    return (
        f"prompt of {result.prompt:,} tokens, {result.new_tokens:,} new ones{batch} · on {escape(result.device)}{when}"
    )


def _headline(result: TuneResult) -> str:
    """The few numbers one came for."""
    best = result.best
    if best is None or best.measured is None:
        return ""
    if result.inputs:
        return _headline_of_network(result, best.measured)
    cards = [(q.digits(best.measured.decode_rate), "new tokens a second")]
    for known, name in ((result.reference, result.reference_name), (result.baseline.measured, "the unchanged model")):
        faster = findings.decode_speedup(known, best.measured)
        if faster and known is not best.measured:
            cards.append((q.times(faster), f"the decoding rate of {name}"))
    change = findings.quality_change(result, best)
    if change is not None:
        cards.append((q.percent(change), "change of perplexity"))
    cards.append((q.si(best.measured.memory, "B"), "weights and cache"))
    return _cards(cards)


def _headline_of_network(result: TuneResult, figures: Figures) -> str:
    cards = [(q.seconds(figures.forward), "a call")]
    before = result.baseline.measured
    if before is not None and before is not figures and figures.forward:
        cards.append((q.times(before.forward / figures.forward), "the speed of the unchanged network"))
    cards.append((findings.loss_text(result, figures), "score" if figures.score is not None else "answers moved by"))
    cards.append((q.si(figures.memory, "B"), "memory"))
    return _cards(cards)


def _cards(cards: Sequence[tuple[str, str]]) -> str:
    inner = "".join(f'<div class="figure"><b>{escape(n)}</b><span>{escape(t)}</span></div>' for n, t in cards)
    return f'<div class="figures">{inner}</div>\n'


def _summary(result: TuneResult) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in findings.summary(result))
    notes = [*result.notes, *(f"{name}: {why}" for name, why in result.skipped.items())]
    return lines + "".join(f'<p class="note">{escape(note)}</p>' for note in notes)


_HEADINGS = (
    "", "combination", "prefill", "decode", "prefill", "decode", "tokens/s", "predicted", "measured", "perplexity",
    "change", "same", "needle", "recall", "choice", "memory",
)  # fmt: skip


_NETWORK_HEADINGS = (
    "", "combination", "predicted", "measured", "least", "predicted ×", "measured ×", "quality", "same", "memory",
)  # fmt: skip


def _network_row(result: TuneResult, row: Row) -> str:
    one, pred, meas = row.combination, row.combination.predicted, row.combination.measured
    mark, rank = ("★", 0) if row.best else ("●", 1) if one.pareto else ("", 2)
    classes = " ".join(c for c in ("best" * row.best, "over" * (one.within_floor is False)) if c)
    reason = f' <span class="reason">{escape(one.failure)}</span>' if one.failure else ""
    return (
        (f'<tr class="{classes}">' if classes else "<tr>")
        + f'<td class="mark{" pareto" if mark == "●" else ""}" data-value="{rank}">{mark}</td>'
        + f'<td class="name">{escape(one.title)}{reason}</td>'
        + _cell(pred.forward, q.seconds)
        + _cell(meas.forward if meas else None, q.seconds)
        + _cell(meas.forward_low if meas else None, q.seconds)
        + _cell(row.predicted_speedup, q.times)
        + _cell(row.measured_speedup, q.times)
        + _cell(meas.loss if meas else None, lambda loss: findings.loss_text(result, meas), "", "perplexity")
        + _cell(meas.agreement if meas else None, lambda share: f"{share * 100:.0f} %")
        + _cell((meas or pred).memory, _bytes, "" if meas else "predicted")
        + "</tr>"
    )


def _table(result: TuneResult) -> str:
    if result.inputs:
        rows = "".join(_network_row(result, row) for row in findings.rows(result))
        titles = headings(_NETWORK_HEADINGS)
        return f'<div class="scroll"><table><thead>{titles}</thead><tbody>{rows}</tbody></table></div>'
    head = (
        '<tr><th colspan="2"></th><th colspan="2">predicted</th><th colspan="3">measured</th>'
        '<th colspan="2">speed-up</th><th colspan="6">quality</th><th></th></tr>' + headings(_HEADINGS)
    )
    body = "".join(_table_row(result, row) for row in findings.rows(result)) + _reference_row(result)
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _best(result: TuneResult) -> str:
    """The best that was measured, for each thing that may count as fast."""
    head = headings(("fast for", "best that was measured", "figure", "over unchanged"), ("name", "name"))
    body = "".join(
        ('<tr class="best">' if chosen else "<tr>")
        + f'<td class="name">{escape(name)}</td><td class="name">{escape(title)}</td>'
        + f"<td>{escape(figure)}</td><td>{escape(faster)}</td></tr>"
        for name, title, figure, faster, chosen in findings.best_rows(result)
    )
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _ladder(rungs: list[findings.Rung]) -> str:
    if any(r.forward is not None for r in rungs):
        titles = headings(("method", "a call", "memory", "quality after it"), ("name",))
        lines = "".join(
            f'<tr><td class="name">{escape(r.added)}</td>'
            + "".join(_cell(value, show) for value, show in (
                (r.forward, q.times), (r.memory, q.times), (r.loss, q.digits),
            ))
            + "</tr>"
            for r in rungs
        )  # fmt: skip
        return f'<div class="scroll"><table><thead>{titles}</thead><tbody>{lines}</tbody></table></div>'
    head = headings(("method", "decode", "prefill", "memory", "perplexity"), ("name",))
    body = "".join(
        f'<tr><td class="name">{escape(r.added)}</td>'
        + "".join(_cell(value, q.times) for value in (r.decode, r.prefill, r.memory))
        + _cell(r.perplexity, q.percent)
        + "</tr>"
        for r in rungs
    )
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def headings(titles: Iterable[str], kinds: Sequence[str] = ("mark", "name")) -> str:
    """The row of a table's headings.

    Args:
        titles: of the columns.
        kinds: what the first columns hold: ``mark``, a sign or a number that is centred, or ``name``, text; all others
            hold numbers.
    """
    classes = [f' class="{kind}"' for kind in kinds]
    cells = (f'<th scope="col"{c}>{escape(title)}</th>' for c, title in zip_longest(classes, titles, fillvalue=""))
    return f"<tr>{''.join(cells)}</tr>"


def _cell(value: float | None, show: Callable[[float], str], title: str = "", name: str = "") -> str:
    hover = f' title="{escape(title)}"' if title else ""
    named = f' class="{name}"' if name else ""
    shown, raw = ("–", "") if value is None else (escape(show(value)), repr(float(value)))
    return f'<td{named} data-value="{raw}"{hover}>{shown}</td>'


def _bytes(value: float) -> str:
    return q.si(value, "B")


def _measured_cells(figures: Figures | None) -> str:
    if figures is None:
        return _cell(None, q.seconds) * 3
    spread = f"from {q.seconds(figures.decode_low)} to {q.seconds(figures.decode_high)}"
    return (
        _cell(figures.prefill, q.seconds)
        + _cell(figures.decode, q.seconds, spread)
        + _cell(figures.decode_rate, q.digits)
    )


def _share_cells(figures: Figures | None) -> str:
    values: list[float | None] = [None] * 4
    if figures is not None:
        values = [figures.agreement, figures.needle, figures.recall, figures.choice]
    return "".join(_cell(v, lambda share: f"{share * 100:.0f} %") for v in values)


def _table_row(result: TuneResult, row: Row) -> str:
    one, pred, meas = row.combination, row.combination.predicted, row.combination.measured
    mark, rank = ("★", 0) if row.best else ("●", 1) if one.pareto else ("", 2)
    classes = " ".join(c for c in ("best" * row.best, "over" * (one.within_floor is False)) if c)
    reason = f' <span class="reason">{escape(one.failure)}</span>' if one.failure else ""
    error = f"± {q.digits(meas.perplexity_error)}" if meas and meas.perplexity_error is not None else ""
    return (
        (f'<tr class="{classes}">' if classes else "<tr>")
        + f'<td class="mark{" pareto" if mark == "●" else ""}" data-value="{rank}">{mark}</td>'
        + f'<td class="name">{escape(one.title)}{reason}</td>'
        + _cell(pred.prefill, q.seconds)
        + _cell(pred.decode, q.seconds)
        + _measured_cells(meas)
        + _cell(row.predicted_speedup, q.times)
        + _cell(row.measured_speedup, q.times)
        + _cell(meas.perplexity if meas else None, q.digits, error, "perplexity")
        + _cell(findings.quality_change(result, one), q.percent)
        + _share_cells(meas)
        + _cell((meas or pred).memory, _bytes, "" if meas else "predicted")
        + "</tr>"
    )


def _reference_row(result: TuneResult) -> str:
    peer, before = result.reference, result.baseline.measured
    if peer is None:
        return ""
    speedup = before.latency / peer.latency if before and peer.latency > 0 else None
    return (
        f'<tr class="peer"><td class="mark" data-value="3"></td><td class="name">{escape(result.reference_name)}</td>'
        + _cell(None, q.seconds) * 2
        + _measured_cells(peer)
        + _cell(None, q.times)
        + _cell(speedup, q.times)
        + _cell(peer.perplexity, q.digits)
        + _cell(None, q.percent)
        + _share_cells(None)
        + _cell(peer.memory, _bytes)
        + "</tr>"
    )


def pairs(pairs: dict[str, str]) -> str:
    """Names and values, a line each."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items()) + "</dl>"


def _machine(result: TuneResult) -> str:
    roofs = {name: q.si(rate, "FLOP/s") for name, rate in result.roof.compute.items()}
    roofs |= {name: q.si(rate, "B/s") for name, rate in result.roof.memory.items()}
    return pairs({"device": result.device, **result.identity, **roofs})


def _command(result: TuneResult) -> str:
    took = f'<p class="explain">It took {q.duration(result.seconds)}.</p>' if result.seconds else ""
    identity = pairs({"model": result.source, "fingerprint": result.fingerprint, "quality text": result.text})
    return f"<pre>{escape(result.command)}</pre>{took}{identity}"
