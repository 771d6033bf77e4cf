"""Small instances are tried by one thread: several wait longer for each other than they work.

Networks are made of blocks, which are tried every time: a few stand for the others, which are among the slow tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hasten import processes

from .examples import NETWORKS

DAILY = {"BlockFFNLM", "CellNetwork", "MambaLM", "SimpleNet"}
SLOW = NETWORKS.keys() - DAILY


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != "test_examples.py":
            case = getattr(item, "callspec", None)
            if case is not None and case.params.get("name") in SLOW:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with processes.one_thread():
        yield
