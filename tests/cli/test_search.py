"""The search verb: what it leaves, how it goes on, one line for every error."""

from __future__ import annotations

import functools
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from hasten import cli
from hasten.files import read_parquet
from hasten.search.networks import network_problem

PROBLEMS = """
from hasten.search import Infeasible, Objective, Problem, Space, integer

space = Space([integer("n", 1, 12)])

def score(params):
    with open("scored", "a") as file:
        file.write(f"{params['n']}\\n")
    return {"cost": params["n"], "gain": params["n"] % 5, "over": params["n"] - 9}

def broken(params):
    if params["n"] > 3:
        raise ZeroDivisionError("oh\\nno")
    return {"cost": params["n"]}

good = Problem("a chip/1", space, (Objective("cost", unit="J"), Objective("gain", "maximize")), score, ("over",))
raises = Problem("raises", space, (Objective("cost"),), broken)
never = Problem("never", space, (Objective("cost"),), lambda params: {"cost": 1, "over": 1}, ("over",))
nan = Problem("nan", space, (Objective("cost"),), lambda params: {"cost": float("nan")})
no_problem = 3
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """The command line in this process: quicker than a new one each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Done:
        self.monkeypatch.setattr(sys, "argv", ["hasten", "search", *arguments])
        code = cli._run()
        return Done(code, *self.capsys.readouterr())


@pytest.fixture
def search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    (tmp_path / "p.py").write_text(PROBLEMS)
    monkeypatch.chdir(tmp_path)
    return Shell(monkeypatch, capsys)


def test_names_of_spaces_and_samplers(search: Shell) -> None:
    spaces = {entry["name"]: entry["about"] for entry in json.loads(search("--json").out)}
    assert {"dram", "hourglass"} <= set(spaces)
    assert all(spaces.values())
    samplers = {entry["name"]: entry["about"] for entry in json.loads(search("--sampler", "list", "--json").out)}
    assert {"tpe", "nsga2", "random", "ants"} <= set(samplers)
    assert all(line for name, line in samplers.items() if name in ("tpe", "nsga2", "random", "ants"))


def test_it_keeps_a_study_by_itself_and_goes_on(search: Shell) -> None:
    done = search("p.py:good", "--sampler", "exhaustive", "--trials", "5", "--out", "found", "--json")
    assert done.code == 0, done.err
    assert {p.name for p in Path("found").iterdir()} == {
        "a-chip-1.db", "search.csv", "search.html", "search.json", "search.parquet"
    }  # fmt: skip
    assert len(json.loads(done.out)["trials"]) == 5
    done = search("p.py:good", "--sampler", "random", "--trials", "12", "--out", "found")
    assert done.code == 0, done.err
    assert "5 of the 12 trials are of earlier runs" in done.err
    assert sorted(map(int, Path("scored").read_text().split())) == list(range(1, 13))
    assert "cost, J" in done.out
    assert {row["sampler"] for row in read_parquet("found/search.parquet")} == {"exhaustive", "random"}
    again = search("p.py:good", "--trials", "12", "--out", "found")
    assert "nothing was left to try: raise --trials" in again.err
    assert len(Path("scored").read_text().split()) == 12
    assert not list(Path("found").glob("*.lock"))


def test_a_budget_of_seconds_has_no_limit_on_trials(search: Shell) -> None:
    done = search("p.py:good", "--budget", "100", "--sampler", "exhaustive", "--json")
    assert len(json.loads(done.out)["trials"]) == 12
    assert json.loads(done.out)["stopped"] == "exhausted"


def test_what_was_tried_before_evaluate_raises_is_kept(search: Shell) -> None:
    done = search("p.py:raises", "--sampler", "exhaustive")
    assert done.code == 2
    assert done.err.strip().startswith("error: scoring a point of p.py:raises failed: ZeroDivisionError: oh no")
    assert len(done.err.strip().splitlines()) == 1
    mended = Path("p.py").read_text().replace('raise ZeroDivisionError("oh\\nno")', "pass")
    Path("p.py").write_text(mended)
    done = search("p.py:raises", "--sampler", "exhaustive")
    assert done.code == 0, done.err
    assert "3 of the 12 trials are of earlier runs" in done.err


@pytest.mark.parametrize(("name", "why"), [("never", "break the constraint over"), ("nan", "cost is not a number")])
def test_nothing_feasible_says_so_and_shows_why(search: Shell, name: str, why: str) -> None:
    done = search(f"p.py:{name}", "--trials", "5")
    assert done.code == 2
    assert "error: none of the 5 points tried is feasible" in done.err
    assert why in Path("search.html").read_text("utf-8")


BAD = {
    "no such space": ("abacus",),
    "no such file": ("none.py:good",),
    "no such name": ("p.py:none",),
    "no problem": ("p.py:no_problem",),
    "no such sampler": ("p.py:good", "--sampler", "luck"),
    "no trials": ("p.py:good", "--trials", "0"),
    "no seconds": ("p.py:good", "--budget", "-1"),
    "no workers": ("p.py:good", "--workers", "0"),
    "not a study": ("p.py:good", "--study", "p.py"),
    "study of another space": ("p.py:nan", "--study", "other.db"),
    "damaged study": ("p.py:good", "--study", "damaged.db"),
    "a file for a folder": ("p.py:good", "--out", "p.py"),
    "a folder that cannot be": ("p.py:good", "--out", "/proc/none"),
    "no Ray cluster": ("p.py:good", "--ray", "127.0.0.1:1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(search: Shell, case: str) -> None:
    if case == "study of another space":
        assert search("p.py:good", "--trials", "2", "--study", "other.db").code == 0
    if case == "damaged study":
        search("p.py:good", "--trials", "2", "--study", "damaged.db")
        whole = Path("damaged.db").read_bytes()
        Path("damaged.db").write_bytes(whole[:9000] + os.urandom(40_000))
    if case == "no Ray cluster":
        pytest.importorskip("ray")
    before = {*os.listdir(), "__pycache__"}  # Python's own, of the file of problems, where it writes one
    done = search(*BAD[case])
    assert done.code == 2
    assert done.out == ""
    (line,) = done.err.strip().splitlines()
    assert line.startswith("error: ")
    assert {*os.listdir(), "__pycache__"} == before


def test_a_space_of_networks_is_searched_under_a_latency_limit(search: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    shortly = functools.partial(network_problem.network_problem, epochs=0.1)
    monkeypatch.setattr(network_problem, "network_problem", shortly)
    asked = ("cell", "--latency-on", "pi5", "--latency-limit", "0.9", "--sampler", "random", "--trials", "4")
    done = search(*asked, "--json")
    assert done.code == 0, done.err
    trials = json.loads(done.out)["trials"]
    assert len(trials) == 4
    found = [t for t in trials if t["values"]]
    assert found
    assert all(t["values"]["latency"] <= 0.9e-3 for t in found)
    assert Path("search.html").exists()
    again = search(*asked)
    assert "nothing was left to try" in again.err
    # Another limit is another problem: the study says so instead of mixing the two.
    other = search("cell", "--latency-on", "pi5", "--latency-limit", "0.5", "--trials", "5")
    assert other.code == 2
    assert "limit" in other.err


def test_a_latency_is_of_spaces_of_networks(search: Shell) -> None:
    for asked, why in (
        (("dram", "--latency-on", "pi5"), "are for ascan, cell, chain, darts, "),
        (("p.py:good", "--latency-limit", "3"), "says itself what is sought"),
        (("cell", "--latency-limit", "-3"), "milliseconds above 0"),
        (("cell", "--latency-on", "abacus"), "abacus"),
    ):
        done = search(*asked)
        assert done.code == 2
        assert why in done.err
        assert len(done.err.strip().splitlines()) == 1
