"""Runs the notebooks of docs/examples and keeps what they print: `python scripts/notebooks.py [NAME ...]`.

A notebook is plain JSON and its cells are plain Python here, so that neither Jupyter nor a kernel is needed to run
them. Cells whose metadata has the tag ``slow`` run like the others; `code_cells` says which they are.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs" / "examples"


def code_cells(notebook: Path) -> list[tuple[str, str]]:
    """(mark, source) of each code cell; the mark is ``slow`` or empty."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return [
        ("slow" if "slow" in c["metadata"].get("tags", []) else "", "".join(c["source"]))
        for c in cells
        if c["cell_type"] == "code"
    ]


def run_cell(source: str, namespace: dict[str, Any], name: str) -> str:
    """What a cell prints, and the value of its last expression."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec", dont_inherit=True), namespace)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace)
            if value is not None:
                print(value)
    return printed.getvalue()


def execute(notebook: Path) -> None:
    """Runs a notebook's cells in order, in an empty folder, and stores what they print in it."""
    document = json.loads(notebook.read_text("utf-8"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    here = Path.cwd()
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for cell in document["cells"]:
                if cell["cell_type"] != "code":
                    continue
                count += 1
                text = run_cell("".join(cell["source"]), namespace, notebook.name)
                lines = text.splitlines(keepends=True)
                cell["outputs"] = [{"name": "stdout", "output_type": "stream", "text": lines}] if lines else []
                cell["execution_count"] = count
        finally:
            os.chdir(here)
    notebook.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    for path in [FOLDER / f"{n.removesuffix('.ipynb')}.ipynb" for n in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        print(path.name, file=sys.stderr)
        execute(path)
