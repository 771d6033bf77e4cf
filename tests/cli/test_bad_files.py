"""Bad numbers and files, in every verb that takes them: one line on stderr, exit code 2, nothing on stdout, at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hasten import cli, files

NUMBERS = {
    **{f"tune, budget {v}": ("tune", "--budget", v) for v in ("nan", "inf", "-inf", "0")},
    **{f"search, budget {v}": ("search", "p.py:good", "--budget", v) for v in ("nan", "inf", "-inf", "0")},
    **{f"check, budget {v}": ("check", "fusemax", "--budget", v) for v in ("nan", "inf", "-inf", "0")},
    **{
        f"{verb}, threads {v}": (verb, *more, "--threads", v)
        for verb, more in (
            ("tune", ()), ("estimate", ("tiny.json",)), ("measure", ("tiny.json",)), ("search", ("p.py:good",)),
            ("probe", ()),
        )
        for v in ("99999999", "-1")
    },
    "search, seed": ("search", "p.py:good", "--seed", "-1"),
    "search, seed of 80 bits": ("search", "p.py:good", "--seed", str(2**80)),
    "tune, floor": ("tune", "--floor", "nan"),
    "estimate, prompt": ("estimate", "tiny.json", "--on", "h100", "--prompt", str(10**12)),
}  # fmt: skip
FILES = {
    "text without end": ("tune", "--text", "/dev/zero"),
    "text of a long name": ("tune", "--text", "a" * 5000),
    "model of a long name": ("tune", "a" * 5000),
    "subject of a long name": ("estimate", "a" * 5000, "--on", "h100"),
    "device of a long name": ("estimate", "tiny.json", "--on", "a" * 5000),
    "device nested deep": ("estimate", "tiny.json", "--on", "deep.toml"),
    "device with keys nested deep": ("estimate", "tiny.json", "--on", "keys.toml"),
    "config nested deep": ("estimate", "deep.json", "--on", "h100"),
    "negative size": ("estimate", "negative.json", "--on", "h100"),
    "huge size": ("estimate", "huge.json", "--on", "h100"),
    "study of a long name": ("search", "p.py:good", "--study", "a" * 5000),
    "problems of a long name": ("search", "a" * 5000 + ".py:good"),
    "folder of a long name": ("search", "p.py:good", "--out", "a" * 5000),
    "results of a long name": ("papers", "--results", "a" * 5000),
    "results without end": ("papers", "--results", "/dev/zero"),
    "results to a long name": ("check", "fusemax", "--quick", "--save", "a" * 5000),
    "study without end": ("search", "p.py:good", "--study", "/dev/zero"),
    "factory that exits": ("estimate", "exits.py:build", "--on", "h100"),
    "factory that raises no Exception": ("estimate", "odd.py:build", "--on", "h100"),
    "module that exits when it is run": ("estimate", "late.py:build", "--on", "h100"),
    "module that raises no Exception when it is run": ("estimate", "later.py:build", "--on", "h100"),
    "problems that exit": ("search", "exits.py:good"),
    "problems that raise no Exception": ("search", "odd.py:good"),
    "problem made by what exits": ("search", "p.py:leaves"),
    "scoring that exits": ("search", "p.py:exits", "--trials", "3"),
    "scoring that raises no Exception": ("search", "p.py:odd", "--trials", "3"),
}
TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100,
}  # fmt: skip
MODULE = """
import torch
class Net(torch.nn.Module):
    def forward(self, x):
        raise {what}
def build():
    return Net(), torch.zeros(2)
"""
PROBLEMS = """
import sys
from hasten.search import Objective, Problem, Space, integer
class Odd(BaseException):
    pass
def exits(params):
    sys.exit(7)
def raises(params):
    raise Odd
def leaves():
    sys.exit(5)
space = Space([integer("n", 1, 12)])
good = Problem("good", space, (Objective("cost"),), lambda params: {"cost": 1})
exits = Problem("exits", space, (Objective("cost"),), exits)
odd = Problem("odd", space, (Objective("cost"),), raises)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    (tmp_path / "negative.json").write_text(json.dumps({**TINY, "intermediate_size": -96}))
    (tmp_path / "huge.json").write_text(json.dumps({**TINY, "head_dim": 2**31}))
    (tmp_path / "deep.json").write_text("[" * 10_000 + "]" * 10_000)
    (tmp_path / "deep.toml").write_text("a = " + "[" * 10_000 + "]" * 10_000)
    (tmp_path / "keys.toml").write_text(".".join("a" * 2_000) + " = 1")
    (tmp_path / "exits.py").write_text("import sys\nprint('out')\nsys.exit(3)\n")
    (tmp_path / "odd.py").write_text("class Odd(BaseException): pass\nraise Odd('on\\npurpose')\n")
    (tmp_path / "late.py").write_text(MODULE.format(what="SystemExit(4)"))
    (tmp_path / "later.py").write_text(MODULE.format(what="type('Odd', (BaseException,), {})()"))
    (tmp_path / "p.py").write_text(PROBLEMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", [*NUMBERS, *FILES])
def test_it_is_one_line(
    case: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files.read_bytes, "__defaults__", ("the file", 1 << 20))
    monkeypatch.setattr(files.read_text, "__defaults__", ("the file", 1 << 20))
    monkeypatch.setattr(sys, "argv", ["hasten", *{**NUMBERS, **FILES}[case]])
    assert cli._run() == 2
    out, err = capsys.readouterr()
    (line,) = [text for text in err.splitlines() if text.strip() and text != "out"]
    assert line.startswith("error: ")
    assert "Traceback" not in err
    assert "unexpected" not in err
    assert len(line) < 500
    assert out == ""


LOUD = """
import os, subprocess, sys
print("from print")
sys.__stdout__.write("from the first stdout\\n")
sys.__stdout__.flush()
os.write(1, b"from below Python\\n")
subprocess.run(["echo", "from a child"], check=True)
import torch
def build():
    print("from build")
    return torch.nn.Linear(3, 4), torch.zeros(2, 3)
import atexit
atexit.register(lambda: print("from the end"))
"""


def test_whatever_a_users_file_writes_the_document_is_alone_on_stdout(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(LOUD)
    command = [sys.executable, "-m", "hasten.cli", "estimate", "net.py:build", "--on", "h100", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["device"] == "h100"
    for word in ("print", "the first stdout", "below Python", "a child", "build", "the end"):
        assert f"from {word}" in done.stderr
