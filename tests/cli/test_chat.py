"""``hasten chat``: lines from a pipe, and a talk on a real terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hasten import cli
from hasten.cli import streams
from hasten.cli.chat import shown
from hasten.kernels.kv_cache import BLOCK

Chat = Callable[..., tuple[int, str, str]]


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Chat:
    """Runs the command in this process with lines on stdin: (exit code, stdout, stderr)."""
    monkeypatch.setattr(streams, "_documents", None)
    monkeypatch.setattr(cli, "keep_stdout_for_documents", lambda: None)

    def run(lines: str | bytes, *words: str) -> tuple[int, str, str]:
        given = lines.encode() if isinstance(lines, str) else lines
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
        monkeypatch.setattr(sys, "argv", ["hasten", "chat", *words])
        standard = sys.stdout, sys.stderr
        try:
            with pytest.raises(SystemExit) as ended:
                cli.main()
        finally:
            for mine in (sys.stdout, sys.stderr):
                mine.flush()
                if isinstance(mine, io.TextIOWrapper):
                    mine.detach()
            sys.stdout, sys.stderr = standard
        return int(ended.value.code or 0), *capsys.readouterr()

    return run


def test_lines_from_a_pipe_are_answered_plainly(talker: Path, chat: Chat) -> None:
    words = (str(talker), "--temperature", "0", "--max-tokens", "6")
    code, out, err = chat("one\n\n  two\n", *words)
    assert (code, err) == (0, "")
    answers = out.splitlines()
    assert len(answers) == 2
    code, out, err = chat(b"one\ntwo \xff\n", *words, "--json", "-q")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert [a["question"] for a in document["answers"]] == ["one", "two \ufffd"]
    first, second = document["answers"]
    assert shown(first["answer"]) == answers[0]
    assert (first["finish"], first["completion_tokens"]) == ("length", 6)
    assert second["prompt_tokens"] > first["prompt_tokens"] + 6  # one talk
    assert chat("", *words) == (0, "", "")
    _, out, _ = chat(f"{'long ' * 100}\nand then\n", *words, "--json")
    first, second = json.loads(out)["answers"]
    assert second["cached_tokens"] > first["prompt_tokens"] - BLOCK  # what was read is not read again


def test_the_same_seed_gives_the_same_answers_and_no_escape_reaches_a_terminal(talker: Path, chat: Chat) -> None:
    words = (str(talker), "--seed", "8", "--temperature", "10", "--max-tokens", "200")
    _, out, _ = chat("one\n" * 2, *words)
    assert "\\x1b" in out
    assert not any(c in out.replace("\n", "").replace("\t", "") for c in map(chr, (*range(32), *range(127, 160))))
    assert chat("one\n" * 2, *words)[1] == out


def test_what_a_terminal_would_obey_is_spelt_out() -> None:
    assert shown("a\tb\nc\r\n naïve ★ 👩‍👧") == "a\tb\nc\r\n naïve ★ 👩‍👧"
    assert shown("\x1b]0;title\x07\x9b2J\rover\x7f\u202edesrever") == (
        r"\x1b]0;title\x07\x9b2J\rover\x7f\u202edesrever"
    )


def test_commands_in_a_pipe_and_what_is_wrong_with_them(talker: Path, chat: Chat, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('[{"role": "king", "content": ""}]')
    file = tmp_path / "talk.json"
    lines = f"""/system Be short.
one
/save {file}
/load {tmp_path / "bad.json"}
/load
/nonesuch
/usr/bin is a folder
{"x" * 30_000}
/save {file}
/clear
/load {file}
/help
/exit
never asked
"""
    code, out, err = chat(lines, str(talker), "--max-tokens", "3", "--temperature", "0")
    assert code == 2
    assert len(out.splitlines()) == 2
    messages = json.loads(file.read_text("utf-8"))
    assert [m["content"] for m in messages if m["role"] != "assistant"] == [
        "Be short.", "one", "/usr/bin is a folder",
    ]  # fmt: skip
    told = err.splitlines()
    assert [line for line in told if line.startswith("error: ")] == [
        line for line in told if "king" in line or "bad.json" in line or "error: " in line
    ]
    for part in ("holds no talk (message 1, role", "/load needs a file", "no command /nonesuch", "shorten it"):
        assert sum(part in line for line in told) == 1, err
    assert f"5 messages loaded from {file}" in told
    assert sum("/system TEXT" in line for line in told) == 1


def test_a_model_without_a_template_is_told_of_once(folder: Path, chat: Chat) -> None:
    code, _, err = chat("one\ntwo\n", str(folder), "--max-tokens", "3")
    assert code == 0
    assert err.count("no chat template") == 1


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *words: str) -> None:
        self.master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        # Its terminal is the one that Ctrl-C comes from, which takes a process to begin with.
        begin = "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", begin, "-m", "hasten.cli", *words], env=environment,
            stdin=slave, stdout=slave, stderr=slave,
        )  # fmt: skip
        os.close(slave)
        self.shown = ""
        self._read = 0
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        with contextlib.suppress(OSError):  # when the program has ended
            while data := os.read(self.master, 1 << 16):
                self.shown += data.decode("utf-8", "replace")

    def type(self, text: str) -> None:
        self._read = len(self.shown)
        os.write(self.master, text.encode())

    def wait(self, text: str, seconds: float = 60) -> str:
        """What came since the last typing, once ``text`` is in it."""
        deadline = time.monotonic() + seconds
        while text not in self.shown[self._read :]:
            assert time.monotonic() < deadline, f"no {text!r} in {self.shown[self._read :][-2000:]!r}"
            time.sleep(0.02)
        return self.shown[self._read :]

    def say(self, text: str, expected: str) -> str:
        self.type(text)
        found = self.wait(expected)
        self.wait("> ")
        return found

    def interrupt(self, question: str) -> str:
        """Asks, and stops the answer once something of it is there."""
        self.type(question)
        entered = "\x1b[?2004l"  # what readline tells the terminal once a line is whole
        deadline = time.monotonic() + 60
        while len(self.shown[self._read :].partition(entered)[2]) < 40:
            assert time.monotonic() < deadline, self.shown[self._read :]
            time.sleep(0.02)
        return self.say("\x03", "; stopped]")

    def end(self) -> int:
        code = self.process.wait(60)
        self._thread.join(10)
        os.close(self.master)
        return code


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*words: str) -> Terminal:
        started.append(Terminal(*words))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_a_talk_on_a_terminal(talker: Path, terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    one = terminal("chat", str(talker), "--temperature", "0", "--max-tokens", "100000")
    assert "/help lists" in one.wait("> ")
    assert "tokens/s, first after" in one.interrupt("hello\r")
    one.say(f"/save {tmp_path / 'one.json'}\r", "2 messages saved")
    question, answer = json.loads((tmp_path / "one.json").read_text("utf-8"))
    assert question == {"role": "user", "content": "hello"}
    assert answer["content"]

    one.say("/helX\x7fp\r", "/system TEXT")  # edited
    one.say("\x1b[A\r", "/system TEXT")  # had back
    one.say("/cl\t\r", "forgotten")  # completed
    one.say("/load nonesuch.json\r", "error: cannot read")

    one.interrupt("\x1b[200~first line\nsecond line " + "x" * 5000 + "\x1b[201~\r")  # pasted
    one.type('"""several\r')
    one.wait(". ")
    one.interrupt('lines"""\r')
    one.say(f"/save {tmp_path / 'two.json'}\r", "4 messages saved")
    asked = [m["content"] for m in json.loads((tmp_path / "two.json").read_text("utf-8")) if m["role"] == "user"]
    assert asked == ["first line\nsecond line " + "x" * 5000, "several\nlines"]

    one.say("half a line\x03", "once more leaves")
    one.type("\x03")
    assert one.end() == 0


@pytest.mark.slow
def test_the_end_of_input_leaves_and_quiet_is_quiet(talker: Path, terminal: Callable[..., Terminal]) -> None:
    one = terminal("chat", str(talker), "--max-tokens", "5", "-q")
    one.wait("> ")
    one.say("hello\r", "\n")
    one.type("\x04")
    assert one.end() == 0
    assert "first after" not in one.shown
