"""The API reference out of the docstrings, as HTML that opens offline: `python scripts/api_reference.py [FOLDER]`."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import hasten

# The checks are a paper's own, the rest are entry points.
LEFT_OUT = ("hasten.papers.checks", "hasten.cli", "hasten.__main__", "hasten.kernels._native")


def public_modules() -> list[str]:
    """Every module of hasten that a user may import, imported, with what it exports on demand in place."""
    names = ["hasten"]
    for found in pkgutil.walk_packages(hasten.__path__, "hasten."):
        private = any(part.startswith("_") for part in found.name.split("."))
        if not private and not found.name.startswith(LEFT_OUT):
            names.append(found.name)
    for name in names:
        module = importlib.import_module(name)
        for exported in getattr(module, "__all__", ()):
            setattr(module, exported, getattr(module, exported))
    return names


def main(folder: Path) -> None:
    """Writes ``index.html`` and a page for each module into ``folder``.

    Raises:
        Warning: a docstring or an export cannot be rendered.
    """
    warnings.simplefilter("error", UserWarning)
    warnings.filterwarnings("ignore", "The module specification")  # named twice: by its parent, and here
    pdoc.render.configure(docformat="google", show_source=False, footer_text=f"hasten {hasten.__version__}")
    warnings.filterwarnings("ignore", "Error parsing type annotation")  # shown as it is written
    # A parent lists its modules only where it exports nothing by name, so all are named.
    pdoc.pdoc(*public_modules(), output_directory=folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "out/api"))
