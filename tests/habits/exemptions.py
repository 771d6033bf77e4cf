"""What does not hold, read from the tables that users read: of `docs/torch.md` and of pages like it."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "torch.md"
_ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


@functools.cache
def rows(page: Path) -> dict[tuple[str, str], str]:
    """(name, habit) -> why, of a page's table."""
    table = page.read_text("utf-8").split("## What does not hold")[1]
    found = {}
    for names, habit, why in _ROW.findall(table):
        if names != "what" and not names.startswith("---"):
            for name in names.split(", "):
                found[name, habit] = why
    return found


EXEMPT = rows(PAGE)


def skip_network(name: str, habit: str) -> None:
    """Skips a trial that takes long, of a network whose blocks are tried and in the table as it is."""
    if name.endswith("LM") and (name, habit) in EXEMPT:
        pytest.skip(f"its blocks have not the habit: {EXEMPT[name, habit]}")


@contextlib.contextmanager
def expected(name: str, habit: str, page: Path = PAGE) -> Iterator[None]:
    """Around a trial of a habit: it holds, or it is in the page's table and still does not."""
    if (name, habit) not in rows(page):
        yield
        return
    try:
        yield
    except Exception:
        return
    pytest.fail(f"{name} has the habit {habit!r} now: take it out of the table of docs/{page.name}")
