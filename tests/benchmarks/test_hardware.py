"""The benchmark of hardware models: a whole run at a tiny size, without peers, and a peer's figures as rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    found: Any = __import__("hardware")
    small = {
        "SIDE": 4,
        "SAMPLES": 12,
        "SEEDS": 1,
        "STEPS": 2,
        "MOST_TASKS": 3,
        "SHAPE": (4, 16, 8),
        "OWN": found.OWN[2:],
    }
    for name, value in {**small, "OWN": found.OWN[2:]}.items():
        monkeypatch.setattr(found, name, value)
    few = found.synthesised_designs()[:40]
    monkeypatch.setattr(found, "synthesised_designs", lambda: few)
    monkeypatch.setattr(sys.modules["peers"], "find_spec", lambda name: None)
    yield found
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["hardware.py", "--json", *words])
    return int(script.main())


def test_it_runs_without_peers_and_says_which_are_missing(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(script, monkeypatch, "--part", "mapping,scheduling,surrogates,analog") == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    best = {r["case"]: r["value"] for r in rows if r["subject"] == "brute force" and "search" not in r["case"]}
    beside = [r for r in rows if r["peer"] == "brute force" and "search" not in r["case"]]
    assert best
    assert beside
    assert all(r["value"] >= best[r["case"]] * (1 - 1e-9) for r in beside), "nothing is better than the best of all"
    exact = [r for r in rows if r["subject"] == "hasten" and "error of" in r["case"]]
    assert [r["value"] for r in exact] == [0, 0]  # cycles and slices, by rule
    for peer in script.PEERS:
        assert f"{peer} is missing in these figures" in err
    assert run(script, monkeypatch, "--part", "analog", "--require", "aihwkit") == 1
    assert "aihwkit is required, but missing" in capsys.readouterr().err.splitlines()[-1]


def test_a_peers_figures_are_rows_beside_ours(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answered(name: str, python: str | None, request: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
        assert (name, python) == ("rule4ml", "there")
        near = [{t: getattr(r, t) * 1.1 for t in ("lut", "ff", "dsp", "bram", "cycles")} for r in script.SYNTHESES]
        far = [{t: 3 * v for t, v in row.items()} for row in near]
        assert [n["bits"] for n in request["networks"]] == [r.bits for r in script.SYNTHESES]
        return {"rows": {"0.8.1": far, "1.1.0": near}, "seconds": 1.0}, ""

    monkeypatch.setattr(script, "peer_answer", answered)
    assert run(script, monkeypatch, "--part", "surrogates", "--rule4ml-python", "there", "--require", "rule4ml") == 0
    rows = json.loads(capsys.readouterr().out)
    theirs = {r["case"]: r["value"] for r in rows if r["subject"] == "rule4ml"}
    assert theirs["12 circuits of Vitis: error of cycles, percent"] == pytest.approx(200 * 0.1 / 2.1, rel=0.01)
    assert {r["peer"] for r in rows if r["subject"].startswith("hasten")} == {"rule4ml"}


def test_a_peer_that_fails_is_missing_with_its_last_line(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = tmp_path / "python"
    fails.write_text("#!/bin/sh\necho no such module in here >&2\nexit 1\n")
    fails.chmod(0o755)
    crashes = tmp_path / "crashing"
    crashes.write_text("#!/bin/sh\necho a note on something else >&2\nkill -SEGV $$\n")
    crashes.chmod(0o755)
    reasons = {
        str(fails): "no such module in here",
        str(crashes): "was ended by SIGSEGV",
        "/no/such/python": "cannot run",
    }
    for python, why in reasons.items():
        assert run(script, monkeypatch, "--part", "analog", "--aihwkit-python", python) == 0
        assert why in capsys.readouterr().err.splitlines()[-1]
