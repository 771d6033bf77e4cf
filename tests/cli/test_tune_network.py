"""`hasten tune` of a network, as a user meets it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .test_main import run

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 3)).eval(), torch.randn(4, 32)

def broken():
    return nn.Linear(2, 2), torch.ones(1, 3)
"""


@pytest.mark.slow
def test_a_network_is_tuned_and_measured(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    options = ("--trials", "2", "--runs", "1", "--threads", "1", "--floor", "0.5", "--budget", "1e6", "--json")
    done = run("tune", "net.py:build", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["inputs"] == "float32 4x32"
    assert result["best"]["measured"]["forward"] > 0
    assert "ms a call" in done.stderr
    assert "<html" in (tmp_path / "report.html").read_text("utf-8")[:500]
    unnamed = run("measure", "tuned.json", cwd=tmp_path)
    assert unnamed.returncode == 2
    assert "which is code" in unnamed.stderr.splitlines()[-1]
    again = run("measure", "tuned.json", "--model", "net.py:build", "--threads", "1", "--json", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["phases"]["forward"]["median"] > 0


def test_a_network_that_fails_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    wrong = run("tune", "net.py:broken", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.splitlines()[-1].startswith("error: net:broken fails on its inputs: RuntimeError")
    assert "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_measured_of_a_network(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    command = [sys.executable, "-m", "hasten.cli", "tune", "net.py:build", "--threads", "1", "--study", "s.db"]
    process = subprocess.Popen([*command, "--budget", "1e6"], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "ms a call" in line and "unchanged:" not in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.communicate(timeout=120)[1]
    assert process.returncode == 130, rest
    assert "goes on from s.db" in rest
    assert "Traceback" not in rest
    assert (tmp_path / "tuned.json").exists()
