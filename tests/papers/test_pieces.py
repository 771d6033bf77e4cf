"""Pieces are found in the sources, with the line that defines them, and nothing is imported."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import hasten
from hasten.papers.pieces import piece


@pytest.mark.parametrize(
    "name", ["hasten.papers.card:Paper", "hasten.papers.registry:paper", "hasten.errors:HastenError"]
)
def test_the_line_is_the_definitions(name: str) -> None:
    module, _, attribute = name.partition(":")
    there = getattr(importlib.import_module(module), attribute)
    found = piece(name)
    assert found.file == Path(inspect.getsourcefile(there) or "")
    lines = found.file.read_text("utf-8").splitlines()
    assert lines[found.line - 1].split("(")[0].split(":")[0] in (f"class {attribute}", f"def {attribute}")
    assert found.place == f"{module.replace('.', '/')}.py:{found.line}"


def test_modules_packages_and_constants() -> None:
    assert piece("hasten.papers").place == "hasten/papers/__init__.py"
    assert piece("hasten.papers.card").place == "hasten/papers/card.py"
    assert piece("hasten").place == "hasten/__init__.py"
    constant = piece("hasten.papers.card:FIELDS")
    assert constant.file is not None
    assert constant.file.read_text("utf-8").splitlines()[constant.line - 1].startswith("FIELDS")
    assert piece("json.decoder:JSONDecoder").place.startswith("json/decoder.py:")


@pytest.mark.parametrize(
    "name", ["hasten.papers.card:Nothing", "hasten.nothing", "no_such_package.part:Name", "sys:path", "hasten.errors.x"]
)
def test_what_is_not_here_has_no_file(name: str) -> None:
    assert piece(name).file is None
    assert piece(name).place == ""


def test_nothing_is_imported() -> None:
    code = (
        "import sys; from hasten.papers.pieces import piece; print(piece('hasten.nn.mamba:Mamba').place,"
        " 'torch' in sys.modules, 'hasten.nn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    place, *imported = done.stdout.split()
    assert place.startswith("hasten/nn/mamba.py:")
    assert imported == ["False", "False"]
    assert Path(hasten.__file__).parent.joinpath("nn", "mamba.py").is_file()
