"""``hasten papers``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.console import Json, output
from hasten.cli.messages import say
from hasten.cli.streams import document
from hasten.errors import HastenError
from hasten.files import check_output

if TYPE_CHECKING:
    from hasten.papers import Paper, Result


def papers(
    slug: Annotated[str | None, typer.Argument(help="One paper, in full.")] = None,
    field: Annotated[str | None, typer.Option(help="Only papers of this field.")] = None,
    text: Annotated[str | None, typer.Option(help="Only papers whose card contains this.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="A file that hasten check --save wrote: verdicts are shown too.")
    ] = None,
    page: Annotated[
        Path | None,
        output("With --results: write an HTML page of all claims, which opens offline."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the papers on the shelf, or show one: its claims, the pieces that carry it and where they are.

    Examples:

        hasten papers --field hardware

        hasten papers mamba

        hasten papers --results results.jsonl --page claims.html
    """
    from hasten import papers as shelf
    from hasten.report import paper_table, print_table

    if page is not None and results is None:
        raise HastenError("--page shows results: give --results FILE, which hasten check --save FILE writes")
    if page is not None:
        check_output(page)
    stored = shelf.read_results(results) if results is not None else []
    found = [shelf.paper(slug)] if slug is not None else shelf.papers(field=field, text=text)
    if page is not None:
        from hasten.report import write_claims

        write_claims(found, stored, page)
        say(f"wrote {page}")
    if as_json:
        documents = [_with_results(card, stored) if results is not None else card.as_dict() for card in found]
        document(documents[0] if slug is not None else documents)
    elif slug is not None:
        _show(found[0], stored)
    elif page is None:
        print_table(paper_table([_with_results(c, stored) if stored else c.as_dict() for c in found]))


def _with_results(card: Paper, stored: list[Result]) -> dict[str, object]:
    from hasten.papers.results import by_claim, counts

    own = [r for r in stored if r.slug == card.slug]
    first = [several[0].as_dict() for several in by_claim(own).values()]
    return {**card.as_dict(), "verdicts": counts(own), "results": first}


def _show(card: Paper, stored: list[Result]) -> None:
    from hasten.papers.results import by_claim, counts

    seen = by_claim(r for r in stored if r.slug == card.slug)
    print(f"{card.title}\narXiv {card.arxiv}, {card.year}, {card.field}; {card.status}\n\n{card.summary}\n\nClaims")
    for claim in card.claims:
        against = f" (against {claim.baseline})" if claim.baseline not in ("", "-") else ""
        print(f"  {claim.id}: {claim.metric}: {claim.value}{against}")
        if several := seen.get((card.slug, claim.id)):
            found = f"; seen: {several[0].seen}" if several[0].seen else ""
            print(f"      {several[0].verdict}{found}")
    if seen:
        told = counts(r for several in seen.values() for r in several)
        print(f"  {', '.join(f'{count} {kind}' for kind, count in told.items())}")
    if pieces := card.found_pieces():
        width = max(len(p.name) for p in pieces)
        print("\nPieces")
        for piece in pieces:
            print(f"  {piece.name:{width}}  {piece.place or 'not here'}")
    if card.checks_file is not None:
        print(f"\nChecks\n  {_place(card.checks_file)}")
    if card.page:
        print(f"\nPage\n  {_page(card)}")


def _place(file: Path) -> str:
    """A file, from the package on when it lies in hasten."""
    package = Path(__file__).parents[2]
    return file.relative_to(package).as_posix() if file.is_relative_to(package) else str(file)


def _page(card: Paper) -> str:
    """The page about a paper: its path in a checkout; an installed hasten has no pages, and its name must do."""
    in_checkout = Path(__file__).parents[3] / card.page
    return card.page if in_checkout.is_file() else f"{Path(card.page).stem}, in hasten's documentation"
