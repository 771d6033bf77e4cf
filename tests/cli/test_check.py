"""`hasten check` as a user meets it, with a paper that is added from outside: a card, a check and a block."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten.papers import read_results

from .. import forked

CARD = """
title = "Doubling a vector"
arxiv = "2401.00001"
year = 2024
field = "training"
summary = "Twice as much of everything."
pieces = ["PACKAGE:Double"]
claims = [
  { id = "D1", metric = "sum of a doubled vector", value = "twice the sum" },
  { id = "D2", metric = "norm of a doubled vector", value = "twice the norm" },
]
"""
BLOCK = """
import torch


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x
"""
CHECKS = """
import torch
from PACKAGE import Double

from hasten.papers.experiment import Experiment, Seen, check


@check("D1")
def total(experiment: Experiment) -> Seen:
    x = torch.randn(100, generator=torch.Generator().manual_seed(experiment.seed))
    ratio = float(Double()(x).sum() / x.sum())
    return experiment.judge(f"{ratio:.3f}", holds=abs(ratio - 2) < 1e-3)


def _norm(factor: float) -> float:
    return float(Double()(torch.full((4,), factor)).norm())


@check("D2")
def norm(experiment: Experiment) -> Seen:
    found = experiment.arms(_norm, {"one": (1.0,), "three": (3.0,)}, processes=2)
    return experiment.judge(f"{found['one']:.1f} and {found['three']:.1f}", holds=False)
"""


def write_papers(folder: Path, package: str) -> None:
    for part in ("cards", "checks"):
        (folder / part).mkdir(parents=True)
    (folder / "cards" / "doubling.toml").write_text(CARD.replace("PACKAGE", package))
    (folder / "checks" / "doubling.py").write_text(CHECKS.replace("PACKAGE", package))


def files(folder: Path) -> dict[str, float]:
    return {str(f): f.stat().st_mtime for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts}


@pytest.fixture(params=["path", "entry point"])
def outside(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str]:
    """An environment with one paper more: in a folder that is named, or in an installed package."""
    if request.param == "path":
        write_papers(tmp_path / "mine", "doubling_block")
        (tmp_path / "mine" / "doubling_block.py").write_text(BLOCK)
        return {**os.environ, "HASTEN_PAPERS": str(tmp_path / "mine")}
    site = tmp_path / "site"
    write_papers(site / "doubling_pack" / "papers", "doubling_pack.block")
    (site / "doubling_pack" / "__init__.py").touch()
    (site / "doubling_pack" / "papers" / "__init__.py").touch()
    (site / "doubling_pack" / "block.py").write_text(BLOCK)
    info = site / "doubling_pack-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: doubling-pack\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[hasten.papers]\ndoubling = doubling_pack.papers\n")
    return {**os.environ, "PYTHONPATH": str(site)}


def hasten(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return forked.run("-m", "hasten", *arguments, env=env, timeout=200)


@pytest.mark.slow_except("path")
def test_adding_a_paper_touches_nothing_else(outside: dict[str, str], tmp_path: Path) -> None:
    import hasten as package

    before = files(Path(package.__file__).parent)
    listed = json.loads(hasten("papers", "--json", "--text", "doubled vector", env=outside).stdout)
    assert [(p["slug"], p["status"]) for p in listed] == [("doubling", "checked")]
    shown = hasten("papers", "doubling", env=outside).stdout
    assert "Double" in shown
    assert "block.py:5" in shown
    save = tmp_path / "results.jsonl"
    done = hasten("check", "doubling", "--save", str(save), env=outside)
    assert done.returncode == 0, done.stderr
    assert "2.000" in done.stdout
    assert "4.0 and 12.0" in done.stdout
    assert {r.claim: r.verdict for r in read_results(save)} == {"D1": "holds", "D2": "does not hold"}
    assert files(Path(package.__file__).parent) == before


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    write_papers(tmp_path / "mine", "doubling_block")
    (tmp_path / "mine" / "doubling_block.py").write_text(BLOCK)
    return tmp_path / "mine"


def test_options(shelf: Path, tmp_path: Path) -> None:
    env = {**os.environ, "HASTEN_PAPERS": str(shelf)}
    save = tmp_path / "r.jsonl"
    one = ("check", "doubling", "--claim", "D1", "--save", str(save), "--json")
    first, second = (json.loads(hasten(*one, env=env).stdout) for _ in range(2))
    assert first == second
    assert [r["claim"] for r in first] == ["D1"]
    assert (first[0]["budget"], first[0]["length"], first[0]["seed"]) == (360.0, "normal", 0)
    (third,) = json.loads(hasten(*one, "--again", "--budget", "9", "--seed", "4", "--long", env=env).stdout)
    assert (third["budget"], third["length"], third["seed"]) == (9.0, "long", 4)
    (quick,) = json.loads(hasten(*one, "--quick", env=env).stdout)
    assert quick["verdict"] == "not judged: quick run"
    assert len(save.read_text().splitlines()) == 3


def test_an_error_is_told_by_the_exit_code(shelf: Path) -> None:
    file = shelf / "checks" / "doubling.py"
    file.write_text(file.read_text().replace("ratio = ", "ratio = 1 / 0 + "))
    env = {**os.environ, "HASTEN_PAPERS": str(shelf)}
    for more in ((), ("fusemax", "--claim", "D1", "--claim", "F1", "--quick")):
        done = hasten("check", "doubling", *more, env=env)
        assert done.returncode == 1, done.stderr
        assert "error: ZeroDivisionError: division by zero" in done.stdout
        assert "Traceback" not in done.stderr


@pytest.mark.slow_except("more1")
@pytest.mark.parametrize("more", [(), ("fusemax", "--quick", "--claim", "D1", "--claim", "D2", "--claim", "F1")])
def test_an_interrupt_keeps_what_was_done(
    more: tuple[str, ...], shelf: Path, tmp_path: Path, until: Callable[[Callable[[], bool], float], None]
) -> None:
    """Whether the checks run here, with arms in processes, or side by side."""
    file, save, started = shelf / "checks" / "doubling.py", tmp_path / "r.jsonl", tmp_path / "started"
    waits = f"    open({str(started)!r}, 'a').write('x')\n    __import__('time').sleep(1000)\n"
    file.write_text(file.read_text().replace("def _norm(factor: float) -> float:\n", f"def _norm(factor):\n{waits}"))
    command = [sys.executable, "-m", "hasten", "check", "doubling", *more, "--save", str(save)]
    env = {**os.environ, "HASTEN_PAPERS": str(shelf)}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        until(started.exists, 120)
        if more:
            until(lambda: "F1" in save.read_text(), 120)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "2.000" in out
    assert {r.claim for r in read_results(save)} == ({"D1", "F1"} if more else {"D1"})
