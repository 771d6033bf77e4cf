"""Files of checks as modules, wherever they lie: in this package or in a folder of a user's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

OUTSIDE = "hasten_papers_"
"""How the names of modules begin that lie in no package."""


def import_file(name: str, file: str) -> ModuleType:
    """The module called ``name``: one that can be imported as others are, else what lies in the file."""
    if name in sys.modules:
        return sys.modules[name]
    if not name.startswith(OUTSIDE):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its classes and functions can then be sent to other processes
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
