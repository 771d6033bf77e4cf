"""The oblivious map beside Path ORAM, a linear scan and a table that leaks, over the same sealed pages of host memory.

Seconds of one thread and bytes moved by a look-up, and seconds to build, of values of 64 bytes. Path ORAM and the
linear scan are plain Python here, so the map's plain form stands beside them too: between those only the algorithms
differ.

    python benchmarks/oblivious.py [--items 65536] [--large 1048576] [--json]
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable

from hasten.errors import HastenError
from hasten.kernels.compiled import native
from hasten.runtime.storage.compared_maps import LinearScan, PathORAM, SealedTable, access_seconds, moved_bytes
from hasten.runtime.storage.oblivious_map import ObliviousMap
from hasten.runtime.storage.sealed_pages import RecordedPages, recorded
from rows import Row, compared, emit

WIDTH = 64
Seen = tuple[float, float, float]
"""Bytes and seconds of a look-up, seconds to build."""


def seen(make: Callable[..., ObliviousMap], items: int, accesses: int) -> Seen:
    stores: list[RecordedPages] = []
    begun = time.thread_time()
    table = make(dict.fromkeys(range(items), bytes(WIDTH)), pages=recorded(stores))
    built = time.thread_time() - begun
    return moved_bytes(table, stores[0], items, accesses), access_seconds(table, items, accesses), built


def maps(items: int, large: int) -> list[Row]:
    """Each map at one size, and the oblivious one alone at a larger one."""
    makers: dict[str, tuple[Callable[..., ObliviousMap], int]] = {
        "Path ORAM": (PathORAM, 2000),
        "linear scan": (LinearScan, 8),
        "leaking table": (SealedTable, 20_000),
        "hasten, plain": (functools.partial(ObliviousMap, plain=True), 10_000),
    }
    if native() is not None:
        makers["hasten"] = (ObliviousMap, 100_000)
    found = {name: seen(make, items, accesses) for name, (make, accesses) in makers.items()}
    rows = []
    for place, (what, unit) in enumerate((("bytes of a look-up", "B"), ("a look-up", "s"), ("building", "s"))):
        case = f"{items:,} items of {WIDTH} bytes: {what}"
        for name, row in found.items():
            if name.startswith("hasten"):
                peers = ("Path ORAM", "linear scan", "leaking table")
                rows += [compared(case, name, row[place], unit, p, found[p][place]) for p in peers]
            else:
                rows.append(Row(case, name, row[place], unit))
    moved, each, built = seen(ObliviousMap, large, 100_000)
    case = f"{large:,} items of {WIDTH} bytes"
    rows.append(Row(f"{case}: bytes of a look-up", "hasten", moved, "B"))
    rows.append(Row(f"{case}: look-ups", "hasten", 1 / each, "1/s"))
    rows.append(Row(f"{case}: building", "hasten", built, "s"))
    return rows


def check_items(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Ends with a line where a map would hold nothing."""
    if min(options.items, options.large) < 1:
        parser.error("maps hold at least 1 item: give --items and --large from 1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1 << 16, help="that every map holds")
    parser.add_argument("--large", type=int, default=1 << 20, help="that the oblivious one holds alone")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON on stdout")
    options = parser.parse_args()
    check_items(parser, options)
    try:
        rows = maps(options.items, options.large)
    except HastenError as error:
        print(error, file=sys.stderr)
        return 2
    emit(rows, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
