"""``hasten rules``."""

from __future__ import annotations

from typing import Annotated

import typer

from hasten.cli.console import Json
from hasten.cli.progress import progress
from hasten.cli.streams import document


def rules(
    subject: Annotated[str, typer.Argument(help="module.py:factory, a published name or a timm model.")],
    as_json: Json = False,
) -> None:
    """Hold a network for images to the design rules of plain networks (SimpleNet).

    Each rule is kept or broken, with a score from 0 to 1, what was found and what the rule is for.

    Examples:

        hasten rules my_model.py:build

        hasten rules simplenet-cifar-310k --json
    """
    from hasten.models.vision.design_rules import design_rules, image_of
    from hasten.report import print_table
    from hasten.report.tables import Table
    from hasten.runtime.network import make_network, on_its_inputs

    with progress("loading") as tell:
        network = make_network(subject).network
        image = image_of(network.inputs.args)
        tell("looking at its layers", 0.5)
        with on_its_inputs(network.name):
            found = design_rules(network.module, image)
    if as_json:
        listed = [{"rule": f.rule, "holds": f.holds, "score": f.score, "message": f.message} for f in found]
        document({"subject": network.name, "image": list(image), "rules": listed})
        return
    rows = tuple((f.rule, "kept" if f.holds else "broken", f"{f.score:.2f}", f.message) for f in found)
    broken = frozenset(i for i, f in enumerate(found) if not f.holds)
    title = f"{network.name}, images of {' x '.join(map(str, image))}"
    notes = (f"{len(rows) - len(broken)} of {len(rows)} rules are kept",)
    print_table(Table(title, ("rule", "", ">score", "found"), rows, broken, notes))
