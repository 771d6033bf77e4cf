"""Problems by name and from files, and the verb that searches them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hasten import spaces
from hasten.data import assets
from hasten.errors import HastenError
from hasten.search import Infeasible, Study

from .. import forked

PROBLEM = """
import time
from hasten.search import Objective, Problem, Space, integer

def evaluate(params):
    time.sleep({sleep})
    return {{"far": (params["x"] - 7) ** 2, "large": params["x"], "note": "<b>seen</b>"}}

problem = Problem("parabola", Space([integer("x", 0, 30)]), (Objective("far"), Objective("large")), evaluate)
broken = 3
"""


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PROBLEM.format(sleep=0))
    return path


def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = forked.run(*forked.HASTEN, "search", *arguments)
    if check:
        done.check_returncode()
    return done


def test_names_are_found_and_described() -> None:
    assert "hourglass" in spaces.names()
    assert "photographs" in spaces.describe("hourglass")
    with pytest.raises(HastenError, match="no space is called 'nowhere'"):
        spaces.build("nowhere")


def test_problems_come_from_files(problem_file: Path) -> None:
    assert spaces.build(f"{problem_file}:problem").name == "parabola"
    with pytest.raises(HastenError, match="is no problem"):
        spaces.build(f"{problem_file}:broken")
    with pytest.raises(HastenError, match="defines no"):
        spaces.build(f"{problem_file}:missing")
    with pytest.raises(HastenError, match="no file"):
        spaces.build("nothing.py:problem")


def test_the_verb_leaves_a_table_and_two_files(problem_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    done = run(f"{problem_file}:problem", "--sampler", "exhaustive", "--trials", "31", "--out", str(out), "--json")
    document = json.loads(done.stdout)
    assert len(document["trials"]) == 31
    assert sorted(t["params"]["x"] for t in document["trials"] if t["front"]) == list(range(8))
    assert json.loads((out / "search.json").read_text()) == document
    page = (out / "search.html").read_text("utf-8")
    assert "parabola" in page
    assert "plotly" in page
    assert "hourglass" in run().stdout
    wrong = run("nowhere", check=False)
    assert wrong.returncode == 2
    assert len(wrong.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_killed_and_gone_on_no_point_is_tried_twice(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(PROBLEM.format(sleep=0.2))
    arguments = [
        f"{path}:problem",
        "--sampler",
        "random",
        "--trials",
        "8",
        "--study",
        str(tmp_path / "s.db"),
        "--out",
        str(tmp_path),
    ]
    running = subprocess.Popen([sys.executable, "-m", "hasten.cli", "search", *arguments], stderr=subprocess.DEVNULL)
    known = 0
    for _ in range(600):
        time.sleep(0.1)
        if (tmp_path / "s.db").exists():
            try:
                known = len(Study(tmp_path / "s.db").read(spaces.build(f"{path}:problem")).trials)
            except HastenError:
                continue
            if known >= 2:
                break
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert known >= 2
    document = json.loads(run(*arguments, "--json").stdout)
    points = [t["params"]["x"] for t in document["trials"]]
    assert len(points) == len(set(points)) == 8


def test_hourglass_points_keep_to_their_size() -> None:
    from hasten.spaces.hourglass import shape

    for params in (
        {"shape": "conventional", "layers": 2},
        {"shape": "narrow", "layers": 8},
        {"shape": "hourglass", "layers": 4, "ratio": 3},
    ):
        found = shape(params, 100_000).sizes().trainable
        assert 0.93 * 100_000 <= found <= 100_000
    with pytest.raises(Infeasible):
        shape({"shape": "conventional", "layers": 8}, 100_000)


def test_hourglass_is_searched() -> None:
    pytest.importorskip("PIL")
    if assets.cached("photographs") is None:
        pytest.skip("needs `hasten assets get photographs`")
    result = Study().run(spaces.build("hourglass", steps=3), sampler="random", trials=3)
    assert len(result.trials) == 3
