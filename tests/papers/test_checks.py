"""Files of checks hold only what is special to a paper: short, apart from each other, with one way to remember."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hasten.papers.checks

FOLDER = Path(hasten.papers.checks.__file__).parent
FILES = sorted(p for p in FOLDER.glob("*.py") if p.name != "__init__.py")
ROOT = FOLDER.parents[3]
# A file that is longer hides what the library should have.
MOST = 200


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports at any depth, names of a ``from`` import behind its module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield from (f"{module}.{a.name}" for a in node.names)


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


each = pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)


@each
def test_it_is_short(path: Path) -> None:
    count = len(path.read_text("utf-8").splitlines())
    assert count <= MOST, f"{path.name} has {count} lines: move what others could use down into the library"


@each
def test_it_knows_no_other_check(path: Path) -> None:
    others = [m for m in imported(ast.parse(path.read_text("utf-8"))) if m.startswith("hasten.papers.checks")]
    assert not others


@each
def test_it_remembers_and_divides_by_the_experiment(path: Path) -> None:
    tree = ast.parse(path.read_text("utf-8"))
    # A variable may be called cache: models have them.
    used = {f"functools.{n.attr}" for n in ast.walk(tree) if isinstance(n, ast.Attribute) and _is(n.value, "functools")}
    found = {*imported(tree), *used} & {"functools.cache", "functools.lru_cache", "hasten.processes.run_arms"}
    assert not found, "what is expensive is a shared part (experiment.once), and arms are the experiment's"
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    assert "paper_budget" not in attributes, "ask experiment.steps, at, require or allows"


def test_nothing_else_imports_papers() -> None:
    folders = [ROOT / name for name in ("benchmarks", "scripts") if (ROOT / name).is_dir()]
    if not folders:
        pytest.skip("no checkout")
    for path in (p for folder in folders for p in sorted(folder.glob("*.py"))):
        found = [m for m in imported(ast.parse(path.read_text("utf-8"))) if m.startswith("hasten.papers")]
        assert not found, f"{path.name} imports {found[0]}"
