"""Published models by name: a decorator says beside a model which names it has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any, TypeVar

from hasten.exports import Exports

Builder = Callable[..., Any]
Registered = TypeVar("Registered")

_BUILDERS: dict[str, Builder] = {}


def published(names: Iterable[str]) -> Callable[[Registered], Registered]:
    """Registers a class with a constructor ``named(name)``, or a function of a name, as what builds these models.

    Args:
        names: as people know them; lower case, sizes at the end.

    Raises:
        ValueError: a name that something else has.

    Example:
        ``@published(["tiny-1m", "tiny-2m"])`` above a class or function in any file of this package.
    """

    def register(builder: Registered) -> Registered:
        build: Any = getattr(builder, "named", builder)
        for name in names:
            before = _BUILDERS.get(name)
            if before is not None and (before.__module__, before.__qualname__) != (
                build.__module__, build.__qualname__
            ):  # fmt: skip
                raise ValueError(f"{name} is the name of {before.__qualname__} already")
            _BUILDERS[name] = build
        return builder

    return register


@functools.cache
def _load() -> None:
    """Imports the files of this package that publish something, and no others."""
    exports = Exports("hasten.models")
    for module in exports.modules:
        if "\n@published(" in exports.source(module):
            import_module(module)


def builders() -> Mapping[str, Builder]:
    """Name -> what builds it, of every published model."""
    _load()
    return _BUILDERS
