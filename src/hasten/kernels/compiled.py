"""The compiled kernels, where this installation has them."""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType

# Sizes that the compiled kernels have too, as those of single kernels' files: a test compares them with the kernels'
# `constants()`.
LANES = 16  # numbers of a vector, whatever the instruction set
MOST_TREE_ROWS = 65  # of one sequence in a compiled step, where its rows form a tree: a root and 64 others
# Number formats as the compiled kernels call them: their bits, where no two have as many.
FORMATS = {"fp32": 32, "fp16": 17, "bf16": 16, "int8": 8, "int4": 4}


@functools.cache
def native() -> ModuleType | None:
    """The compiled kernels' module, or None, said once, where they were not built.

    Setting the environment variable ``HASTEN_NO_NATIVE`` leaves them out: for tests and comparisons.
    ``HASTEN_ISA`` names an instruction set to use instead of the best one (``generic``, ``avx2``).
    """
    if os.environ.get("HASTEN_NO_NATIVE"):
        return None
    try:
        module = importlib.import_module("hasten.kernels._native")
    except ImportError:
        warnings.warn(
            "hasten's compiled kernels are missing, plain torch runs instead, several times slower: "
            "install a C++ compiler and run pip install --force-reinstall --no-deps hasten",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    if isa := os.environ.get("HASTEN_ISA"):
        module.use_isa(isa)
    return module


def compiled_isa() -> str:
    """The instruction set that the compiled kernels use here, or ``none``."""
    module = native()
    return module.isa() if module is not None else "none"
