"""Rows of benchmarks: one convention of a ratio everywhere, above 1 when the subject is better than its peer."""

import ast
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(f.name for f in FOLDER.glob("*.py") if f.name not in ("rows.py", "peers.py"))
ELSEWHERE = tuple(name for name in SCRIPTS if name.endswith("_peer.py"))
"""Scripts that run in their peer's environment, and print no rows."""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a script as `python benchmarks/SCRIPT.py` would."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def get(name: str) -> ModuleType:
        return __import__(name)

    before = set(sys.modules)
    yield get
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("unit", "better", "worse"), [("s", 1, 4), ("B", 1, 4), ("cycles", 1, 4), ("tokens/s", 4, 1), ("1/s", 4, 1)]
)
def test_a_ratio_is_above_1_when_the_subject_is_better(module: Any, unit: str, better: float, worse: float) -> None:
    rows = module("rows")
    won = rows.compared("a case", "hasten", better, unit, "a peer", worse)
    assert (won.subject, won.value, won.peer, won.ratio) == ("hasten", better, "a peer", 4)
    assert rows.compared("a case", "hasten", worse, unit, "a peer", better).ratio == 0.25


def test_a_pure_number_says_which_way_is_better(module: Any) -> None:
    rows = module("rows")
    with pytest.raises(ValueError, match="less is better in perplexity"):
        rows.compared("perplexity", "hasten", 10, "1", "a peer", 20)
    assert rows.compared("perplexity", "hasten", 10, "1", "a peer", 20, less_is_better=True).ratio == 2
    assert rows.compared("found", "hasten", 10, "1", "a peer", 20, less_is_better=False).ratio == 0.5
    assert rows.compared("found", "hasten", 10, "1", "a peer", 0, less_is_better=False).ratio is None


def calls(script: str, name: str) -> list[ast.Call]:
    tree = ast.parse((FOLDER / script).read_text("utf-8"))
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name
    ]


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_makes_a_ratio_itself(script: str) -> None:
    """A row with a peer comes from `compared`, which knows the convention."""
    made = calls(script, "Row")
    if script not in ELSEWHERE:
        assert made
    for call in made:
        assert len(call.args) == 4, f"{script}:{call.lineno}"
        assert not call.keywords, f"{script}:{call.lineno}"
        assert not any(isinstance(a, ast.Starred) for a in call.args), f"{script}:{call.lineno}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_hasten_is_never_the_peer(script: str) -> None:
    for call in calls(script, "compared"):
        subject, peer = call.args[1], call.args[4]
        assert not (isinstance(peer, ast.Constant) and peer.value == "hasten"), f"{script}:{call.lineno}"
        assert not (isinstance(subject, ast.Constant) and subject.value in ("limit", "zigzag", "kvpress"))
        if isinstance(call.args[3], ast.Constant) and call.args[3].value == "1":
            assert len(call.args) > 6 or any(k.arg == "less_is_better" for k in call.keywords)


def test_kernels_have_hasten_as_subject(module: Any) -> None:
    rows = module("kernels").against("a scan", ["hasten", "mambapy", "slow"], [1.0, 49.5, 100.0])
    assert [(r.subject, r.peer, r.ratio) for r in rows] == [
        ("hasten", "mambapy", 49.5), ("hasten", "slow", 100), ("mambapy", None, None), ("slow", None, None),
    ]  # fmt: skip


def test_a_required_peer_that_is_missing_is_told_last_and_fails_the_run(
    module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = module("rows")
    peers = dict.fromkeys(module("decode").PEERS, "it gave no rate")
    seen = [rows.Row("decode", name, 1.0, "tokens/s") for name in ("transformers-fp32", "transformers-bf16", "hasten")]
    assert rows.told_missing(seen, peers, []) == 0
    assert "llama.cpp is missing" in capsys.readouterr().err.splitlines()[-1]
    assert rows.told_missing(seen, peers, ["llama.cpp"]) == 1
    assert "llama.cpp is required, but missing" in capsys.readouterr().err.splitlines()[-1]
    assert rows.told_missing(seen, peers, ["transformers-bf16"]) == 0
    assert rows.told_missing([], {"mambapy": "pip", "other": "pip"}, ["mambapy"]) == 1
    assert "mambapy is required" in capsys.readouterr().err.splitlines()[-1]
    assert rows.told_missing([*seen, rows.Row("a", "llama.cpp", 1.0, "s")], peers, ["llama.cpp"]) == 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_with_a_peer_takes_require_and_says_last_what_is_missing(script: str) -> None:
    """A peer is what is no part of hasten, torch or this script: it may be missing."""
    tree = ast.parse((FOLDER / script).read_text("utf-8"))
    peers = [n for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "PEERS"]
    outside = {"llama_cpp", "mambapy", "kvpress", "zigzag", "rule4ml", "aihwkit", "stream"} & set(_imported(tree))
    beside = any(peer in ast.dump(tree) for peer in ("peer_answer", "llama_cpp.server", "LlamaPeer", "OpenVino"))
    assert bool(peers) == bool(outside or beside) or script in ELSEWHERE
    if peers:
        assert calls(script, "takes_required")
        (end,) = calls(script, "told_missing")
        # What it returns is the script's exit code, and nothing is printed after it.
        (main,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "main"]
        assert isinstance(main.body[-1], ast.Return)
        assert ast.dump(main.body[-1].value) == ast.dump(end)  # type: ignore[arg-type]
        assert "sys.exit(main())" in ast.unparse(tree.body[-1])


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]


def test_zigzag_that_cannot_run_is_missing_with_what_is_wrong(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dse = module("dse")
    monkeypatch.setattr(dse, "LAYERS", {"small": dse.ConvShape(8, 4, 1, 1, 4, 4)})
    monkeypatch.setattr(dse, "rate", lambda calls, seconds=0.0: 1.0)
    fails = tmp_path / "python"
    fails.write_text("#!/bin/sh\necho no zigzag in here >&2\nexit 1\n")
    fails.chmod(0o755)
    for python, why in (("/no/such/python", "cannot run"), (str(fails), "no zigzag in here")):
        for required, code in (([], 0), (["--require", "zigzag"], 1)):
            monkeypatch.setattr(sys, "argv", ["dse.py", "--part", "cost", "--zigzag-python", python, *required])
            assert dse.main() == code
            last = capsys.readouterr().err.splitlines()[-1]
            assert why in last
            assert ("required, but missing" in last) == bool(code)


def test_kvpress_that_cannot_be_imported_is_missing(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    methods = module("kv_methods")
    monkeypatch.setitem(sys.modules, "kvpress", None)
    assert methods.presses(0.5) == {}
    assert methods.told_missing([], methods.PEERS, ["kvpress"]) == 1


def test_llama_cpp_without_a_module_that_it_needs_is_missing_with_its_name(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = module("decode")
    (tmp_path / "llama_cpp.py").write_text("import no_such_module_that_it_needs\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    missing: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        assert decode.llama_peer(stack, sys.executable, missing) is None
    assert decode.told_missing([], missing, ["llama.cpp"]) == 1
    assert "no_such_module_that_it_needs" in capsys.readouterr().err.splitlines()[-1]
