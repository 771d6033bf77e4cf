"""Where a piece of hasten is defined: found in the sources, so that nothing is imported."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Piece:
    """A class, function or module that carries a paper.

    Args:
        name: ``module:name``, or a module alone.
        file: where it is defined; None when it is not here.
        line: of its definition, counted from 1.
    """

    name: str
    file: Path | None
    line: int = 1

    @property
    def place(self) -> str:
        """``package/part/file.py:line``, from the outermost package on; empty when it is not here."""
        if self.file is None:
            return ""
        depth = self.name.partition(":")[0].count(".") + (self.file.name == "__init__.py")
        path = self.file.relative_to(self.file.parents[depth]).as_posix()
        return f"{path}:{self.line}" if ":" in self.name else path


@functools.cache
def piece(name: str) -> Piece:
    """The piece called ``module:name``, the module being the one that defines the name."""
    module, _, attribute = name.partition(":")
    file = _source(module)
    if file is None or not attribute:
        return Piece(name, file)
    pattern = re.compile(rf"^(?:class|def|async def)\s+{re.escape(attribute)}\b|^{re.escape(attribute)}\b\s*[:=]", re.M)
    text = file.read_text("utf-8")
    found = pattern.search(text)
    return Piece(name, file, text.count("\n", 0, found.start()) + 1) if found else Piece(name, None)


def _source(module: str) -> Path | None:
    """A module's file. A package that is imported already says where its files are; others are looked for beside it."""
    root, *rest = module.split(".")
    loaded = sys.modules.get(root)
    if loaded is None or not getattr(loaded, "__path__", None):
        spec = importlib.util.find_spec(root)
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            return None
        if not rest:
            return Path(spec.origin)
        folders = list(spec.submodule_search_locations or ())
    else:
        folders = list(loaded.__path__)
    for folder in folders:
        base = Path(folder).joinpath(*rest)
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.is_file():
                return file
    return None
