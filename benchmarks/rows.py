"""What every benchmark prints: a table for people on stderr, or a list of JSON rows on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
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
        ratio: subject over peer, above 1 when the subject is better; None without a peer.
    """

    case: str
    subject: str
    value: float
    unit: str
    peer: str | None = None
    ratio: float | None = None


def emit(rows: Sequence[Row], json: bool = False) -> None:
    """Writes the rows: a table to stderr, and with ``json`` one JSON list to stdout."""
    table = Table("case", "subject", "value", "unit", "peer", "ratio")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
        table.add_row(row.case, row.subject, f"{row.value:.4g}", row.unit, row.peer or "", ratio)
    Console(stderr=True).print(table)
    if json:
        _dump(rows)


def _dump(rows: Sequence[Row]) -> None:
    json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
    sys.stdout.write("\n")
