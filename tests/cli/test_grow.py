"""`hasten grow`, as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

from hasten.runtime.grown import load_grown

from .test_main import run

NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(4, 8)
"""


def test_a_network_is_grown_kept_and_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NET)
    done = run("grow", "net.py:build", "--widen", "0=10", "--deepen", "0", "--exact", "--out", "large", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "75 parameters, now 233" in done.stdout
    assert "wrote large" in done.stderr
    large = load_grown(tmp_path / "large", f"{tmp_path / 'net.py'}:build")
    assert [tuple(p.shape) for p in large.parameters() if p.ndim == 2] == [(10, 8), (10, 10), (3, 10)]
    told = run("grow", "net.py:build", "--widen", "0=10", "--json", cwd=tmp_path)
    found = json.loads(told.stdout)
    assert (found["parameters_before"], found["parameters"], found["out"]) == (75, 123, None)
    assert found["apart"] < 0.2
    bad = (
        ((), "grows by a move"),
        (("--widen", "0"), "such as features.0=64"),
        (("--widen", "0=2"), "at least as many"),
    )
    for options, why in bad:
        wrong = run("grow", "net.py:build", *options, cwd=tmp_path)
        assert wrong.returncode == 2
        (line,) = wrong.stderr.splitlines()
        assert line.startswith("error: ")
        assert why in line
