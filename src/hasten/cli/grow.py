"""``hasten grow``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.console import Json, output
from hasten.cli.messages import say
from hasten.cli.progress import progress
from hasten.cli.streams import document
from hasten.errors import HastenError


def grow(
    subject: Annotated[str, typer.Argument(help="module.py:factory, a published name or a timm model.")],
    widen: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER=OUTPUTS", help="A convolution or linear layer, and its new width; repeatable."),
    ] = None,
    deepen: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="A layer that gets another behind its activation; repeatable."),
    ] = None,
    kernel: Annotated[int, typer.Option(min=1, help="Of new convolutions.")] = 3,
    exact: Annotated[
        bool, typer.Option("--exact", help="No noise on new weights: the same answers, and copies that never part.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Of copies and noise.")] = 0,
    out: Annotated[Path | None, output("Folder for the grown network.", folder=True)] = None,
    as_json: Json = False,
) -> None:
    """Make a trained network larger without changing what it computes, to train it on (Net2Net, EAS).

    A layer is widened by copies of its outputs, whose readers share their weights; one that is put in is the identity.
    `hasten.runtime.grown.load_grown(FOLDER, SUBJECT)` reads what --out keeps.

    Examples:

        hasten grow my_model.py:build --widen features.0=64 --out larger

        hasten grow my_model.py:build --widen features.0=64 --deepen features.3 --kernel 5 --exact
    """
    from hasten.files import check_output
    from hasten.report import print_table
    from hasten.report.tables import Table
    from hasten.runtime.grown import GrowthMoves, grown, save_grown
    from hasten.runtime.network import make_network, on_its_inputs

    moves = GrowthMoves(dict(_width(w) for w in widen or ()), deepen or (), kernel, not exact, seed)
    if out is not None:
        check_output(out, folder=True)
    with progress("loading") as tell:
        made = make_network(subject)
        tell("growing", 0.5)
        with on_its_inputs(made.network.name):
            found = grown(made.network, moves)
        if out is not None:
            save_grown(out, found.module, made.source, moves)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (made.network.module, found.module)]
    if as_json:
        document(
            {
                "subject": made.network.name, "parameters": sizes[1], "parameters_before": sizes[0],
                "apart": found.apart, "out": None if out is None else str(out),
            }
        )  # fmt: skip
        return
    rows = [(name, f"{size} outputs") for name, size in moves.widths.items()]
    rows += [(name, "another behind it") for name in moves.deeper]
    notes = (f"{sizes[0]:,} parameters, now {sizes[1]:,}", f"answers lie {found.apart:.1e} of the largest apart")
    print_table(Table(f"{made.network.name}, grown", ("layer", "move"), tuple(rows), notes=notes))
    if out is not None:
        say(f"wrote {out}: hasten.runtime.grown.load_grown reads it")


def _width(text: str) -> tuple[str, int]:
    name, equals, size = text.rpartition("=")
    if not equals or not name or not size.isdecimal():
        raise HastenError(f"--widen takes a layer and its number of outputs, such as features.0=64: got {text!r:.60}")
    return name, int(size)
