"""hasten: make a neural network fast on the hardware you have.

The verbs of the command line are functions here: `tune`, `load`, `estimate`, `measure`, `probe`, `trace`. Papers and
their checks are in `hasten.papers`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hasten.cost.measuring import measure as measure
    from hasten.cost.roofline import estimate as estimate
    from hasten.hardware import devices, load_device, probe
    from hasten.models import load_network
    from hasten.runtime import LanguageModel
    from hasten.tuning.tune import Settings, load, tune
    from hasten.workload import trace

# Nothing heavy is imported before one of these is asked for.
_HOMES = {
    "LanguageModel": "hasten.runtime",
    "Settings": "hasten.tuning.tune",
    "devices": "hasten.hardware",
    "estimate": "hasten.cost",
    "load": "hasten.tuning.tune",
    "load_device": "hasten.hardware",
    "load_network": "hasten.models",
    "measure": "hasten.cost",
    "probe": "hasten.hardware",
    "trace": "hasten.workload",
    "tune": "hasten.tuning.tune",
}
_PARTS = (
    "cost", "data", "hardware", "kernels", "methods", "models", "nn", "papers", "report", "runtime", "search", "spaces",
    "tasks", "train", "tuning", "workload",
)  # fmt: skip

__all__ = [
    "LanguageModel",
    "Settings",
    "__version__",
    "devices",
    "estimate",
    "load",
    "load_device",
    "load_network",
    "measure",
    "probe",
    "trace",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _PARTS:
        return import_module(f"hasten.{name}")
    raise AttributeError(f"module 'hasten' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_PARTS})


if hasattr(sys.modules.get("gymnasium"), "register"):  # so that gymnasium.make("hasten:hasten/dram-v0") finds it
    import_module("hasten.gym")
