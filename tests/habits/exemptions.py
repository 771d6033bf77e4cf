"""What does not hold, read from the table that users read: `docs/torch.md`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "torch.md"
_ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def _rows() -> dict[tuple[str, str], str]:
    table = PAGE.read_text("utf-8").split("## What does not hold")[1]
    found = {}
    for names, habit, why in _ROW.findall(table):
        if names != "what" and not names.startswith("---"):
            for name in names.split(", "):
                found[name, habit] = why
    return found


EXEMPT = _rows()


@contextlib.contextmanager
def expected(name: str, habit: str) -> Iterator[None]:
    """Around a trial of a habit: it holds, or it is in the table and still does not."""
    if (name, habit) not in EXEMPT:
        yield
        return
    try:
        yield
    except Exception:
        return
    pytest.fail(f"{name} has the habit {habit!r} now: take it out of the table of docs/torch.md")
