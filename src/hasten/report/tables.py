"""Tables for the terminal: Rich on a terminal, aligned plain text anywhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from hasten.report import findings
from hasten.report import quantities as q
from hasten.tuning.outcome import Figures, TuneResult

if TYPE_CHECKING:
    from hasten.cost.estimate import Estimate


@dataclass(frozen=True)
class Table:
    """Text in rows and columns.

    Args:
        title: above it; "" for none.
        columns: their headings; one that starts with ``>`` is aligned to the right.
        rows: of strings, one a column.
        marked: indices of rows to set off.
        notes: lines below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    def plain(self) -> str:
        """As aligned text, two spaces between columns."""
        names = [c.removeprefix(">") for c in self.columns]
        widths = [max(map(len, column)) for column in zip(names, *self.rows)]

        def line(cells: Sequence[str]) -> str:
            aligned = (
                cell.rjust(width) if heading.startswith(">") else cell.ljust(width)
                for cell, width, heading in zip(cells, widths, self.columns)
            )
            return "  ".join(aligned).rstrip()

        lines = [self.title] if self.title else []
        lines += [line(names), "  ".join("-" * w for w in widths), *map(line, self.rows), *self.notes]
        return "\n".join(lines)

    def rich(self, width: int | None = None) -> Any:
        """As a Rich renderable; what a user wrote is not read as markup.

        Args:
            width: columns of characters that there are; a table that they cannot hold becomes a record for each row.
        """
        if width is not None and self._least() > width:
            return self._records(width)
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(
            title=Text(self.title, style="bold") if self.title else None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            caption=Text("\n".join(self.notes)) if self.notes else None,
            caption_justify="left",
            pad_edge=False,
        )
        for heading in self.columns:
            right = heading.startswith(">")
            name = Text(heading.removeprefix(">"))
            table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
        for index, row in enumerate(self.rows):
            table.add_row(*map(Text, row), style="bold green" if index in self.marked else None)
        return table

    def _least(self) -> int:
        """Characters that the table needs at least: whole numbers, whole words."""
        widths = []
        for i, heading in enumerate(self.columns):
            cells = [heading.removeprefix(">"), *(row[i] for row in self.rows)]
            parts = cells if heading.startswith(">") else [word for cell in cells for word in cell.split() or [""]]
            widths.append(max(map(len, parts)))
        return sum(widths) + 3 * len(widths)

    def _records(self, width: int) -> Any:
        """Every row below the one before it: what it is called, then its values by their headings."""
        from rich.console import Group
        from rich.text import Text

        lead = next((i for i, heading in enumerate(self.columns) if heading.startswith(">")), 1) or 1
        names = [c.removeprefix(">").strip() for c in self.columns]
        parts: list[Any] = [Text(self.title, style="bold")] if self.title else []
        for index, row in enumerate(self.rows):
            called = ", ".join(filter(None, row[:lead]))
            parts.append(Text(f"\n{called}", style="bold green" if index in self.marked else "bold"))
            values = [f"{name} {cell}" for name, cell in zip(names[lead:], row[lead:]) if cell]
            parts.append(Text("\n".join(f"  {line}" for line in _lines(values, width - 2))))
        if self.notes:
            parts += [Text(), *map(Text, self.notes)]
        return Group(*parts)


def _lines(values: Sequence[str], width: int) -> list[str]:
    """Values with dots between them, in lines of ``width``; none is broken where it fits a line."""
    lines = [""]
    for value in values:
        longer = f"{lines[-1]} · {value}" if lines[-1] else value
        if len(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(value)
    return lines


def print_table(table: Table, file: IO[str] | None = None) -> None:
    """Prints a table to ``file`` (standard output by default): Rich on a terminal, plain text elsewhere."""
    from rich.console import Console

    console = Console(file=file)
    if console.is_terminal:
        console.print(table.rich(console.width))
    else:
        console.file.write(table.plain() + "\n")


def comparison_table(estimates: Sequence[Estimate]) -> Table:
    """Estimates of one workload over devices, fastest first."""
    phases = list(dict.fromkeys(p.name for e in estimates for p in e.phases))
    shown = phases if len(phases) > 1 else []
    columns = ("device", ">latency", *(f">{p}" for p in shown), ">energy", ">memory", "fits", "bound by")
    columns += (">traffic / bound",)
    attends = any(e.attention_io is not None for e in estimates)
    if attends:
        columns += (">attention's",)
    rows = []
    notes: dict[str, None] = {}
    for e in sorted(estimates, key=lambda e: e.latency):
        by_name = {p.name: p.latency for p in e.phases}
        rows.append(
            (
                e.device,
                q.seconds(e.latency),
                *(q.seconds(by_name[p]) if p in by_name else "–" for p in shown),
                q.joules(e.energy),
                q.si(e.peak_memory, "B"),
                "yes" if e.fits else "NO",
                _bound(e),
                q.digits(e.io_distance),
                *((q.digits(e.attention_io) if e.attention_io is not None else "–",) if attends else ()),
            )
        )
        notes |= dict.fromkeys(e.notes)
    title = f"{estimates[0].workload}: predicted" if estimates else "no estimates"
    return Table(title, columns, tuple(rows), notes=tuple(notes))


def _bound(estimate: Estimate) -> str:
    """What bounds the largest share of the time, and how large that is."""
    shares: dict[str, float] = {}
    for phase in estimate.phases:
        for cost in phase.einsums:
            shares[cost.bound] = shares.get(cost.bound, 0.0) + cost.latency * cost.repeats
    whole = sum(shares.values())
    if not whole:
        return "–"
    name = max(shares, key=lambda n: shares[n])
    return f"{name} ({shares[name] / whole * 100:.0f} %)"


def _shares(figures: Figures | None) -> tuple[str, ...]:
    """Agreement, needle, recall and choice as percentages."""
    values: list[float | None] = [None] * 4
    if figures is not None:
        values = [figures.agreement, figures.needle, figures.recall, figures.choice]
    return tuple("–" if v is None else f"{v * 100:.0f} %" for v in values)


def tune_table(result: TuneResult, limit: int | None = None) -> Table:
    """All combinations of a tuning run: measured ones first, the best marked ★, Pareto points ●."""
    if result.inputs:
        return _network_table(result, limit)
    columns = (
        "", "combination", ">pred. prefill", ">pred. decode", ">meas. prefill", ">meas. decode", ">tokens/s",
        ">pred. ×", ">meas. ×", ">perplexity", ">change", ">same", ">needle", ">recall", ">choice", ">memory",
    )  # fmt: skip
    rows: list[tuple[str, ...]] = []
    marked = set()
    found = findings.rows(result)
    for row in found if limit is None else found[:limit]:
        one, pred, meas = row.combination, row.combination.predicted, row.combination.measured
        change = findings.quality_change(result, one)
        if row.best:
            marked.add(len(rows))
        rows.append(
            (
                "★" if row.best else "●" * one.pareto + "✗" * (one.within_floor is False),
                one.title + (f" ({one.failure})" if one.failure else ""),
                q.seconds(pred.prefill),
                q.seconds(pred.decode),
                *_measured(meas),
                q.times(row.predicted_speedup) if row.predicted_speedup else "–",
                q.times(row.measured_speedup) if row.measured_speedup else "–",
                _perplexity(meas),
                q.percent(change) if change is not None else "–",
                *_shares(meas),
                q.si((meas or pred).memory, "B"),
            )
        )
    peer, before = result.reference, result.baseline.measured
    if peer is not None:
        rows.append(
            (
                "",
                result.reference_name,
                "–",
                "–",
                *_measured(peer),
                "–",
                q.times(before.latency / peer.latency) if before and peer.latency > 0 else "–",
                q.digits(peer.perplexity) if peer.perplexity is not None else "–",
                "–",
                *_shares(None),
                q.si(peer.memory, "B"),
            )
        )
    title = (
        f"{result.model}: prompt {result.prompt}, {result.new_tokens} new tokens, batch {result.batch},"
        f" on {result.device}"
    )
    notes = [
        "★ best within the quality floor   ● Pareto   ✗ worse than the quality floor   × over the unchanged model",
        "same: greedy tokens that stay; needle, recall: found again in a long text; choice: questions answered right",
    ]
    if limit is not None and limit < len(found):
        notes.append(f"and {len(found) - limit} more, in the report")
    return Table(title, columns, tuple(rows), frozenset(marked), tuple(notes))


def _network_table(result: TuneResult, limit: int | None) -> Table:
    """`tune_table` of a network that is no language model."""
    before = result.baseline.measured
    quality = "difference" if before is None or before.score is None else "score"
    columns = (
        "", "combination", ">pred.", ">meas.", ">least", ">pred. ×", ">meas. ×", f">{quality}", ">same", ">memory",
    )  # fmt: skip
    found = findings.rows(result)
    shown = found if limit is None else found[:limit]
    rows = []
    for row in shown:
        one, pred, meas = row.combination, row.combination.predicted, row.combination.measured
        rows.append(
            (
                "★" if row.best else "●" * one.pareto + "✗" * (one.within_floor is False),
                one.title + (f" ({one.failure})" if one.failure else ""),
                q.seconds(pred.forward),
                q.seconds(meas.forward) if meas else "–",
                q.seconds(meas.forward_low) if meas else "–",
                q.times(row.predicted_speedup) if row.predicted_speedup else "–",
                q.times(row.measured_speedup) if row.measured_speedup else "–",
                findings.loss_text(result, meas),
                f"{meas.agreement * 100:.0f} %" if meas and meas.agreement is not None else "–",
                q.si((meas or pred).memory, "B"),
            )
        )
    notes = [
        "★ best within the quality floor   ● Pareto   ✗ worse than the quality floor   × over the unchanged network",
        "difference: of answers from the unchanged network's, by their size; same: rows whose largest number stays",
    ]
    if len(shown) < len(found):
        notes.append(f"and {len(found) - len(shown)} more, in the report")
    marked = frozenset(i for i, row in enumerate(shown) if row.best)
    return Table(f"{result.model}: {result.inputs}, on {result.device}", columns, tuple(rows), marked, tuple(notes))


def _perplexity(figures: Figures | None) -> str:
    """With its standard error, where that is known."""
    if figures is None or figures.perplexity is None:
        return "–"
    error = figures.perplexity_error
    return q.digits(figures.perplexity) + (f" ± {q.digits(error)}" if error is not None else "")


def best_table(result: TuneResult) -> Table:
    """The best that was measured, for each thing that may count as fast."""
    found = findings.best_rows(result)
    rows = tuple((name, title, figure, faster) for name, title, figure, faster, _ in found)
    marked = frozenset(i for i, row in enumerate(found) if row[-1])
    return Table("", ("fast for", "best that was measured", ">figure", ">over unchanged"), rows, marked)


def ladder_table(result: TuneResult) -> Table:
    """What each method of the best combination gave, over the one before it."""
    note = ("each over the line above it, the first over the unchanged model",)
    if result.inputs:
        steps = [
            (r.added, q.times(r.forward) if r.forward else "–", q.times(r.memory)) for r in findings.ladder(result)
        ]
        return Table("", ("what each method gave", ">a call", ">memory"), tuple(steps), notes=note)
    rows = [
        (
            rung.added,
            q.times(rung.decode),
            q.times(rung.prefill),
            q.times(rung.memory),
            q.percent(rung.perplexity) if rung.perplexity is not None else "–",
        )
        for rung in findings.ladder(result)
    ]
    columns = ("what each method gave", ">decode", ">prefill", ">memory", ">perplexity")
    return Table("", columns, tuple(rows), notes=note)


def _measured(figures: Figures | None) -> tuple[str, str, str]:
    """Prefill, decode, and tokens a second."""
    if figures is None:
        return ("–", "–", "–")
    return q.seconds(figures.prefill), q.seconds(figures.decode), q.digits(figures.decode_rate)


def print_tune(result: TuneResult, file: IO[str] | None = None, limit: int | None = 25) -> None:
    """Prints the table of a tuning run, then what was found in words."""
    from rich.console import Console

    print_table(tune_table(result, limit), file)
    console = Console(file=file, highlight=False, markup=False, soft_wrap=True)
    if result.best_of_each:
        console.print()
        print_table(best_table(result), file)
    if result.rungs:
        console.print()
        print_table(ladder_table(result), file)
    console.print()
    for line in [*findings.summary(result), *result.notes, *(f"{n}: {why}" for n, why in result.skipped.items())]:
        console.print(line)


def paper_table(papers: Sequence[Mapping[str, Any]]) -> Table:
    """Cards of papers: ``slug, title, field, status``; ``year``, ``verdicts`` (kind -> number) where there are."""
    columns: tuple[str, ...] = ("slug", "year", "field", "status", "title")
    if any(p.get("verdicts") for p in papers):
        columns = (*columns[:4], "verdicts", "title")
    rows = tuple(tuple(_card_cell(p.get(c)) for c in columns) for p in papers)
    return Table("", columns, rows, notes=(f"{len(rows)} papers",))


def _card_cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {kind}" for kind, count in value.items())
    return str(value or "")


def check_table(slug: str, checks: Sequence[Mapping[str, Any]]) -> Table:
    """Results of a paper's checks: ``claim, paper, seen, verdict, seconds``."""
    rows = tuple(
        (
            str(c.get("claim", "")),
            _cell(c.get("paper")),
            _cell(c.get("seen")),
            str(c.get("verdict", "")),
            q.seconds(float(c.get("seconds") or 0.0)),
        )
        for c in checks
    )
    marked = frozenset(i for i, c in enumerate(checks) if c.get("verdict") == "holds")
    return Table(slug, ("claim", "paper", "seen here", "verdict", ">time"), rows, marked)


def asset_table(assets: Sequence[Mapping[str, Any]]) -> Table:
    """Assets: ``name, title, bytes, licence, cached``."""
    rows = tuple(
        (
            str(a.get("name", "")),
            q.si(float(a["bytes"]), "B") if a.get("bytes") else "–",
            "yes" if a.get("cached") else "no",
            str(a.get("licence", "")),
            str(a.get("title", "")),
        )
        for a in assets
    )
    return Table("", ("name", ">size", "cached", "licence", "what it is"), rows)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return q.digits(value) if isinstance(value, float) else str(value)
