"""The benchmark of decoding: a whole run at a tiny size, what ik_llama.cpp's bench prints, and what was wanted."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hasten.kernels.compiled import native

FOLDER = Path(__file__).parents[2] / "benchmarks"

# As its json_printer writes them: a prompt of 24 tokens, and 4 new ones after such a prompt ("-gp": new ones counted).
BENCH = """[
  {
    "build_commit": "8337e4cd",
    "build_number": 4600,
    "blas": false,
    "cpu_info": "a \\"fast\\" one",
    "model_filename": "m.gguf",
    "n_batch": 512,
    "n_threads": 2,
    "type_k": "f16",
    "flash_attn": true,
    "ser": "-1,0",
    "repack": false,
    "n_prompt": 24,
    "n_gen": 0,
    "test_time": "2026-08-15T19:35:03Z",
    "avg_ns": 24000000,
    "stddev_ns": 0,
    "avg_ts": 1000.000000,
    "stddev_ts": 0.000000,
    "test": "pp24",
    "samples_ns": [ 24000000 ],
    "samples_ts": [ 1000 ]
  },
  {
    "build_commit": "8337e4cd",
    "n_threads": 2,
    "n_prompt": 24,
    "n_gen": 4,
    "avg_ts": 125.000000,
    "test": "tg4@pp24",
    "samples_ns": [ 32000000 ],
    "samples_ts": [ 125 ]
  }
]
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield __import__("decode")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of 64 columns, which no weights of are large."""
    monkeypatch.syspath_prepend(str(FOLDER.parent / "scripts"))
    path = tmp_path / "tiny.Q4_0.gguf"
    module: ModuleType = __import__("random_gguf")
    module.write(path, (64, 2, 2, 1, 96, 320), "Q4_0")
    return path


@pytest.mark.skipif(native() is None, reason="the limits need compiled kernels")
def test_it_runs_with_a_bench_and_without_llama_cpp(
    script: Any, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench.json").write_text(BENCH)
    bench = tmp_path / "llama-bench"
    bench.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "called"}\ncat {tmp_path / "bench.json"}\n')
    bench.chmod(0o755)
    small = "--prompt 24 --new-tokens 4 --batch 2 --runs 2 --threads 1 --llama-python /no/such/python"
    given = ["--json", "--model", str(tiny), "--ik-llama-bench", str(bench), "--require", "llama.cpp", *small.split()]
    monkeypatch.setattr(sys, "argv", ["decode.py", *given])
    monkeypatch.setattr(script, "MIB", 1 << 14)  # a measured memory of some MB
    threads = torch.get_num_threads()
    try:
        assert script.main() == 1
    finally:
        torch.set_num_threads(threads)
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("llama.cpp is required, but missing")
    assert "/no/such/python cannot run" in err.splitlines()[-1]
    rows = json.loads(out)
    of = {(r["case"].removeprefix("tiny.Q4_0: "), r["subject"], r["peer"]): r for r in rows}
    assert of["prefill, prompt 24", "ik_llama.cpp", None]["value"] == 1000
    assert of["decode after 24", "ik_llama.cpp", None]["value"] == 125
    for case, limit in (("prefill, prompt 24", script.ARITHMETIC), ("decode after 24", script.BANDWIDTH)):
        share = of[case, "hasten", limit]
        assert share["ratio"] == pytest.approx(share["value"] / of[case, limit, None]["value"])
        assert share["ratio"] > 0
    assert ("decode after 32, 2 texts", "hasten", script.BANDWIDTH) in of
    # Both ways of packing in the first round, and the better one again.
    called = (tmp_path / "called").read_text().splitlines()
    assert ["-rtr 0" in c for c in called] == [True, False, True]
    assert "-gp 24,4" in called[0]
    wanted = [r for r in rows if r["peer"] == "target"]
    assert [r["case"] for r in wanted] == ["tiny.Q4_0: prefill, prompt 24, times ik_llama.cpp"]
    assert wanted[0]["value"] == pytest.approx(of["prefill, prompt 24", "hasten", "ik_llama.cpp"]["ratio"])


def test_a_bench_may_say_something_before_its_figures(script: Any) -> None:
    peers = sys.modules["peers"]
    assert peers.read_bench(f"[warning] an old build\n{BENCH}") == (1000.0, 125.0)
    for text in ("", "[\n]\n", "no figures", '[\n  {"n_prompt": 1}\n]'):
        with pytest.raises(RuntimeError, match="printed no figures"):
            peers.read_bench(text)


def test_settings_of_a_peer_are_chosen_by_phase(script: Any) -> None:
    best = script.Best()
    best.add((100.0, 10.0), "off")
    best.add((90.0, 12.0), "on")
    assert (best.rates, best.settings) == ((100.0, 12.0), ["off", "on"])


def test_everybody_has_the_file_that_they_are_fastest_with(script: Any) -> None:
    case = script.Case(32, 4)

    def seen(**rates: tuple[float, float]) -> dict[Any, dict[str, Any]]:
        return {case: {name.replace("_", "."): script.Best(rate) for name, rate in rates.items()}}

    files = {
        "m.Q4_0": seen(hasten=(100.0, 10.0), llama_cpp=(200.0, 8.0)),
        "m.Q8_0": seen(hasten=(110.0, 5.0), llama_cpp=(90.0, 9.0)),
        "other.Q8_0": seen(hasten=(1.0, 1.0)),
    }
    rows = script.fastest(files)
    assert [(r.case, r.value, r.peer, r.ratio) for r in rows] == [
        ("m, hasten by Q8_0 and llama.cpp by Q4_0: prefill, prompt 32", 110, "llama.cpp", 110 / 200),
        ("m, hasten by Q4_0 and llama.cpp by Q8_0: decode after 32", 10, "llama.cpp", 10 / 9),
    ]


def test_no_clock_runs_while_a_call_sets_up(script: Any, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor while a session is made: it is there, and was used for a token."""
    model = script.LanguageModel(script.load_packed(tiny).network)
    asked: list[int] = []
    generate, session = type(model).generate, type(model).session

    def slow(self: Any, ids: torch.Tensor, **settings: Any) -> Any:
        script.time.sleep(0.5)
        return generate(self, ids, **settings)

    def watched(self: Any, batch: int, capacity: int, *given: Any) -> Any:
        found = session(self, batch, capacity, *given)
        asked.append(id(found[0]))
        return found

    monkeypatch.setattr(type(model), "generate", slow)
    monkeypatch.setattr(type(model), "session", watched)
    prefill, decode = script.hasten_run(model, script.Case(24, 4, 2), list(range(64)))
    assert prefill > 2 * 24 / 0.5
    assert decode > 2 * 4 / 0.5
    assert len(set(asked)) == 1  # the same session in all calls
    assert script.set_up(model, list(range(64)), 1) >= 0.5


def test_a_file_packed_anew_is_kept(script: Any, tmp_path: Path) -> None:
    """And is named by its new type: where it is there, nobody is asked for it."""
    peers = sys.modules["peers"]
    (tmp_path / "SmolLM2-135M.Q8_0.gguf").write_bytes(b"")
    for name in ("SmolLM2-135M.Q4_1.gguf", "SmolLM2-135M-F16.gguf", "SmolLM2-135M.gguf"):
        found = peers.requantized("/no/such/python", Path(name), "Q8_0", tmp_path)
        assert found == tmp_path / "SmolLM2-135M.Q8_0.gguf"


def test_llama_cpp_answers_from_another_process(script: Any, tiny: Path) -> None:
    pytest.importorskip("llama_cpp")
    peers = sys.modules["peers"]
    with peers.LlamaPeer(sys.executable) as peer:
        with pytest.raises(RuntimeError, match="does not load"):
            peer.ask("load", path="/no/such/file.gguf", threads=1)
        peer.ask("load", path=str(tiny), threads=1)
        ids = [[5, 6, 7, 8], [9, 10, 11, 12]]
        found = peer.ask("run", ids=ids, new=3, flash=True, ubatch=512)
        assert [len(t) for t in found["tokens"]] == [4, 4]
        assert found["prefill"] > 0
        assert found["decode"] > 0
        alone = peer.ask("run", ids=ids[1:], new=3, flash=False, ubatch=512)
        assert alone["tokens"][0] == found["tokens"][1]
