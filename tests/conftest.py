"""For every test."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

# Tests that run side by side, and the programs they start, would fight for the cores with a thread for each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell starts background jobs with interrupts ignored, and children inherit that; the tests of Ctrl-C need them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def until() -> Callable[[Callable[[], bool], float], None]:
    """Waits, so many seconds at most, until something holds that another process brings about."""

    def wait(holds: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, f"waited for {seconds:g} s"
            time.sleep(0.05)

    return wait
