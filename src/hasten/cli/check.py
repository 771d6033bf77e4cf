"""``hasten check``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.console import Json
from hasten.cli.messages import say
from hasten.cli.progress import Bar, progress
from hasten.cli.streams import document
from hasten.errors import HastenError
from hasten.files import check_output

if TYPE_CHECKING:
    from hasten.papers import Paper, Result

_MOST_PROCESSES = 8


def check(
    slugs: Annotated[list[str] | None, typer.Argument(help="Papers: see hasten papers.", show_default=False)] = None,
    every: Annotated[bool, typer.Option("--all", help="All papers that have checks.")] = False,
    field: Annotated[str | None, typer.Option(help="All papers of this field that have checks.")] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            writable=True,
            help="File that each result is added to, one line each; what it has already is not run again.",
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds a paper: the code runs, nothing is judged.")] = False,
    long: Annotated[bool, typer.Option("--long", help="An hour a paper.")] = False,
    budget: Annotated[
        float | None, typer.Option(help="Seconds for all checks of a paper; 360 when not given.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of what is random.")] = 0,
    claim: Annotated[list[str] | None, typer.Option(help="Only the claim of this id. Repeatable.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Run again what --save has already.")] = False,
    as_json: Json = False,
) -> None:
    """Re-run papers' claims here: claim, paper's value, what was seen, verdict.

    A claim `holds`, its `direction holds`, or it `does not hold`; what the budget is too short for is `not judged`.
    After Ctrl-C what was done is in --save, and the same command goes on from there.

    Examples:

        hasten check fusemax

        hasten check --field inference --save results.jsonl

        hasten check mamba --claim M1 --budget 100 --seed 1

        hasten check --all --quick
    """
    from hasten.papers.running import run_checks
    from hasten.report import check_table, print_table

    cards = _chosen(slugs or [], every, field)
    if quick and long:
        raise HastenError("--quick or --long: choose one")
    if save is not None:
        check_output(save)
    # Times of quick runs mean nothing, so papers may share the machine.
    processes = min(len(cards), _cores(), _MOST_PROCESSES) if quick else 1
    done: list[Result] = []
    printed: set[str] = set()
    interrupted = False

    def show(slug: str) -> None:
        printed.add(slug)
        if not as_json:
            order = [c.id for card in cards if card.slug == slug for c in card.claims]
            rows = sorted((r for r in done if r.slug == slug), key=lambda r: order.index(r.claim))
            print_table(check_table(slug, [r.as_dict() for r in rows]))
            print()

    with progress(f"checking {cards[0].slug}") as bar:
        found = run_checks(
            cards,
            budget=budget,
            length="quick" if quick else "long" if long else "normal",
            seed=seed,
            save=save,
            again=again,
            claims=claim or (),
            processes=processes,
            progress=_told(bar, cards, done),
        )
        try:
            for result, whole in _with_ends(found, cards, claim or ()):
                done.append(result)
                say(f"{result.slug} {result.claim}: {result.verdict}")
                if whole:
                    with bar.aside():
                        show(result.slug)
        except KeyboardInterrupt:
            interrupted = True
            found.close()
    for slug in dict.fromkeys(r.slug for r in done):
        if slug not in printed:
            show(slug)
    if as_json:
        document([r.as_dict() for r in done])
    _summary(done, save)
    if interrupted:
        say("the same command goes on from here" if save else "with --save FILE the same command can go on")
        raise KeyboardInterrupt
    if any(r.kind == "error" for r in done):
        raise typer.Exit(1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chosen(slugs: list[str], every: bool, field: str | None) -> list[Paper]:
    from hasten.papers import paper, papers

    if bool(slugs) + every + (field is not None) != 1:
        raise HastenError("name papers, or give --all, or --field: one of the three")
    if slugs:
        return [paper(slug) for slug in dict.fromkeys(slugs)]
    found = [card for card in papers(field=field) if card.checked]
    if not found:
        raise HastenError(f"no paper of the field {field} has a check yet: hasten papers lists them")
    return found


def _with_ends(results: Iterable[Result], cards: list[Paper], claims: Iterable[str]) -> Iterator[tuple[Result, bool]]:
    """Each result, and whether it is its paper's last."""
    wanted = set(claims)
    left = {card.slug: sum(not wanted or c.id in wanted for c in card.claims) for card in cards}
    for result in results:
        left[result.slug] -= 1
        yield result, left[result.slug] == 0


def _told(bar: Bar, cards: list[Paper], done: list[Result]) -> Any:
    def tell(message: str, share: float) -> None:
        papers = f" ({len({r.slug for r in done})} of {len(cards)} papers)" if len(cards) > 1 else ""
        bar(f"checking {message}{papers}", share)

    return tell


def _summary(done: list[Result], save: Path | None) -> None:
    from hasten.papers.results import counts

    told = ", ".join(f"{count} {kind}" for kind, count in counts(done).items())
    kept = f"; every result is in {save}" if save else ""
    papers = len({r.slug for r in done})
    say(f"{len(done)} claims of {papers} paper{'s' * (papers != 1)}: {told or 'none'}{kept}")
