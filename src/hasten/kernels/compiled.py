"""The compiled kernels, where this installation has them."""

from __future__ import annotations

import functools
import importlib
import os
import shlex
import shutil
import warnings
from pathlib import Path
from types import ModuleType

from hasten.errors import HastenError
from hasten.kernels.block_formats import BLOCK_FORMATS

# Sizes that the compiled kernels have too, as those of single kernels' files: a test compares them with the kernels'
# `constants()`.
LANES = 16  # numbers of a vector, whatever the instruction set
MOST_TREE_ROWS = 65  # of one sequence in a compiled step, where its rows form a tree: a root and 64 others
# Number formats as the compiled kernels call them: their bits, where no two have as many, or the number of a block's.
FORMATS = {
    **{"fp32": 32, "fp16": 17, "bf16": 16, "int8": 8, "int4": 4},
    **{known.name: number for number, known in BLOCK_FORMATS.items()},
}
# Activations of a gated feed-forward, by the compiled step's numbers.
ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}


@functools.cache
def native() -> ModuleType | None:
    """The compiled kernels' module, or None, said once, where they were not built.

    Setting the environment variable ``HASTEN_NO_NATIVE`` leaves them out: for tests and comparisons.
    ``HASTEN_ISA`` names an instruction set to use instead of the best one (``generic``, ``avx2``).

    Raises:
        HastenError: this machine has no instruction set that is called so.
    """
    if os.environ.get("HASTEN_NO_NATIVE"):
        return None
    try:
        module = importlib.import_module("hasten.kernels._native")
    except ImportError:
        warnings.warn(
            f"hasten's compiled kernels are missing, plain torch runs instead, several times slower: {remedy()}",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    if isa := os.environ.get("HASTEN_ISA"):
        known = module.isas()
        if isa not in known:
            raise HastenError(f"HASTEN_ISA is {isa[:40]!r}: this machine has {', '.join(known)}")
        module.use_isa(isa)
    return module


def remedy() -> str:
    """What is missing where the kernels were not built, and what to do.

    An index's wheel, or one that pip has kept, was made without them: it must be built here, past pip's cache.
    """
    home = Path(__file__).parents[3]
    what = shlex.quote(str(home)) if (home / "CMakeLists.txt").is_file() else "hasten"
    build = f"pip install --force-reinstall --no-deps --no-cache-dir --no-binary hasten {what}"
    compilers = (os.environ.get("CXX") or "", "c++", "g++", "clang++", *(["cl"] if os.name == "nt" else []))
    found = next((name for name in compilers if name and shutil.which(name)), None)
    if found is None:
        return f"there is no C++ compiler here, so install one (g++ or clang), then run {build}"
    return f"a C++ compiler is here ({found}), so run {build}; with -v it shows why a build fails"


def compiled_isa() -> str:
    """The instruction set that the compiled kernels use here, or ``none``."""
    module = native()
    return module.isa() if module is not None else "none"
