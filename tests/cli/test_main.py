"""The command line as a user meets it: real processes, exit codes, one line for every error."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .. import forked

VERBS = ("tune", "chat", "estimate", "measure", "probe", "papers", "check", "assets")


def run(*arguments: str, cwd: Path | None = None, timeout: float = 250) -> subprocess.CompletedProcess[str]:
    return forked.run(*forked.HASTEN, *arguments, cwd=cwd, timeout=timeout)


def run_anew(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """In a process that imports everything itself."""
    command = [sys.executable, *forked.HASTEN, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=250, check=False)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with a byte tokenizer, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "tiny"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=alphabet[0]).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    return folder


def test_help_teaches() -> None:
    for verb in VERBS:
        done = run_anew(verb, "--help")
        assert done.returncode == 0
        assert "Usage" in done.stdout
    assert run_anew("--version").stdout.startswith("hasten ")


@pytest.mark.slow
def test_json_is_one_document(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100,
    }))  # fmt: skip
    papers = json.loads(run("papers", "--json").stdout)
    cards = Path(__file__).parents[2] / "src" / "hasten" / "papers" / "cards"
    assert [p["slug"] for p in papers] == sorted(file.stem for file in cards.glob("*.toml"))
    assert {"slug", "title", "field", "status"} <= set(papers[0])
    assert json.loads(run("papers", "mamba", "--json").stdout)["slug"] == "mamba"
    assert {a["name"] for a in json.loads(run("assets", "--json").stdout)} >= {"brown", "smollm2-135m-instruct"}
    costs = json.loads(run("estimate", str(config), "--on", "h100", "--on", "pi5", "--json").stdout)
    assert [c["device"] for c in costs] == ["h100", "pi5"]
    assert costs[0]["latency"] < costs[1]["latency"]
    page = tmp_path / "page.html"
    changed = run("estimate", str(config), "--on", "h100", "--with", "int4", "--with", "layers-1", "--page", str(page))
    assert changed.returncode == 0, changed.stderr
    assert len(changed.stdout.splitlines()) > 5  # piped: aligned text alone
    assert "without layer 0" in changed.stdout
    assert "\x1b" not in changed.stdout
    assert f"wrote {page}" in changed.stderr
    assert page.read_text("utf-8").startswith("<!doctype html>")
    checks = json.loads(run("check", "attention-io", "--quick", "--json").stdout)
    assert {"claim", "paper", "seen", "verdict", "seconds"} <= set(checks[0])


BAD: dict[str, tuple[str, ...]] = {
    "missing gguf": ("tune", "none.gguf"),
    "empty gguf": ("tune", "empty.gguf"),
    "garbage gguf": ("tune", "garbage.gguf"),
    "truncated gguf": ("measure", "truncated.gguf"),
    "unknown architecture": ("estimate", "odd.json", "--on", "h100"),
    "broken json": ("estimate", "broken.json", "--on", "h100"),
    "empty text": ("tune", "--text", "empty.txt"),
    "not UTF-8": ("tune", "--text", "latin.txt"),
    "wrong unit": ("estimate", "tiny.json", "--on", "unit.toml"),
    "missing field": ("estimate", "tiny.json", "--on", "field.toml"),
    "no such device": ("estimate", "tiny.json", "--on", "abacus"),
    "a chip of crossbars beside a device": ("estimate", "tiny.json", "--on", "isaac", "--on", "h100"),
    "an array of cores without a schedule": ("estimate", "tiny.json", "--on", "cores.toml"),
    "a schedule of crossbars": ("estimate", "tiny.json", "--on", "isaac", "--schedule", "fused"),
    "no such subject": ("estimate", "nothing-of-that-name"),
    "no such factory": ("estimate", "net.py:build", "--on", "h100"),
    "factory that exits": ("estimate", "exits.py:build", "--on", "h100"),
    "factory with a syntax error": ("estimate", "syntax.py:build", "--on", "h100"),
    "inputs that do not fit, estimated": ("estimate", "misfit.py:build", "--on", "h100"),
    "inputs that do not fit, measured": ("measure", "misfit.py:build"),
    "no such paper": ("papers", "mambo"),
    "no such field": ("papers", "--field", "cooking"),
    "no such check": ("check", "mambo"),
    "a budget that is no number": ("check", "fusemax", "--budget", "nan"),
    "an endless budget": ("check", "fusemax", "--budget", "inf"),
    "a negative budget": ("check", "fusemax", "--budget", "-1"),
    "no paper to check": ("check",),
    "a paper and all": ("check", "fusemax", "--all"),
    "a field without papers": ("check", "--field", "cooking"),
    "a field without checks": ("check", "--field", "multimodal"),
    "quick and long": ("check", "fusemax", "--quick", "--long"),
    "no such claim": ("check", "fusemax", "--claim", "F99"),
    "a negative seed": ("check", "fusemax", "--seed", "-1"),
    "results kept in another file": ("check", "fusemax", "--quick", "--save", "net.py"),
    "results that are none": ("papers", "--results", "garbage.gguf"),
    "results that are missing": ("papers", "--results", "none.jsonl"),
    "a page without results": ("papers", "--page", "claims.html"),
    "a page where none can be": ("papers", "--results", "empty.gguf", "--page", "net.py/claims.html"),
    "no such asset": ("assets", "get", "gold"),
    "not a study": ("tune", "--study", "garbage.gguf"),
    "negative floor": ("tune", "--floor", "-1"),
    "no prompt": ("tune", "--prompt", "0"),
    "no budget": ("tune", "--budget", "0"),
    "bad threads": ("probe", "--threads", "0"),
    "unknown option": ("tune", "--fast"),
    "missing argument": ("assets", "get"),
    "not a number": ("tune", "--prompt", "many"),
    "no such verb": ("hurry",),
}


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from importlib import resources

    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.gguf").touch()
    (folder / "garbage.gguf").write_bytes(os.urandom(5000))
    (folder / "truncated.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (10**12).to_bytes(8, "little") * 2)
    (folder / "odd.json").write_text('{"model_type": "no-such-architecture"}')
    (folder / "broken.json").write_text("{")
    (folder / "tiny.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, '
        '"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100}'
    )
    (folder / "empty.txt").write_text("  \n")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "net.py").write_text("def build():\n    raise RuntimeError('broken on purpose')\n")
    (folder / "exits.py").write_text("import sys\nsys.exit(3)\n")
    (folder / "syntax.py").write_text("def build(:\n")
    (folder / "misfit.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Linear(3, 4), torch.zeros(2, 5)\n"
    )
    device = (resources.files("hasten.hardware") / "catalogue" / "h100.toml").read_text("utf-8")
    cores = "cores = 2\nmacs = 16\non_chip = 1024\nbandwidth = 1e9\nclock = 1e8\n"
    (folder / "cores.toml").write_text('name = "x"\ntitle = "X"\n' + cores)
    (folder / "unit.toml").write_text(device.replace("TB/s", "TB", 1))
    (folder / "field.toml").write_text("\n".join(x for x in device.splitlines() if not x.startswith("title")))
    return folder


@pytest.mark.slow_except(every=3)
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(case: str, bad_files: Path) -> None:
    done = run(*BAD[case], cwd=bad_files)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.strip() and not text.startswith("  ")]
    assert line.startswith("error: ")
    assert len(line) < 400
    assert done.stdout == ""


def test_what_a_factory_prints_does_not_enter_the_document(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\ndef build():\n    print('building')\n    return torch.nn.Linear(3, 4), torch.zeros(2, 3)\n"
    )
    done = run_anew("measure", "net.py:build", "--json", cwd=tmp_path)  # test_bad_files.py has estimate
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert "building" in done.stderr


def test_debug_shows_where_an_error_is_from() -> None:
    done = run("--debug", "papers", "mambo")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_a_reader_that_leaves_early_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "hasten.cli", "papers", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read().strip() == b""


def tune(model: Path, out: Path, *more: str) -> list[str]:
    return [
        "tune", str(model), "--prompt", "64", "--new-tokens", "8", "--runs", "1", "--threads", "2",
        "--out", str(out), *more,
    ]  # fmt: skip


def test_tune_leaves_a_model_that_loads_and_resumes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    import hasten
    from hasten import cli, processes
    from hasten.hardware import load_device

    monkeypatch.setattr("hasten.tuning.tune.probe", lambda **_: load_device("cpu2"))  # half a minute, and twice

    def called(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["hasten", *words])
        with processes.torch_threads(torch.get_num_threads()):  # the command sets others
            code = cli._run()
        return code, *capsys.readouterr()

    # --budget bounds a run, so it is set to what no machine takes: only the trials are to count here.
    arguments = tune(
        tiny_model, tmp_path, "--budget", "1e9", "--trials", "3", "--study", str(tmp_path / "study.db"), "--json"
    )
    code, out, err = called(*arguments)
    assert code == 0, err
    result = json.loads(out)
    assert sum(c["measured"] is not None for c in result["combinations"]) == 3
    assert "<html" in (tmp_path / "report.html").read_text("utf-8")[:500]
    model = hasten.load(tmp_path / "tuned.json")
    assert model.generate(torch.randint(0, 256, (1, 20)), max_new_tokens=5, do_sample=False).shape == (1, 25)
    again = json.loads(called(*arguments)[1])

    def figures(tuned: dict[str, Any]) -> dict[str, Any]:  # by name: the order is the predictions', of this moment
        return {c["title"]: c["measured"] for c in tuned["combinations"] if c["measured"]}

    assert figures(again) == figures(result)  # kept, not measured anew
    code, _, err = called(
        *tune(tiny_model, tmp_path, "--batch", "2", "--trials", "1", "--study", str(tmp_path / "study.db"))
    )
    assert code == 2
    assert "error: " in err
    (tmp_path / "tuned.json").write_text("{}")
    with pytest.raises(hasten.errors.HastenError, match="not a tuned model"):  # type: ignore[attr-defined]
        hasten.load(tmp_path / "tuned.json")


@pytest.mark.slow
def test_an_interrupt_keeps_the_study(tiny_model: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.db"
    # With less than this machine could be probed again in.
    command = [sys.executable, "-m", "hasten.cli", *tune(tiny_model, tmp_path, "--study", str(study), "--budget", "79")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line)
        if "prefill" in line and "unchanged" not in line:
            process.send_signal(signal.SIGINT)
            break
    rest: Any = process.communicate(timeout=120)[1]
    assert process.returncode == 130, "".join(seen) + rest
    assert "Traceback" not in rest
    assert study.exists()


@pytest.mark.parametrize(
    ("words", "restarted"),
    [
        (["check", "no-such-paper"], True),
        (["--debug", "search", "no-such-space"], True),
        (["tune", "check"], False),
        (["--version"], False),
        ([], False),
    ],
)
def test_what_trains_is_started_in_huge_pages(
    words: list[str], restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hasten import cli

    class Restarted(Exception):
        pass

    def restart() -> None:
        raise Restarted

    def prepare() -> None:
        raise SystemExit

    monkeypatch.setattr(sys, "argv", ["hasten", *words])
    monkeypatch.setattr(cli, "restart_in_huge_pages", restart)
    monkeypatch.setattr(cli, "prepare", prepare)  # before anything is written
    with pytest.raises(Restarted if restarted else SystemExit):
        cli.main()


@pytest.mark.slow
def test_an_early_interrupt_is_quiet(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "hasten.cli", "probe", "--refresh"],
        env={**os.environ, "HASTEN_CACHE": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(6)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
