"""What a user's Python file defines, run as Python runs it, and sent to other processes whole."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import cloudpickle

from hasten.errors import HastenError, users_code
from hasten.files import checked_file, named_path

T = TypeVar("T")


@contextmanager
def beside(source: Path) -> Iterator[None]:
    """Within it a user's code runs: files beside its own can be imported, as where Python runs that; a folder that it
    changes to is left again, since paths that were given before are from this one.

    Args:
        source: the user's file.
    """
    folder, here = str(source.parent.resolve()), Path.cwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        os.chdir(here)
        with suppress(ValueError):  # the file may have changed the list
            sys.path.remove(folder)


def run_file(source: Path) -> ModuleType:
    """The module that a user's Python file makes.

    It is known to Python while it runs and after, as dataclasses and type hints of the file need; a file that raises is
    forgotten.

    Raises:
        HastenError: there is no such file, or it is no plain one.
        BaseException: what the file raises.
    """
    source = checked_file(source)
    spec = importlib.util.spec_from_file_location(f"_hasten_user_{source.stem}", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        with beside(source):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def load_made(source: Path, attribute: str, kind: type[T], wrong: str) -> T:
    """What the Python file ``source`` calls ``attribute``: of this kind, or a function that returns one when called.

    Raises:
        HastenError: as `load_attribute`; the function fails; ``wrong`` where it is of another kind.
    """
    found = load_attribute(source, attribute)
    with users_code(f"{source}:{attribute} failed"), beside(source):
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
    before = set(sys.modules)
    with users_code(f"{source} fails when it is run", from_error=False):
        module = run_file(source)
    # Other processes can import neither the file under this name nor what lies beside it: both go to them whole.
    cloudpickle.register_pickle_by_value(module)
    folder = source.parent.resolve()
    for name in sys.modules.keys() - before:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and Path(file).resolve().parent == folder:
            cloudpickle.register_pickle_by_value(sys.modules[name])
    if not hasattr(module, attribute):
        raise HastenError(f"{source} defines no {attribute!r}: add it, or name another one as {source}:NAME")
    return getattr(module, attribute)
