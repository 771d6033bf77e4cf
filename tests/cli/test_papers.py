"""`hasten papers`: quick, with the pieces and where they are, with verdicts when there are results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hasten import cli
from hasten.papers.results import Result, ResultFile

ROOT = Path(__file__).parents[2]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command line in this process."""
    monkeypatch.setattr(sys, "argv", ["hasten", *arguments])
    return cli._run()


@pytest.fixture
def results(tmp_path: Path) -> Path:
    file = ResultFile(tmp_path / "results.jsonl")
    for claim, verdict, seed in (("M1", "not judged: needs 100 s", 0), ("M1", "holds", 1), ("M2", "does not hold", 0)):
        file.add(Result(slug="mamba", claim=claim, metric="m", paper="p", seen=f"saw {claim}", verdict=verdict,
                        seconds=2.0, seed=seed))  # fmt: skip
    return tmp_path / "results.jsonl"


@pytest.mark.parametrize(
    "arguments", [("--help",), ("papers",), ("papers", "mamba"), ("papers", "--json")], ids=" ".join
)
def test_it_imports_neither_torch_nor_a_check(arguments: tuple[str, ...]) -> None:
    code = f"""
import sys
from hasten import cli
sys.argv = ["hasten", *{arguments!r}]
code = cli._run()
heavy = ("torch", "numpy", "plotly", "transformers", "optuna", "hasten.papers.checks", "hasten.nn")
print(code, [m for m in sys.modules if m.startswith(heavy)], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "0 []"
    assert done.stdout


def test_a_paper_shows_its_pieces(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "papers", "mamba") == 0
    shown = capsys.readouterr().out
    (line,) = [line for line in shown.splitlines() if "hasten.nn.mamba:Mamba " in line]
    path, _, number = line.split()[-1].partition(":")
    assert path == "hasten/nn/mamba.py"
    assert (ROOT / "src" / path).read_text("utf-8").splitlines()[int(number) - 1].startswith("class Mamba(")
    assert "hasten/papers/checks/mamba.py" in shown
    assert "docs/mamba.md" in shown


def test_verdicts_of_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], results: Path
) -> None:
    assert run(monkeypatch, "papers", "mamba", "--results", str(results)) == 0
    shown = capsys.readouterr().out
    assert "holds; seen: saw M1" in shown
    assert "1 holds, 1 does not hold" in shown
    assert run(monkeypatch, "papers", "--results", str(results)) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mamba ")]
    assert "1 holds, 1 does not hold" in line
    assert run(monkeypatch, "papers", "mamba", "--results", str(results), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdicts"] == {"holds": 1, "does not hold": 1}
    assert {r["claim"]: r["verdict"] for r in told["results"]} == {"M1": "holds", "M2": "does not hold"}


def test_it_writes_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], results: Path, tmp_path: Path
) -> None:
    page = tmp_path / "new" / "claims.html"
    assert run(monkeypatch, "papers", "--results", str(results), "--page", str(page)) == 0
    assert "<html" in page.read_text("utf-8")[:500]
    shown = capsys.readouterr()
    assert shown.out == ""
    assert str(page) in shown.err
