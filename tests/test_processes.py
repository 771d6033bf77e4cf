"""Arms run side by side, keep their order, and pass errors on."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten import processes
from hasten.processes import TimeIsUp, at_most, bytes_from_storage, run_arms, unbroken


@pytest.mark.parametrize("processes", [1, 2])
def test_results_keep_their_order(processes: int) -> None:
    told: list[float] = []
    kept: dict[int, float] = {}
    arms = [(2, 3), (3, 2), (5, 1)]
    assert run_arms(math.pow, arms, progress=told.append, each=kept.__setitem__, processes=processes) == [8, 9, 5]
    assert told[-1] == 1.0
    assert kept == {0: 8, 1: 9, 2: 5}


def test_an_arms_error_comes_through() -> None:
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        run_arms(math.sqrt, [(1.0,), (-1.0,)], processes=2)


@pytest.mark.parametrize(
    ("users", "arms"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=1", "glibc.malloc.check=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_arms_take_huge_pages_unless_the_user_says_otherwise(
    users: str | None, arms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if users is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", users)
    assert run_arms(os.getenv, [("GLIBC_TUNABLES",)] * 2, processes=2) == [arms, arms]
    assert os.environ.get("GLIBC_TUNABLES") == users


@pytest.mark.parametrize(
    ("started", "given", "users", "pages", "restarted"),
    [
        (["python", "-m", "hasten", "check", "a"], ["check", "a"], None, True, True),
        (["python", "-m", "hasten", "check", "a"], ["check", "a"], "glibc.malloc.check=1", True, True),
        (["python", "-m", "hasten", "check", "a"], ["check", "a"], "glibc.malloc.hugetlb=0", True, False),
        (["python", "-m", "hasten", "check", "a"], ["check", "a"], None, False, False),
        (["python", "-m", "pytest", "tests"], ["check", "a"], None, True, False),  # it was called, not started
        (["python", "-m", "hasten"], [], None, True, False),
    ],
)
def test_a_program_is_started_again_in_huge_pages(
    started: list[str],
    given: list[str],
    users: str | None,
    pages: bool,
    restarted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, list[str], str]] = []

    def execute(program: str, words: list[str]) -> None:
        seen.append((program, words, os.environ["GLIBC_TUNABLES"]))
        raise OSError(7, "too long")  # the program goes on as it is

    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if users is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", users)
    monkeypatch.setattr(sys, "orig_argv", started)
    monkeypatch.setattr(sys, "argv", ["hasten", *given])
    monkeypatch.setattr(processes, "_huge_pages", lambda: pages)
    monkeypatch.setattr(os, "execv", execute)
    processes.restart_in_huge_pages()
    setting = ":".join(filter(None, (users, "glibc.malloc.hugetlb=1")))
    assert seen == ([(sys.executable, [sys.executable, *started[1:]], setting)] if restarted else [])
    assert os.environ.get("GLIBC_TUNABLES") == users


def test_it_is_started_again_once_with_its_words(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys\nfrom hasten.processes import restart_in_huge_pages\n"
        "print(os.getpid(), sys.argv[1:], flush=True)\nrestart_in_huge_pages()\nprint(sys.stdin.read())\n"
    )
    env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-W", "error", str(program), "a b", "--c=d"]
    told = subprocess.run(command, input="read", env=env, capture_output=True, text=True, timeout=120, check=True)
    *starts, read = told.stdout.splitlines()
    assert read == "read"
    assert len(starts) == 1 + processes._huge_pages()
    assert set(starts) == {f"{starts[0].split()[0]} ['a b', '--c=d']"}


SLOW = """
import pathlib, sys, time
from hasten.processes import run_arms

def arm(folder, number):
    import os
    (pathlib.Path(folder) / str(os.getpid())).touch()
    time.sleep(100)

if __name__ == "__main__":
    import torch  # an interrupt of imports is told as Python tells it
    print("imported", flush=True)
    run_arms(arm, [(sys.argv[1], n) for n in range(2)], processes=2)
"""


def test_arms_end_with_their_parent(tmp_path: Path, until: Callable[[Callable[[], bool], float], None]) -> None:
    """Killed outright, it leaves no training behind that goes on for nobody."""
    seen = tmp_path / "seen"
    seen.mkdir()
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, str(tmp_path / "slow.py"), str(seen)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as parent:
        try:
            until(lambda: len(list(seen.iterdir())) >= 2, 120)
        finally:
            parent.kill()
    pids = [p.name for p in seen.iterdir()]
    assert len(pids) == 2
    until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 30)


@pytest.mark.parametrize("begun", [0, 2], ids=["while they start", "while they work"])
def test_an_interrupt_is_told_once(
    begun: int, tmp_path: Path, until: Callable[[Callable[[], bool], float], None]
) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    (tmp_path / "slow.py").write_text(SLOW)
    command = [sys.executable, str(tmp_path / "slow.py"), str(seen)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "imported\n"
        until(lambda: len(list(seen.iterdir())) >= begun, 120)
        time.sleep(0.3)
        os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, errors = parent.communicate(timeout=60)
    assert parent.returncode != 0
    assert errors.count("Traceback") <= 1
    assert "Process Spawn" not in errors


def test_bytes_from_storage_only_grow() -> None:
    before = bytes_from_storage()
    after = bytes_from_storage()
    assert (before is None) == (after is None)
    assert before is None or after is None or 0 <= before <= after


def test_what_takes_too_long_is_broken_off_wherever_it_waits() -> None:
    begun = time.monotonic()
    with pytest.raises(TimeIsUp), at_most(0.2) as limit:
        time.sleep(30)
    assert time.monotonic() - begun < 5
    assert limit.broken_off


def test_what_must_not_raise_ends_first() -> None:
    """As compiled code that calls Python: an exception there ends the process."""
    ended = []

    def work(first: Callable[[], object]) -> None:
        with unbroken():
            first()
            ended.append(first)
        time.sleep(30)

    with pytest.raises(TimeIsUp), at_most(0.05) as limit:
        work(lambda: time.sleep(0.3))
    assert limit.broken_off
    with pytest.raises(KeyboardInterrupt):
        work(lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    assert len(ended) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_bears_an_interrupt_is_broken_off_again() -> None:
    borne = 0
    with at_most(0.1):
        while borne < 3:
            try:
                time.sleep(30)
            except TimeIsUp:
                borne += 1
    assert borne == 3


def test_in_time_nothing_happens_and_somebody_elses_alarm_is_theirs() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: heard.append(number))
    try:
        with at_most(30) as limit:
            signal.raise_signal(signal.SIGALRM)
        assert heard == [signal.SIGALRM]
        assert not limit.broken_off
        signal.raise_signal(signal.SIGALRM)
        assert len(heard) == 2
    finally:
        signal.signal(signal.SIGALRM, before)


def test_in_another_thread_the_limit_is_asked() -> None:
    seen: list[bool] = []

    def work() -> None:
        with at_most(0.0) as limit:
            try:
                limit.check()
            except TimeIsUp:
                seen.append(limit.broken_off)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


def test_whoever_keeps_the_exception_no_limit_outlives_what_it_was_for() -> None:
    before, kept = signal.getsignal(signal.SIGALRM), []
    for number in range(40):
        try:
            with at_most(0.0005 * (number % 4)):
                with at_most(0.001):
                    time.sleep(0.0005 * (number % 5))
                time.sleep(0.002)
        except TimeIsUp as error:
            kept.append(error)  # its traceback holds every frame that was left
    assert kept
    assert signal.getsignal(signal.SIGALRM) is before
    time.sleep(0.7)  # an alarm that is still set comes every half second
