"""Programs that are forked off a process are as those that are started anew."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import forked

PROGRAM = """
import atexit, json, os, sys, torch
atexit.register(print, "the end")
seen = [sys.argv[1:], os.getcwd(), os.environ.get("COLOUR"), sys.stdin.read(), __name__, sys.path[0]]
print(json.dumps(seen), flush=True)
print("aside", file=sys.stderr)
match sys.argv[-1]:
    case "code":
        sys.exit(3)
    case "error":
        raise ValueError("oh")
    case "signal":
        os.kill(os.getpid(), 9)
    case "sleep":
        import time
        time.sleep(100)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "elsewhere").mkdir()
    return str(tmp_path / "program.py")


@pytest.mark.slow_except("error", "signal")
@pytest.mark.parametrize("last", ["nothing", "code", "error", "signal"])
def test_it_is_what_a_new_process_is(program: str, last: str) -> None:
    folder, env = Path(program).parent / "elsewhere", {**os.environ, "COLOUR": "blue"}
    anew = subprocess.run(
        [sys.executable, program, "a b", last],
        cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    found = forked.run(program, "a b", last, cwd=folder, env=env)
    assert (found.returncode, found.stdout) == (anew.returncode, anew.stdout)
    assert found.stderr.splitlines()[:1] == anew.stderr.splitlines()[:1] == ["aside"] or last == "signal"
    assert found.stderr.splitlines()[-1:] == anew.stderr.splitlines()[-1:]


def test_modules_are_programs_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\nprint(__name__, sys.argv[1:])\n")
    assert forked.run("-m", "mine", "x", cwd=tmp_path).stdout == "__main__ ['x']\n"
    assert forked.run(*forked.HASTEN, "--version", cwd=tmp_path).stdout.startswith("hasten ")
    assert forked.run(*forked.HASTEN, "papers", "none", cwd=tmp_path).returncode == 2


def test_what_takes_too_long_is_killed_and_the_next_one_runs(program: str) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        forked.run(program, "sleep", timeout=0.5)
    assert forked.run(program, "code").returncode == 3
