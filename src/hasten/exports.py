"""What a package offers, found in the files of its folder: nobody lists it."""

from __future__ import annotations

import ast
import pkgutil
import re
from collections.abc import Iterable
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

_ALL = re.compile(r"^__all__(?:\s*:[^=]+)?\s*=\s*([\[(].*?[\])])", re.MULTILINE | re.DOTALL)
_CLASS = re.compile(r"^class ([A-Za-z]\w*)", re.MULTILINE)


class Exports:
    """The public names of a package's files, by which it answers before any of them is imported.

    A file offers what its ``__all__`` says, or without one its public classes; files and folders whose names begin with
    ``_`` offer nothing, nor does a folder's ``__init__``. Two lines make a package answer::

        _exports = Exports(__name__)
        __getattr__, __dir__ = _exports.find, _exports.names

    Args:
        package: its dotted name.
        own: names that its ``__init__`` holds itself.
    """

    def __init__(self, package: str, own: Iterable[str] = ()) -> None:
        self.package, self._own = package, frozenset(own)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Its files' dotted names, those of its folders among them."""
        found: list[str] = []
        folders = [(self.package, [str(p) for p in import_module(self.package).__path__])]
        while folders:
            package, path = folders.pop()
            for module in pkgutil.iter_modules(path):
                if module.name.startswith("_"):
                    continue
                if module.ispkg:
                    folders.append((f"{package}.{module.name}", [str(Path(p) / module.name) for p in path]))
                else:
                    found.append(f"{package}.{module.name}")
        return tuple(sorted(found))

    def source(self, module: str) -> str:
        """A file's text; empty where it is no Python file."""
        for folder in import_module(self.package).__path__:
            file = Path(folder, *module.removeprefix(f"{self.package}.").split(".")).with_suffix(".py")
            if file.is_file():
                return file.read_text(encoding="utf-8")
        return ""

    @cached_property
    def homes(self) -> dict[str, str]:
        """Name -> the file that offers it.

        Raises:
            ImportError: two files offer the same name.
        """
        homes: dict[str, str] = {}
        for module in self.modules:
            text = self.source(module)
            declared = _ALL.search(text)
            for name in ast.literal_eval(declared[1]) if declared else _CLASS.findall(text):
                if name in homes:
                    raise ImportError(f"{name} is offered by {homes[name]} and {module}: one name, one place")
                homes[name] = module
        return homes

    def names(self) -> list[str]:
        """What ``dir`` of the package shows of it."""
        return sorted(self._own | self.homes.keys())

    def find(self, name: str) -> Any:
        """What a package's ``__getattr__`` returns.

        Raises:
            AttributeError: no file offers it.
        """
        if name == "__all__":
            return self.names()
        if name.startswith("__") or name not in self.homes:
            raise AttributeError(f"module {self.package!r} has no attribute {name!r}")
        found = getattr(import_module(self.homes[name]), name)
        setattr(import_module(self.package), name, found)
        return found

    def load(self) -> None:
        """Imports every file: for packages whose files register something by being imported."""
        for module in self.modules:
            import_module(module)


def typed_imports(file: str) -> dict[str, str]:
    """Name -> module, of what a package's ``__init__`` imports for type checkers alone.

    They must be told what a package offers; where it imports that only when it is asked for, this is its one list.

    Args:
        file: the package's ``__file__``.
    """
    return {
        alias.asname or alias.name: node.module
        for block in ast.parse(Path(file).read_text(encoding="utf-8")).body
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }


class TypedExports(Exports):
    """As `Exports`, of the names alone that the package imports for type checkers: see `typed_imports`."""

    @cached_property
    def homes(self) -> dict[str, str]:
        return typed_imports(str(import_module(self.package).__file__))


class Written(NamedTuple):
    """What a decorator registers: the file it stands in, and what it says of it."""

    module: str
    about: str


def decorated(package: str, decorator: str) -> dict[str, Written]:
    """Name -> what the files of a package register by a decorator ``@decorator(name, about="")``, by their source.

    None of them is imported, so that names and what they mean are told without loading what they stand for.

    Args:
        package: its dotted name.
        decorator: by its bare name; its arguments are written out as strings.
    """
    files = Exports(package)
    found: dict[str, Written] = {}
    for module in files.modules:
        for node in ast.walk(ast.parse(files.source(module))):
            for made in getattr(node, "decorator_list", ()):
                if isinstance(made, ast.Call) and isinstance(made.func, ast.Name) and made.func.id == decorator:
                    name, *about = (ast.literal_eval(argument) for argument in made.args)
                    found[name] = Written(module, "".join(about))
    return found
