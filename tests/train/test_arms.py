"""Arms run side by side, keep their order, and pass errors on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hasten.train.arms import run_arms


@pytest.mark.parametrize("processes", [1, 2])
def test_results_keep_their_order(processes: int) -> None:
    told: list[float] = []
    kept: dict[int, float] = {}
    arms = [(2, 3), (3, 2), (5, 1)]
    assert run_arms(math.pow, arms, progress=told.append, each=kept.__setitem__, processes=processes) == [8, 9, 5]
    assert told[-1] == 1.0
    assert kept == {0: 8, 1: 9, 2: 5}


def test_an_arms_error_comes_through() -> None:
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        run_arms(math.sqrt, [(1.0,), (-1.0,)], processes=2)


SLOW = """
import pathlib, sys, time
from hasten.train.arms import run_arms

def arm(folder, number):
    import os
    (pathlib.Path(folder) / str(os.getpid())).touch()
    time.sleep(100)

if __name__ == "__main__":
    run_arms(arm, [(sys.argv[1], n) for n in range(2)], processes=2)
"""


def test_arms_end_with_their_parent(tmp_path: Path) -> None:
    """Killed outright, it leaves no training behind that goes on for nobody."""
    (tmp_path / "seen").mkdir()
    (tmp_path / "slow.py").write_text(SLOW)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "slow.py"), str(tmp_path / "seen")])
    deadline = time.time() + 120
    while time.time() < deadline and len(list((tmp_path / "seen").iterdir())) < 2:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    pids = [p.name for p in (tmp_path / "seen").iterdir()]
    assert len(pids) == 2
    deadline = time.time() + 30
    while time.time() < deadline and any(os.path.exists(f"/proc/{pid}") for pid in pids):
        time.sleep(0.05)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
