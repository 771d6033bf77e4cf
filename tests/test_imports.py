"""No two files import each other, and no function what its file could; imports for type checking do not count."""

from __future__ import annotations

import ast
import functools
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import grimp
import networkx
import pytest

import hasten

ROOT = Path(hasten.__file__).parent
PROJECT = ROOT.parents[1] / "pyproject.toml"

# Packages of the optional extras, as they are imported; an extra may be missing, so who needs it asks when he needs it.
EXTRAS = {
    "av": "av", "cryptography": "cryptography", "da4ml": "da4ml", "gymnasium": "gymnasium",
    "llama-cpp-python": "llama_cpp", "llguidance": "llguidance",
    "mambapy": "mambapy", "onnx": "onnx", "onnxruntime": "onnxruntime", "openvino": "openvino",
    "pettingzoo": "pettingzoo", "pillow": "PIL", "pyarrow": "pyarrow",
    "ray": "ray", "scikit-learn": "sklearn",
    "scipy": "scipy", "starlette": "starlette", "timm": "timm", "tree-sitter": "tree_sitter",
    "tree-sitter-cpp": "tree_sitter_cpp", "uvicorn": "uvicorn",
}  # fmt: skip
# (files, package): why functions there import it, although every installation has it.
REASONS = {
    ("*", "transformers"): "a second and more, which only networks of its kinds are worth",
    ("*", "resource"): "Unix alone has it",
    ("__init__.py", "hasten.exports"): "`import hasten` imports nothing before something is asked for",
    ("data/text.py", "pydoc_data"): "some packagers leave it out of Python",
    ("files.py", "platformdirs"): "the command line begins without a folder to find",
    ("models/loading/network.py", "huggingface_hub"): "only names of the hub need it",
    ("papers/registry.py", "importlib"): "plugins are looked up once, when papers are listed",
    ("papers/running.py", "torch"): "papers are listed, and stored results shown, without torch",
    ("processes.py", "torch"): "two seconds: processes that compute nothing do without",
    ("report/tables.py", "rich"): "a table in a pipe needs none, and `hasten papers` answers at once",
    ("search/study_file.py", "optuna"): "its tables stand on sqlalchemy: half a second, for studies in files",
    ("search/study_file.py", "sqlalchemy"): "a quarter of a second, for studies in files",
    ("spaces/__init__.py", "hasten.search"): "spaces without networks are listed and built without them",
    ("search/workers.py", "torch"): "two seconds: a search whose problem does without computes nothing by it",
}

# Circles that stand for now, by the files in them. The list may shrink, never grow.
KNOWN: tuple[frozenset[str], ...] = ()


def circles(graph: grimp.ImportGraph) -> list[set[str]]:
    """Files that reach each other by imports."""
    edges = [(m, other) for m in graph.modules for other in graph.find_modules_directly_imported_by(m)]
    return [part for part in networkx.strongly_connected_components(networkx.DiGraph(edges)) if len(part) > 1]


def test_no_two_files_import_each_other() -> None:
    graph = grimp.build_graph("hasten", exclude_type_checking_imports=True, cache_dir=None)
    assert len(graph.modules) > 200
    new = [sorted(part) for part in circles(graph) if not any(part <= known for known in KNOWN)]
    assert not new, f"files import each other in a circle: {new}"


def test_circles_are_found() -> None:
    graph = grimp.ImportGraph()
    for importer, imported in (("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")):
        graph.add_import(importer=importer, imported=imported)
    assert [sorted(part) for part in circles(graph)] == [["a", "b", "c"]]


class LateImport(NamedTuple):
    """An import within a function."""

    file: str
    line: int
    module: str


def late_imports(source: str, file: str) -> Iterator[LateImport]:
    """Imports within functions, at any depth."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    yield LateImport(file, node.lineno, node.module or ".")
                elif isinstance(node, ast.Import):
                    yield from (LateImport(file, node.lineno, alias.name) for alias in node.names)


@functools.cache
def every_late_import() -> list[LateImport]:
    """Of hasten, the command line aside."""
    files = [p for p in sorted(ROOT.rglob("*.py")) if p.relative_to(ROOT).parts[0] != "cli"]
    return [late for p in files for late in late_imports(p.read_text("utf-8"), p.relative_to(ROOT).as_posix())]


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def reason(late: LateImport) -> tuple[str, str] | None:
    return next((key for key in REASONS if fnmatch(late.file, key[0]) and within(late.module, key[1])), None)


def test_functions_import_only_extras_and_what_a_reason_is_given_for() -> None:
    found = every_late_import()
    assert len(found) > 20
    extras = set(EXTRAS.values())
    wrong = [
        f"{late.file}:{late.line} {late.module}"
        for late in found
        if late.module.partition(".")[0] not in extras and reason(late) is None
    ]
    assert not wrong, f"import these at the top of the file, or say in REASONS why not: {wrong}"


def test_every_reason_is_needed() -> None:
    assert {reason(late) for late in every_late_import()} - {None} == set(REASONS)


def test_the_extras_are_those_of_the_project() -> None:
    if not PROJECT.is_file():
        pytest.skip("no checkout")
    optional = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    named = {need.partition(">")[0].strip() for extra, needs in optional.items() if extra != "dev" for need in needs}
    assert named == set(EXTRAS)
    assert not set(EXTRAS.values()) & set(sys.stdlib_module_names)


def test_late_imports_are_found() -> None:
    source = (
        "import os\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\n"
        "class C:\n    def f(self):\n        def g():\n            import b.c\n        from d import e\n"
    )
    assert sorted(set(late_imports(source, "x.py"))) == [LateImport("x.py", 8, "b.c"), LateImport("x.py", 9, "d")]
