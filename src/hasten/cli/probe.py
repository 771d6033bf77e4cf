"""``hasten probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.console import Json, Threads, document, progress, use_threads


def probe(
    refresh: Annotated[bool, typer.Option("--refresh", help="Measure again, whatever is kept.")] = False,
    save: Annotated[Path | None, typer.Option(help="Also write the device to this .toml file.")] = None,
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Describe this machine by measuring it, in under 20 seconds, once.

    Examples:

        hasten probe

        hasten probe --refresh --save my-machine.toml
    """
    use_threads(threads)
    import hasten.kernels  # noqa: F401 (so that packed products are measured too)
    from hasten.hardware import probe as run

    with progress("probing this machine") as tell:
        device = run(refresh=refresh, progress=tell)
    if save is not None:
        device.save(save)
    if as_json:
        document(device.model_dump(mode="json"))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("part", "figure", title=device.title)
    for unit in device.compute:
        for dtype, peak in unit.peak.items():
            table.add_row(f"{unit.name}, {dtype}", f"{peak / 1e9:.1f} GFLOP/s")
    for level in device.memory:
        table.add_row(level.name, f"{level.capacity / 2**20:.1f} MiB, {level.bandwidth / 1e9:.1f} GB/s")
    table.add_row("launch of an operator", f"{device.launch_overhead * 1e6:.2f} us")
    for key, value in device.identity.items():
        table.add_row(key, str(value))
    Console().print(table)
