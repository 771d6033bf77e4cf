"""A user's Python file runs as Python runs it: what lies beside it, what its classes need, and what it must leave."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest

from hasten.errors import HastenError
from hasten.user_file import beside, load_attribute, load_made, run_file

CLASSES = """
from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Sizes:
    width: int = 3
"""


def test_classes_know_the_file_that_they_are_of(tmp_path: Path) -> None:
    file = tmp_path / "with a space.py"
    file.write_text(CLASSES)
    module = run_file(file)
    assert module.Sizes().width == 3
    assert sys.modules[module.Sizes.__module__] is module


def test_files_beside_it_are_imported_and_go_with_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("def double(x):\n    return 2 * x\n")
    (tmp_path / "mine.py").write_text("from beside_it import double\ndef score(x):\n    return double(x) + 1\n")
    before = list(sys.path)
    score = load_attribute(tmp_path / "mine.py", "score")
    assert sys.path == before
    assert score(3) == 7
    # Another process has neither file.
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(4))"
    sent = cloudpickle.dumps(score)
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=False, cwd="/")
    assert done.stdout.split() == [b"9"], done.stderr
    assert pickle.loads(sent)(4) == 9
    (tmp_path / "late.py").write_text("def made():\n    from beside_it import double\n    return double(2)\n")
    assert load_made(tmp_path / "late.py", "made", int, "no number") == 4


def test_a_folder_that_it_changes_to_is_left_again(tmp_path: Path) -> None:
    (tmp_path / "moves.py").write_text("import os\nos.chdir('/')\nx = 1\n")
    here = Path.cwd()
    assert load_attribute(tmp_path / "moves.py", "x") == 1
    assert Path.cwd() == here
    with pytest.raises(KeyError), beside(tmp_path / "moves.py"):
        raise KeyError
    assert Path.cwd() == here


def test_a_file_that_fails_is_told_and_forgotten(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def f(:\n")
    with pytest.raises(HastenError, match=r"broken.py fails when it is run: SyntaxError") as told:
        load_attribute(tmp_path / "broken.py", "f")
    assert "\n" not in str(told.value)
    assert "_hasten_user_broken" not in sys.modules
    for name, why in (("none.py", "there is no file"), (".", "there is no file")):
        with pytest.raises(HastenError, match=why):
            load_attribute(tmp_path / name, "f")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(HastenError, match="defines no 'f'"):
        load_attribute(tmp_path / "empty.py", "f")
