"""Small instances are tried by one thread: several wait longer for each other than they work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hasten import processes


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with processes.one_thread():
        yield
