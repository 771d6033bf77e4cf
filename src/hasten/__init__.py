"""hasten: make a neural network fast on the hardware you have.

The verbs of the command line are functions here: `tune`, `load`, `estimate`, `measure`, `probe`, `trace`. Papers and
their checks are in `hasten.papers`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# What is offered, for type checkers and for `__getattr__` alike: nothing heavy is imported before it is asked for.
if TYPE_CHECKING:
    from hasten.cost.measuring import measure as measure
    from hasten.cost.roofline import estimate as estimate
    from hasten.hardware import devices as devices
    from hasten.hardware import load_device as load_device
    from hasten.hardware import probe as probe
    from hasten.models import load_network as load_network
    from hasten.runtime import LanguageModel as LanguageModel
    from hasten.tuning.tune import Settings as Settings
    from hasten.tuning.tune import load as load
    from hasten.tuning.tune import tune as tune
    from hasten.workload import trace as trace


@functools.cache
def _homes() -> dict[str, str]:
    """Name -> where it is imported from."""
    from hasten.exports import typed_imports

    return typed_imports(__file__)


@functools.cache
def _parts() -> frozenset[str]:
    """The rooms, which can be used without being imported first."""
    return frozenset(m.name for m in pkgutil.iter_modules(__path__) if m.ispkg and m.name != "cli")


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(["__version__", *_homes()])
    if not name.startswith("_"):
        if name in _homes():
            return getattr(importlib.import_module(_homes()[name]), name)
        if name in _parts():
            return importlib.import_module(f"hasten.{name}")
    raise AttributeError(f"module 'hasten' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_homes(), *_parts()})


if hasattr(sys.modules.get("gymnasium"), "register"):  # so that gymnasium.make("hasten:hasten/dram-v0") finds it
    importlib.import_module("hasten.gym")
