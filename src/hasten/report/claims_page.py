"""The page of all papers' claims: the paper's value beside what was seen. One file that opens without a network."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from hasten import __version__
from hasten.files import write_aside
from hasten.papers import Claim, Paper, Result
from hasten.papers.results import by_claim
from hasten.report import quantities
from hasten.report.html import content_of

# What a claim may be, from best to least known: name in the page's classes, in words, its mark.
STATES = (
    ("holds", "holds", "✓"),
    ("direction", "direction holds", "≈"),
    ("fails", "does not hold", "✗"),
    ("error", "error", "!"),
    ("unjudged", "not judged", "…"),
    ("unrun", "not run", "○"),
    ("elsewhere", "not checkable here", "–"),
    ("unchecked", "no check yet", "·"),
)
_NAMES = {words: name for name, words, _ in STATES}
_WORDS = {name: words for name, words, _ in STATES}
_MARKS = {name: mark for name, _, mark in STATES}
_JUDGED = ("holds", "direction", "fails")


@dataclass(frozen=True)
class _Line:
    """A claim, and what is known of it: its state, why, and its results, the most telling first."""

    claim: Claim
    state: str
    why: str
    results: Sequence[Result]


def write_claims(cards: Sequence[Paper], results: Iterable[Result], path: str | Path) -> None:
    """Writes the page of these papers' claims, aside first, then in place.

    Args:
        cards: the papers; those without results are on it too, and say so.
        results: as `hasten.papers.read_results` gives them; those of other papers or claims are left out.
        path: the file.

    Raises:
        HastenError: it cannot be written.
    """
    write_aside(path, claims_page(cards, results))


def claims_page(cards: Sequence[Paper], results: Iterable[Result]) -> str:
    """The page as HTML: style, script and data inside; nothing is loaded from elsewhere. See `write_claims`."""
    known = by_claim(results)
    papers = [(card, _lines(card, known)) for card in sorted(cards, key=lambda c: c.title.casefold())]
    lines = [line for _, several in papers for line in several]
    shown = [r for line in lines for r in line.results]
    articles = "".join(_article(card, several) for card, several in papers)
    return "".join(
        (
            '<!doctype html>\n<html lang="en" data-theme="light">\n<head>\n<meta charset="utf-8">\n',
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n',
            "<title>What holds: papers' claims, tried · hasten</title>\n",
            f"<style>\n{content_of('page.css')}{content_of('claims.css')}</style>\n</head>\n<body>\n",
            '<a class="skip" href="#papers">To the papers</a>\n',
            '<header><div><button class="theme" id="theme" type="button">Dark</button>',
            f'<h1>What holds?</h1><p class="lead">{_lead(papers, lines, shown)}</p></div></header>\n',
            "<main>\n<noscript><p>Scripts are off here: all claims are shown, and cannot be filtered.</p></noscript>\n",
            f"{_overview(lines)}{_controls(papers, lines)}",
            f'<div id="papers">{articles}</div>\n',
            '<p class="nothing" id="nothing" hidden>No claim is like that. <button type="button" id="all">Show all'
            "</button></p>\n",
            f"{_where(shown)}</main>\n",
            f"<footer>Made by hasten {escape(__version__)} from stored results. All of this page is in this file."
            "</footer>\n",
            f"<script>\n{content_of('claims.js')}</script>\n</body>\n</html>\n",
        )
    )


def _lines(card: Paper, known: dict[tuple[str, str], list[Result]]) -> list[_Line]:
    checked = card.checked
    found = []
    for claim in card.claims:
        results = known.get((card.slug, claim.id), []) if claim.id in checked else []
        if results:
            words, _, why = results[0].verdict.partition(":")
            state, why = _NAMES[words], why.strip()
        elif claim.id in checked:
            state, why = "unrun", ""
        elif claim.how == "none":
            state, why = "elsewhere", "needs scale, data or hardware beyond one machine"
        else:
            state, why = "unchecked", ""
        found.append(_Line(claim, state, why, results))
    return found


def _count(lines: Iterable[_Line]) -> dict[str, int]:
    states = [line.state for line in lines]
    return {name: states.count(name) for name, _, _ in STATES}


def _lead(papers: Sequence[tuple[Paper, list[_Line]]], lines: Sequence[_Line], shown: Sequence[Result]) -> str:
    days = sorted(r.when[:10] for r in shown if r.when)
    when = f" · {days[0]} to {days[-1]}" if days and days[0] != days[-1] else f" · {days[0]}" if days else ""
    return escape(
        f"{len(lines):,} claims of {len(papers)} paper{'s' * (len(papers) != 1)},"
        f" and what became of them on a machine one has at hand{when}"
    )


def _overview(lines: Sequence[_Line]) -> str:
    """The few numbers one came for, and the bar."""
    count = _count(lines)
    judged = sum(count[name] for name in _JUDGED)
    cards = [
        (str(count["holds"]), f"of {judged} judged claims hold"),
        (str(count["direction"]), "hold in their direction"),
        (str(count["fails"]), "do not hold"),
        (str(len(lines) - judged), "are not judged, or not here"),
    ]
    inner = "".join(f'<div class="figure"><b>{escape(n)}</b><span>{escape(t)}</span></div>' for n, t in cards)
    return f'<div class="figures">{inner}</div>\n{_bar(lines, "bar")}\n'


def _bar(lines: Sequence[_Line], name: str) -> str:
    """Shares of states, side by side."""
    count = _count(lines)
    told = ", ".join(f"{number} {_WORDS[state]}" for state, number in count.items() if number)
    parts = "".join(
        f'<i class="{state}" style="flex-grow:{number}" title="{number} {_WORDS[state]}"></i>'
        for state, number in count.items()
        if number
    )
    return f'<div class="{name}" role="img" aria-label="{escape(told)}">{parts}</div>'


def _controls(papers: Sequence[tuple[Paper, list[_Line]]], lines: Sequence[_Line]) -> str:
    fields = sorted({card.field for card, _ in papers})
    options = "".join(f"<option>{escape(field)}</option>" for field in fields)
    chips = "".join(
        f'<button type="button" class="chip {state}" data-state="{state}" aria-pressed="false">'
        f'<span aria-hidden="true">{_MARKS[state]}</span> {_WORDS[state]} <b>{number}</b></button>'
        for state, number in _count(lines).items()
        if number
    )
    return (
        '<div class="controls" role="search" aria-label="Which claims are shown"><div class="row">'
        '<input type="search" id="text" placeholder="Search papers and claims" aria-label="Search papers and claims">'
        f'<select id="field" aria-label="Field"><option value="">all fields</option>{options}</select>'
        '<select id="order" aria-label="Order"><option value="title">by title</option><option value="year">newest first'
        '</option><option value="share">most that hold first</option><option value="field">by field</option></select>'
        f'<span class="shown" id="shown" aria-live="polite">{len(lines):,} claims</span></div>'
        f'<div class="chips" role="group" aria-label="Verdicts">{chips}</div></div>\n'
    )


def _article(card: Paper, lines: Sequence[_Line]) -> str:
    count = _count(lines)
    arxiv = f'<a href="https://arxiv.org/abs/{escape(card.arxiv)}" rel="noreferrer">arXiv {escape(card.arxiv)}</a>'
    anchor = f'<a class="anchor" href="#{card.slug}" aria-label="Link to {escape(card.slug)}">#</a>'
    claims = "".join(_claim(card, line) for line in lines)
    return (
        f'<article id="{card.slug}" data-field="{escape(card.field)}" data-year="{card.year}" '
        f'data-share="{count["holds"] + count["direction"] / 2:g}">'
        f"<h2>{escape(card.title)} {anchor}</h2>"
        f'<p class="meta"><code>{card.slug}</code> · {arxiv} · {card.year} · {escape(card.field)} · {card.status}</p>'
        f'<p class="summary">{escape(card.summary)}</p>{_bar(lines, "bar small")}'
        f'<ol class="claims">{claims}</ol>{_pieces(card)}</article>\n'
    )


def _claim(card: Paper, line: _Line) -> str:
    claim, first = line.claim, line.results[0] if line.results else None
    against = f'<span class="soft">against {escape(claim.baseline)}</span>' if claim.baseline not in ("", "-") else ""
    setting = f'<span class="soft">{escape(claim.setting)}</span>' if claim.setting not in ("", "-") else ""
    seen = escape(first.seen) if first and first.seen else '<span class="soft">nothing yet</span>'
    if line.state == "elsewhere":
        seen = '<span class="soft">–</span>'
    why = f'<span class="soft">{escape(line.why)}</span>' if line.why else ""
    return (
        f'<li id="{card.slug}-{escape(claim.id)}" data-state="{line.state}"><div class="what">'
        f'<a class="id" href="#{card.slug}-{escape(claim.id)}">{escape(claim.id)}</a> {escape(claim.metric)} {setting}'
        f'</div><div class="value"><span class="label">the paper</span> {escape(claim.value)} {against}</div>'
        f'<div class="value"><span class="label">seen here</span> {seen}</div><div class="verdict">'
        f'<span class="badge {line.state}"><span aria-hidden="true">{_MARKS[line.state]}</span> '
        f"{_WORDS[line.state]}</span> {why}</div>{_runs(card, line.results)}</li>"
    )


def _runs(card: Paper, results: Sequence[Result]) -> str:
    if not results:
        return ""
    told = f"seed {results[0].seed}, {quantities.duration(results[0].seconds)}"
    more = f", and {len(results) - 1} more" if len(results) > 1 else ""
    runs = "".join(f"<li>{_run(card, r, first=n == 0)}</li>" for n, r in enumerate(results))
    return f"<details><summary>{escape(told + more)}</summary><ul>{runs}</ul></details>"


def _run(card: Paper, result: Result, first: bool) -> str:
    parts = [] if first else [f"{result.verdict}{f': {result.seen}' if result.seen else ''}"]
    parts += [
        f"{result.length} run of {result.budget:g} s a paper, seed {result.seed}",
        f"took {quantities.duration(result.seconds)}",
        _machine(result),
        ", ".join(f"{name} {version}" for name, version in result.versions.items()),
        result.when,
    ]
    if result.code != card.code:
        parts.append("the check has changed since")
    told = "; ".join(part for part in parts if part)
    detail = f'<span class="soft">{escape(result.detail)}</span>' if result.detail else ""
    return f"{escape(told)} {detail}"


def _machine(result: Result) -> str:
    cores = result.machine.get("cores", "")
    told = [result.machine.get("processor", ""), f"{cores} cores" if cores else "", result.machine.get("system", "")]
    return ", ".join(part for part in told if part)


def _pieces(card: Paper) -> str:
    rows = "".join(
        f"<li><code>{escape(p.name)}</code> <span class='soft'>{escape(p.place or 'not here')}</span></li>"
        for p in card.found_pieces()
    )
    if card.page:
        rows += f"<li>documented in <code>{escape(card.page)}</code></li>"
    rows += f"<li>run it again: <code>hasten check {card.slug}</code></li>" if card.checks_file else ""
    return f'<details class="pieces"><summary>What carries it</summary><ul>{rows}</ul></details>' if rows else ""


def _where(shown: Sequence[Result]) -> str:
    """Machines, versions and seeds of all results, said once."""
    if not shown:
        return ""
    versions = sorted({f"{name} {version}" for r in shown for name, version in r.versions.items()})
    rows = {
        "machines": "; ".join(sorted({_machine(r) for r in shown} - {""})) or "not known",
        "versions": ", ".join(versions) or "not known",
        "seeds": ", ".join(map(str, sorted({r.seed for r in shown}))),
        "runs": ", ".join(sorted({f"{r.length}, {r.budget:g} s a paper" for r in shown})),
        "time of all checks": quantities.duration(sum(r.seconds for r in shown)),
        "page made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }
    inner = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows.items())
    return f'<section id="where"><h2>Where it was seen</h2><dl>{inner}</dl></section>\n'
