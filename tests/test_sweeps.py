"""Sweeps over what is registered: a slice of each is in the default run, and what names the slice is true."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SWEEPS = """
import pytest


@pytest.mark.slow_except("a*", "d")
@pytest.mark.parametrize("name", ["a", "ab", "b", "c"])
def test_named(name):
    pass


@pytest.mark.slow_except(every=3)
@pytest.mark.parametrize("number", range(7))
def test_counted(number):
    pass


@pytest.mark.slow_cases("b")
@pytest.mark.parametrize("name", ["a", "b"])
def test_but_one(name):
    pass


def test_patterns(stale_patterns):
    assert [pattern for _, pattern in stale_patterns] == ["d"]
"""


def test_patterns_name_cases_that_are_there(stale_patterns: set[tuple[str, str]]) -> None:
    assert not stale_patterns


@pytest.mark.parametrize(("chosen", "passed"), [("not slow", 7), ("slow or not slow", 14)])
def test_a_slice_is_run_by_default_and_all_of_it_with_the_slow_tests(chosen: str, passed: int, tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(SWEEPS)
    (tmp_path / "conftest.py").write_bytes((Path(__file__).parent / "conftest.py").read_bytes())
    command = [sys.executable, "-m", "pytest", "-q", "-m", chosen, "-p", "no:cacheprovider", "--rootdir", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=250, check=False)
    assert f"{passed} passed" in done.stdout, done.stdout
