"""Type checkers see the blocks and networks, and what calling one gives."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from hasten.exports import Exports, typed_imports

from .examples import modules_of

CALLS = Path(__file__).with_name("typed_calls.py")
ROOMS = ["hasten.nn", "hasten.models"]


@pytest.mark.parametrize("room", ROOMS)
def test_type_checkers_are_told_every_name(room: str) -> None:
    module = importlib.import_module(room)
    told, homes = typed_imports(str(module.__file__)), Exports(room).homes
    missing = [f"from {homes[name]} import {name} as {name}" for name in sorted(homes.keys() - told.keys())]
    assert not missing, f"add to {module.__file__}: " + "; ".join(missing)
    assert told == homes
    assert set(homes) <= set(dir(module))


@pytest.mark.parametrize("room", ROOMS)
def test_calling_a_module_is_typed_as_its_forward(room: str) -> None:
    for name, kind in modules_of(room).items():
        if "forward" not in vars(kind):
            continue
        tree = ast.parse(Path(inspect.getfile(kind)).read_text("utf-8"))
        (body,) = (node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
        blocks = [ast.unparse(node) for node in body if isinstance(node, ast.If)]
        assert "if TYPE_CHECKING:\n    __call__ = forward" in blocks, f"{name}: type its call as its forward"
        assert f".{name}" in CALLS.read_text("utf-8"), f"{name} is not in {CALLS.name}"
        assert vars(kind).get("__call__") is None


@pytest.mark.slow
def test_mypy_agrees() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "mypy", str(CALLS)], capture_output=True, text=True, cwd=CALLS.parents[2], check=False
    )
    assert found.returncode == 0, found.stdout
