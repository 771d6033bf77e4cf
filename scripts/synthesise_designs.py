"""Synthesises random circuits into a table that surrogates of resources learn from; goes on where it stopped.

    python scripts/synthesise_designs.py designs.csv --count 2000 --processes 4

Needs Yosys and Icarus Verilog (Debian: yosys, iverilog). A row is written as soon as it is known, so that an end at any
moment costs the designs at hand; the same command goes on. Rows are in no order.
"""

from __future__ import annotations

import argparse
import itertools
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from hasten.cost.chips.synthesised import random_designs, read_synthesised, synthesised, table_text
from hasten.hardware.hls.synthesis import hardware_tool


def main() -> None:
    """Reads the command line and works."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, help="CSV file, made where it is not there")
    parser.add_argument("--count", type=int, default=200, help="designs in the end")
    parser.add_argument("--seed", type=int, default=0, help="of the designs")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    for tool in ("yosys", "iverilog"):
        print(hardware_tool(tool).version)
    if not given.table.exists():
        given.table.write_text(table_text([]))
    text = given.table.read_text()
    if not text.endswith("\n"):  # the last row was being written when it was ended
        given.table.write_text(text[: text.rfind("\n") + 1])
    known = {row.seed for row in read_synthesised(given.table)}
    work = [
        (design, asked, number)
        for number, (design, asked) in enumerate(itertools.islice(random_designs(given.seed), given.count))
        if number not in known
    ]
    with ProcessPoolExecutor(given.processes) as pool:
        waiting = [pool.submit(synthesised, *one) for one in work]
        for done, future in enumerate(as_completed(waiting), 1):
            row = future.result()
            with given.table.open("a") as file:
                file.write(table_text([row]).partition("\n")[2])
                file.flush()
                os.fsync(file.fileno())
            print(f"{done} of {len(work)}: {row.outcome} in {row.seconds:.1f} s: {row.design}", flush=True)


if __name__ == "__main__":
    main()
