"""``hasten probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.console import Json, Threads, output, use_threads
from hasten.cli.progress import progress
from hasten.cli.streams import document
from hasten.files import check_output


def probe(
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again, whatever is kept.")] = False,
    save: Annotated[Path | None, output("Also write the device to this .toml file.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Describe this machine by measuring it, in under 20 seconds, once.

    Examples:

        hasten probe

        hasten probe --refresh --save my-machine.toml
    """
    use_threads(threads)
    if save is not None:
        check_output(save)
    import hasten.kernels  # noqa: F401 (so that packed products are measured too)
    from hasten.hardware import probe as run

    with progress("probing this machine") as tell:
        device = run(refresh=refresh, progress=tell)
    if save is not None:
        device.save(save)
    if as_json:
        document(device.model_dump(mode="json"))
        return
    from hasten.report import print_table
    from hasten.report.tables import Table

    rows = [
        *(
            (f"{unit.name}, {t}", f"{peak / 1e9:.1f} GFLOP/s")
            for unit in device.compute
            for t, peak in unit.peak.items()
        ),
        *((m.name, f"{m.capacity / 2**20:.1f} MiB, {m.bandwidth / 1e9:.1f} GB/s") for m in device.memory),
        ("launch of an operator", f"{device.launch_overhead * 1e6:.2f} us"),
        *((key, str(value)) for key, value in device.identity.items()),
    ]
    print_table(Table(device.title, ("part", "figure"), tuple(rows)))
