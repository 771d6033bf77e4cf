"""Habits of the shell, held by every command that is registered: a later one needs a line in `CALLS` alone.

What a command cannot hold is in the table of docs/shell.md with its reason, which the tests read, and is tested to be
needed still.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import inspect
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import typing
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from hasten import cli
from hasten.cli import messages, streams
from hasten.data import assets
from hasten.hardware import load_device
from hasten.papers.registry import VARIABLE
from hasten.papers.results import Result, ResultFile
from hasten.tuning import tune as tuning
from hasten.tuning.outcome import TuneResult

Words = tuple[str, ...]
ROOT = Path(__file__).parents[2]

# What each command is called with here: quick, and it prints a result.
CALLS: dict[Words, Words] = {
    ("tune",): ("none.gguf",),
    ("chat",): ("talker", "--temperature", "0", "--max-tokens", "4"),
    ("serve",): ("talker", "--check", "--port", "0"),
    ("estimate",): ("tiny.json", "--on", "h100"),
    ("measure",): ("net.py:build",),
    ("search",): ("p.py:good", "--trials", "3"),
    ("probe",): (),
    ("rules",): ("net.py:plain",),
    ("grow",): ("net.py:two", "--widen", "0=6"),
    ("papers",): ("--field", "training"),
    ("check",): ("doubling", "--quick"),
    ("assets", "list"): (),
    ("assets", "get"): ("words",),
    ("assets", "verify"): ("words",),
    ("assets", "remove"): ("words",),
}
# Where an option that names what is written needs another beside it.
WITH: dict[tuple[Words, str], Words] = {(("papers",), "page"): ("--results", "results.jsonl")}

TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 100,
}  # fmt: skip
NETWORK = """
import logging, warnings, torch
def build():
    warnings.warn("of a library", FutureWarning)
    logging.getLogger("transformers").warning("a library's notice")
    return torch.nn.Linear(3, 4), torch.zeros(2, 3)
def plain():
    return torch.nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8)
def two():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)), torch.ones(5, 3)
"""
PROBLEMS = """
from hasten.search import Objective, Problem, Space, integer
good = Problem("good", Space([integer("n", 1, 12)]), (Objective("cost"),), lambda params: {"cost": params["n"]})
"""
CARD = """
title = "Doubling a vector"
arxiv = "2401.00001"
year = 2024
field = "training"
summary = "Twice as much ★ of everything."
claims = [{ id = "D1", metric = "sum of a doubled vector", value = "twice ★ the sum" }]
"""
CHECKS = """
from hasten.papers.experiment import Experiment, Seen, check
@check("D1")
def total(experiment: Experiment) -> Seen:
    return experiment.judge("2.000 ★", holds=True)
"""


def commands(app: typer.Typer = cli.app, words: Words = ()) -> Iterator[tuple[Words, Callable[..., Any]]]:
    """Every command, groups that can be called without one included, and the function that is registered."""
    for info in app.registered_commands:
        assert info.callback is not None
        yield (*words, info.name or info.callback.__name__), info.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands(group.typer_instance, (*words, str(group.name)))


COMMANDS = dict(commands())


class Option(NamedTuple):
    """A parameter of a command: ``--option``, its type, and what typer was told about it."""

    command: Words
    name: str
    kind: Any
    told: Any

    @property
    def numeric(self) -> bool:
        return self._is(int) or self._is(float)

    @property
    def written(self) -> bool:
        """Whether it names what the command writes."""
        return bool(getattr(self.told, "writable", False))

    @property
    def of_text(self) -> bool:
        return self._is(str) or self._is(Path)

    def _is(self, kind: type) -> bool:
        return kind in (self.kind, *typing.get_args(self.kind))

    def given(self, value: str) -> Words:
        """The words of a call with this value."""
        words = list(CALLS[self.command])
        if isinstance(self.told, typer.models.ArgumentInfo):
            return (*self.command, value, *words[not words[0].startswith("-") if words else 0 :])
        return (*self.command, *words, *WITH.get((self.command, self.name), ()), f"--{self.name}", value)


def options() -> list[Option]:
    found = []
    for words, function in COMMANDS.items():
        for parameter in inspect.signature(function).parameters.values():
            if typing.get_origin(parameter.annotation) is typing.Annotated:
                kind, told, *_ = typing.get_args(parameter.annotation)
                long = [d.removeprefix("--") for d in told.param_decls or () if d.startswith("--")]
                found.append(Option(words, [*long, parameter.name.replace("_", "-")][0], kind, told))
    return found


OPTIONS = options()


def exempt() -> dict[tuple[str, str], str]:
    """(command, habit) -> why it is not held, as docs/shell.md has it."""
    text = (ROOT / "docs" / "shell.md").read_text("utf-8")
    table = text.partition("## What cannot be")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| (.+?) \| (.+?) \|$", table, re.M)
    return {(command, habit): why for command, habit, why in rows}


EXEMPT = exempt()


def every(habit: str, of: list[Any] | None = None) -> Any:
    """Parametrizes over all commands (or their options); where the habit is exempt, the test must fail."""
    cells = []
    for one in list(COMMANDS) if of is None else of:
        words = one.command if isinstance(one, Option) else one
        name = " ".join(words) + (f" --{one.name}" if isinstance(one, Option) else "")
        why = EXEMPT.get((name, habit))
        marks = [pytest.mark.xfail(reason=why, strict=True)] if why else []
        cells.append(pytest.param(one, id=name, marks=marks))
    return pytest.mark.parametrize("one", cells)


def test_every_command_is_called_here_and_every_exemption_is_of_one() -> None:
    assert CALLS.keys() == COMMANDS.keys()
    names = {" ".join(words) for words in COMMANDS} | {f"{' '.join(o.command)} --{o.name}" for o in OPTIONS}
    assert {command for command, _ in EXEMPT} <= names


@functools.cache
def tuned() -> TuneResult:
    spec = importlib.util.spec_from_file_location("results_of_tuning", ROOT / "tests" / "report" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_result()  # type: ignore[no-any-return]


class Done(NamedTuple):
    code: int
    out: str
    err: str


class Shell:
    """The command line in this process, with streams as a shell may give them: quicker than a new one each time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.worked: list[str] = []

    def __call__(self, *words: str, out: Any = "utf-8", err: Any = "utf-8") -> Done:
        """Runs it; ``out`` and ``err`` are an encoding, a stream, or None for a closed one."""
        buffers = io.BytesIO(), io.BytesIO()
        given = [
            io.TextIOWrapper(buffer, stream, line_buffering=stream == err) if isinstance(stream, str) else stream
            for stream, buffer in zip((out, err), buffers, strict=True)
        ]
        self.monkeypatch.setattr(sys, "argv", ["hasten", *words])
        self.monkeypatch.setattr(sys, "stdin", io.StringIO("a question\n"))
        before = signal.getsignal(signal.SIGINT)
        standard = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = given
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
            for stream in (sys.stdout, sys.stderr):
                if stream is not None and not stream.closed:
                    stream.flush()
        finally:
            mine = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = standard
            signal.signal(signal.SIGINT, before)
        shown = [
            b.getvalue().decode(s if isinstance(s, str) else "utf-8") for b, s in zip(buffers, (out, err), strict=True)
        ]
        for stream, source in zip(mine, (out, err), strict=True):  # or what they write into is closed with them
            if source is None:
                stream.close()
            elif isinstance(stream, io.TextIOWrapper) and not stream.closed:
                stream.detach()
        return Done(int(ended.value.code or 0), *shown)


@pytest.fixture
def shell(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """The commands in a folder of its own, with what takes minutes replaced by its result."""
    (tmp_path / "home").mkdir()
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    (tmp_path / "talker").symlink_to(folder)
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "p.py").write_text(PROBLEMS)
    (tmp_path / "shelf" / "cards").mkdir(parents=True)
    (tmp_path / "shelf" / "checks").mkdir()
    (tmp_path / "shelf" / "cards" / "doubling.toml").write_text(CARD, "utf-8")
    (tmp_path / "shelf" / "checks" / "doubling.py").write_text(CHECKS, "utf-8")
    ResultFile(tmp_path / "results.jsonl").add(
        Result(slug="doubling", claim="D1", metric="m", paper="p", seen="saw ★", verdict="holds", seconds=2.0)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, value in {
        **messages._ENVIRONMENT, "HOME": str(tmp_path / "home"), "HASTEN_CACHE": str(tmp_path / "cache"),
        VARIABLE: str(tmp_path / "shelf"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    words = b"words\n"
    entry = assets.Asset(
        name="words", title="Words ★", client="pip", package="p", version="1", size=6, licence="MIT", read="f",
        files=(assets.AssetFile(path="a/words.txt", sha256=hashlib.sha256(words).hexdigest(), bytes=6),),
    )  # fmt: skip
    entry.folder.mkdir(parents=True)
    entry.path.write_bytes(words)
    monkeypatch.setattr(assets, "assets", lambda: [entry])
    found = Shell(monkeypatch)

    def tune(*_: Any, **__: Any) -> TuneResult:
        found.worked.append("tune")
        return tuned()

    def probe(**_: Any) -> Any:
        found.worked.append("probe")
        return load_device("cpu2")

    monkeypatch.setattr(tuning, "tune", tune)
    monkeypatch.setattr("hasten.hardware.probe", probe)
    monkeypatch.setattr(streams, "_documents", None)
    monkeypatch.setattr(cli, "keep_stdout_for_documents", lambda: None)  # it would take this process's own stdout
    return found


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    line = text.rstrip("\n")
    assert line.startswith("error: ")
    assert "unexpected" not in line
    assert len(line) < 400
    return line


GROUPS: list[Words] = [(), ("assets",)]


@pytest.mark.parametrize("words", [*GROUPS, *COMMANDS], ids=" ".join)
def test_both_ways_to_ask_for_help(words: Words, shell: Shell) -> None:
    short, long = shell(*words, "-h"), shell(*words, "--help")
    assert short == long
    assert (short.code, short.err) == (0, "")
    assert "Usage: hasten" in short.out
    for option in ("-q", "-v", "--quiet", "--verbose"):
        assert option in short.out


@every("runs")
def test_it_runs(one: Words, shell: Shell) -> None:
    done = shell(*one, *CALLS[one])
    assert done.code == 0, done.err
    assert done.out
    assert "Traceback" not in done.err


@pytest.mark.slow_cases("search*", "serve*")
@every("full output")
def test_a_full_disk_under_the_output_is_one_line(one: Words, shell: Shell) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = shell("-q", *one, *CALLS[one], out=full)
        assert done.code == 2
        assert "No space left on device" in one_line(done.err)
    with open("/dev/full", "w", encoding="utf-8") as full:
        assert shell(*one, "-h", out=full).code == 2


@pytest.mark.slow_cases("search*", "serve*")
@every("closed output")
def test_closed_output_is_one_line(one: Words, shell: Shell) -> None:
    done = shell("-q", *one, *CALLS[one], out=None)
    assert done.code == 2
    assert "the standard output: it is closed" in one_line(done.err)


@pytest.mark.slow_cases("search*", "serve*")
@every("closed messages")
def test_messages_that_nobody_can_read_change_nothing(one: Words, shell: Shell) -> None:
    assert shell("probe", "--threads", "0", err=None).code == 2
    with open("/dev/full", "w", encoding="utf-8") as full:
        assert shell("papers", "none", err=full).code == 2
        done = shell(*one, *CALLS[one], err=full)
    assert done.code == 0
    assert done.out


@pytest.mark.slow_cases("search*", "serve*")
@every("a reader that has gone")
def test_a_reader_that_has_gone_is_no_error(one: Words, shell: Shell) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as pipe:
        done = shell("-q", *one, *CALLS[one], out=pipe)
    assert (done.code, done.err) == (0, "")


@pytest.mark.slow_except("*-ascii")
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@every("another encoding")
def test_what_an_encoding_lacks_is_a_question_mark(one: Words, encoding: str, shell: Shell) -> None:
    done = shell(*one, *CALLS[one], out=encoding, err=encoding)
    assert done.code == 0, done.err
    assert done.out
    assert "Traceback" not in done.err


NUMERIC = [o for o in OPTIONS if o.numeric]


@pytest.mark.slow_except("*-nan", "*--1", "*-many")
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e999", "many"])
@every("numbers", NUMERIC)
def test_no_number_is_refused_before_any_work(one: Option, value: str, shell: Shell) -> None:
    done = shell(*one.given(value))
    assert done.code == 2
    assert one.name in one_line(done.err).replace("_", "-")
    assert shell.worked == []
    assert done.out == ""


@every("home", [o for o in OPTIONS if o.of_text])
def test_home_is_spelt_out_in_every_path(one: Option, shell: Shell) -> None:
    done = shell(*one.given("~nobody-of-that-name/file"))
    assert done.code == 2
    assert "there is no such user" in one_line(done.err)


WRITTEN = [o for o in OPTIONS if o.written]


@every("home", WRITTEN)
def test_what_is_written_at_home_is_there(one: Option, shell: Shell, tmp_path: Path) -> None:
    done = shell(*one.given("~/found/there.toml"))
    assert done.code == 0, done.err
    assert (tmp_path / "home" / "found" / "there.toml").exists() or (one.command, one.name) == (("tune",), "study")
    assert not (tmp_path / "~").exists()


def test_the_cache_may_be_at_home(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").rename(tmp_path / "home" / "kept")
    monkeypatch.setenv("HASTEN_CACHE", "~/kept")
    assert shell("assets", "get", "words").out.strip() == str(
        tmp_path / "home" / "kept" / "assets" / "words-1" / "words.txt"
    )


@pytest.mark.parametrize("where", ["/proc/none/x", "/proc", "tiny.json/x"])
@every("unwritable", WRITTEN)
def test_where_nothing_can_be_written_is_told_before_any_work(one: Option, where: str, shell: Shell) -> None:
    done = shell(*one.given(where))
    assert done.code == 2
    assert re.search(r"cannot (write|make)|is a directory", one_line(done.err))
    assert shell.worked == []
    assert done.out == ""


@every("full disk", WRITTEN)
def test_a_full_disk_is_told_before_any_work(one: Option, shell: Shell) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        done = shell(*one.given("new/place.toml"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 2
    assert "cannot write" in one_line(done.err)
    assert shell.worked == []


@every("saved first", WRITTEN)
def test_results_are_saved_before_they_are_shown(one: Option, shell: Shell, tmp_path: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        shell(*one.given("found.toml"), out=full)
    found = tmp_path / "found.toml"
    if one.command == ("tune",):  # what is kept in its study is kept while it works, which is left out here
        found = tmp_path / "found.toml" / "tuned.json" if one.name == "out" else tmp_path / "report.html"
    assert found.stat().st_size


@pytest.mark.slow_cases("search*", "serve*")
@every("narrow")
def test_a_piped_table_is_plain_and_uncut_however_narrow_the_terminal(
    one: Words, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for width in ("40", "400"):
        monkeypatch.setenv("COLUMNS", width)
        monkeypatch.setenv("HASTEN_CACHE", "cache")
        out = shell(*one, *CALLS[one]).out
        # Times differ, and so do their units and how wide their column is.
        shown.append(re.sub(r" +", " ", re.sub(r"[-\d.]+ *(?:[mµn]?s\b)?", "#", out)))
        assert not re.search("[\u2500-\u257f\x1b…]", out)
        for path in Path().glob("*.db"):
            path.unlink()
        Path("cache/assets/words-1").mkdir(exist_ok=True)
        Path("cache/assets/words-1/words.txt").write_bytes(b"words\n")
    assert shown[0] == shown[1]


@pytest.mark.slow_cases("search*", "serve*")
@every("quiet and verbose")
def test_quiet_and_verbose_wherever_they_stand(one: Words, shell: Shell) -> None:
    for words in (("-q", *one, *CALLS[one]), (*one, *CALLS[one], "--quiet")):
        Path("cache/assets/words-1").mkdir(exist_ok=True)
        Path("cache/assets/words-1/words.txt").write_bytes(b"words\n")
        done = shell(*words)
        assert (done.code, done.err) == (0, ""), done.err
        assert done.out
    Path("cache/assets/words-1").mkdir(exist_ok=True)
    Path("cache/assets/words-1/words.txt").write_bytes(b"words\n")
    told = shell(*one, "-v", *CALLS[one])
    assert told.code == 0
    if one in (("measure",), ("estimate",)):
        assert ("of a library" in told.err) == (one == ("measure",))


@every("libraries")
def test_what_libraries_say_does_not_reach_a_user(one: Words, shell: Shell) -> None:
    done = shell(*one, *CALLS[one])
    assert not re.search(r"Warning|of a library|notice", done.err + done.out)


@every("json")
def test_json_is_one_strict_document(one: Words, shell: Shell) -> None:
    done = shell(*one, *CALLS[one], "--json")
    assert done.code == 0, done.err

    def refused(token: str) -> None:
        raise AssertionError(token)

    assert json.loads(done.out, parse_constant=refused) is not None
    assert done.out.isascii()


class _Interrupting(io.TextIOWrapper):
    def write(self, text: str) -> int:
        raise KeyboardInterrupt


@every("interrupt")
def test_an_interrupt_is_told_in_a_line(one: Words, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_Results", _Interrupting)
    done = shell("-q", *one, *CALLS[one])
    assert (done.code, done.err) == (130, "interrupted\n")


@every("interrupt", [o for o in WRITTEN if o.name in ("study", "save") and o.command != ("probe",)])
def test_an_interrupt_says_how_to_go_on(one: Option, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    match one.command:
        case ("tune",):
            monkeypatch.setattr(tuning, "tune", interrupted)
        case ("search",):
            Path("p.py").write_text(
                PROBLEMS.replace('{"cost": params["n"]}', "(_ for _ in ()).throw(KeyboardInterrupt)")
            )
        case _:
            Path("shelf/checks/doubling.py").write_text(
                CHECKS.replace("    return", "    raise KeyboardInterrupt\n    return")
            )
    done = shell(*one.given("kept.db"))
    assert done.code == 130
    assert "the same command goes on" in done.err
    assert done.err.splitlines()[-1] == "interrupted"
    if one.command != ("tune",):  # tests/tuning holds it for that
        assert Path("kept.db").exists()


def test_every_word_can_be_completed(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_HASTEN_COMPLETE", "complete_bash")
    for words in COMMANDS:
        typed = ["hasten", *words[:-1], words[-1][:3]]
        monkeypatch.setenv("COMP_WORDS", " ".join(typed))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        done = shell()
        assert done.code == 0
        assert words[-1] in done.out.split()


def test_completion_installs_itself_and_other_real_streams(tmp_path: Path) -> None:
    """In a real shell, once each: what is closed there is closed below Python too."""
    run = f"{sys.executable} -m hasten.cli"
    script = f"""
    {run} --install-completion bash >shown 2>&1; echo $?
    {run} papers >&- 2>closed; echo $?
    {run} papers --json >&- 2>>closed; echo $?
    {run} papers none 2>&-; echo $?
    {run} papers --json 2>/dev/full >document; echo $?
    {run} papers --json | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}
    LANG=C LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING= {run} -h >help; echo $?
    """
    environment = {**os.environ, "HOME": str(tmp_path), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.stdout.split() == ["0", "2", "2", "2", "0", "0", "0"], done
    assert done.stderr == ""
    installed = [p for p in tmp_path.rglob("*.sh") if "_HASTEN_COMPLETE" in p.read_text("utf-8")]
    assert installed, (tmp_path / "shown").read_text("utf-8")
    assert (tmp_path / "closed").read_text("utf-8").count("error: ") == 2
    assert json.loads((tmp_path / "document").read_text("utf-8"))


def test_warnings_of_hasten_are_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with messages.telling(), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn_explicit(
            "kernels are\nmissing", RuntimeWarning, "compiled.py", 3, module="hasten.kernels.compiled"
        )
    assert capsys.readouterr().err == "warning: kernels are missing\n"
