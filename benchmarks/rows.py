"""What every benchmark prints: a table for people on stderr, or a list of JSON rows on stdout."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One figure of a benchmark.

    Args:
        case: what was run (a model, a phase).
        subject: who ran it: ``hasten``, ``transformers-fp32``, ``llama.cpp``, ``limit``, ...
        value: the figure, in ``unit``.
        unit: SI unit, or ``1`` for a pure number.
        peer: the subject it is compared with, or None.
        ratio: how many times better the subject is than the peer: above 1 when the SUBJECT is better, whether the
            figure is one to make small or large. None without a peer. `compared` fills it in; no script does.
    """

    case: str
    subject: str
    value: float
    unit: str
    peer: str | None = None
    ratio: float | None = None


LESS_IS_BETTER = {"s": True, "B": True, "J": True, "cycles": True, "1/s": False, "tokens/s": False}
"""By unit; what is a pure number says itself which way is better."""


def compared(
    case: str, subject: str, value: float, unit: str, peer: str, peers: float, less_is_better: bool | None = None
) -> Row:
    """A row of ``subject`` beside ``peer``, whose figure of the same case and unit is ``peers``.

    Args:
        less_is_better: must be given where the unit does not say it.

    Raises:
        ValueError: nobody says which way is better.
    """
    less = LESS_IS_BETTER.get(unit) if less_is_better is None else less_is_better
    if less is None:
        raise ValueError(f"say whether less is better in {case}: its unit, {unit}, does not")
    above, below = (peers, value) if less else (value, peers)
    return Row(case, subject, value, unit, peer, above / below if below else None)


def emit(rows: Sequence[Row], json: bool = False, table: Sequence[Row] | None = None) -> None:
    """Writes the rows: a table to stderr, of `table` where that is given, and with ``json`` one JSON list to stdout."""
    shown = Table("case", "subject", "value", "unit", "peer", "ratio")
    for row in rows if table is None else table:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        shown.add_row(row.case, row.subject, f"{row.value:.4g}", row.unit, row.peer or "", ratio)
    if shown.rows:
        Console(stderr=True).print(shown)
    if json:
        _dump(rows)


def takes_required(parser: argparse.ArgumentParser, peers: Iterable[str]) -> None:
    """Adds ``--require PEER`` to a script that has peers."""
    names = tuple(peers)
    parser.add_argument(
        "--require", action="append", default=[], choices=names, metavar="PEER",
        help=f"exit with 1 when this peer could not run: {', '.join(names)}; repeatable",
    )  # fmt: skip


def told_missing(rows: Sequence[Row], peers: Mapping[str, str], required: Sequence[str] = ()) -> int:
    """Says, as the last lines of a run, which peers have no row.

    Args:
        rows: of the whole run.
        peers: every peer that the benchmark knows, with why it may be missing and what helps.
        required: the peers without which the run has failed.

    Returns:
        The exit code: 1 when a required one is missing.
    """
    missing = [peer for peer in peers if not any(row.subject == peer for row in rows)]
    for peer in sorted(missing, key=lambda peer: peer in required):
        needed = "required, but " if peer in required else ""
        print(f"{peer} is {needed}missing in these figures: {peers[peer]}", file=sys.stderr)
    return int(any(peer in required for peer in missing))


def _dump(rows: Sequence[Row]) -> None:
    json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
    sys.stdout.write("\n")
