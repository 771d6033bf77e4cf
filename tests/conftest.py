"""For every test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable

import pytest

Until = Callable[[Callable[[], bool]], None]

# Tests that run side by side, and the programs they start, would fight for the cores with a thread for each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with interrupts ignored, and children inherit that; the tests of Ctrl-C need them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def until() -> Until:
    """Waits until something holds that another process brings about; two minutes are enough on a busy machine."""

    def wait(holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < deadline, "waited for two minutes"
            time.sleep(0.05)

    return wait


@pytest.fixture
def gone(until: Until) -> Callable[[Iterable[str]], None]:
    """Waits until processes, by their numbers, have ended."""
    return lambda pids: until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
