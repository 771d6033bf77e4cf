"""The benchmark of servers: a whole run at a tiny size, without peers, and how its figures become rows."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield __import__("serve")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.mark.slow
def test_it_runs_without_peers(
    script: Any, talker: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "has_server", lambda python: False)
    monkeypatch.setattr(script.shutil, "which", lambda program: None)
    small = "--clients 1,3 --rounds 1 --requests 1 --prompt 12 --prefix 80 --talk 100 --new-tokens 5 --threads 1"
    monkeypatch.setattr(sys, "argv", ["serve.py", "--json", "--model", str(talker), *small.split()])
    assert script.main() == 0
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert {r["subject"] for r in rows} == {"hasten"}
    assert all(r["value"] > 0 for r in rows)
    cases = [r["case"] for r in rows]
    assert len(cases) == len(set(cases)) == 2 * 2 * 3 + 2 + 1
    assert rows[-1]["peer"] == "target"
    for peer in script.PEERS:
        assert f"{peer} is missing in these figures" in err


def test_what_was_wanted_stands_beside_what_was_seen(script: Any) -> None:
    loads = {}
    for case in ("cold", "shared prefix"):
        for count, rate in ((1, 90.0), (4, 180.0)):
            loads[case, count, "hasten"] = script.Load(rate, 0.1, 0.2)
            loads[case, count, "llama_cpp.server"] = script.Load(100.0, 0.2, 0.3)
    turns = {"hasten": [(1.0, 0.5), (2.0, 0.1)], "llama_cpp.server": [(1.0, 0.4)]}
    rows = script.rows_of(loads, turns, Namespace(clients=[1, 4], talk=2000))
    met = {r.case: r.ratio for r in rows if r.peer == "target"}
    assert met["cold, 1 client, times llama_cpp.server"] == pytest.approx(0.9)
    assert met["cold, 4 clients, times llama_cpp.server"] == pytest.approx(1.8 / 1.5)
    assert met["second turn, times sooner than the first"] == pytest.approx(10 / 5)
    beside = next(r for r in rows if r.subject == "hasten" and r.case == "cold, 4 clients, first token, p95")
    assert (beside.peer, beside.ratio) == ("llama_cpp.server", pytest.approx(1.5))


def test_a_server_that_does_not_start_is_told_of(script: Any) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such model')"]
    with (
        pytest.raises(RuntimeError, match="does not start: no such model"),
        script.started("one", lambda port: command),
    ):
        pass
