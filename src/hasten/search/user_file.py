"""What a user's Python file defines, sent to other processes whole."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle

from hasten.errors import HastenError, users_code
from hasten.files import checked_file, named_path

T = TypeVar("T")


def load_made(source: Path, attribute: str, kind: type[T], wrong: str) -> T:
    """What the Python file ``source`` calls ``attribute``: of this kind, or a function that returns one when called.

    Raises:
        HastenError: as `load_attribute`; the function fails; ``wrong`` where it is of another kind.
    """
    found = load_attribute(source, attribute)
    with users_code(f"{source}:{attribute} failed"):
        made = found() if callable(found) and not isinstance(found, kind) else found
    if not isinstance(made, kind):
        raise HastenError(wrong)
    return made


def load_attribute(source: Path, attribute: str) -> Any:
    """What the Python file ``source`` calls ``attribute``.

    Raises:
        HastenError: the file is missing, fails when run, or has no such name.
    """
    if not named_path(source).is_file():
        raise HastenError(f"there is no file {source}: check the path")
    source = checked_file(source)
    spec = importlib.util.spec_from_file_location(f"_hasten_user_{source.stem}", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Other processes cannot import the file under this name: what it defines goes to them whole.
    sys.modules[spec.name] = module
    cloudpickle.register_pickle_by_value(module)
    with users_code(f"{source} fails when it is run", from_error=False):
        spec.loader.exec_module(module)
    if not hasattr(module, attribute):
        raise HastenError(f"{source} defines no {attribute!r}: add it, or name another one as {source}:NAME")
    return getattr(module, attribute)
