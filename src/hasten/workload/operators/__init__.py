"""What each operator computes, as Einsums: a file a family of operators, found by this folder.

A kernel of hasten's own registers its Einsums where it stands (`hasten.kernels`), and a user does as they do, with
`register`.
"""

from __future__ import annotations

import importlib
import pkgutil

from hasten.workload.operators.call import TABLE, Call, Handler, Ranks, register
from hasten.workload.operators.patterns import (
    axes,
    broadcast,
    broadcasts,
    dims,
    distinct,
    elementwise,
    moved,
    reduction,
    unknown,
    whole,
)

__all__ = [
    "TABLE",
    "Call",
    "Handler",
    "Ranks",
    "axes",
    "broadcast",
    "broadcasts",
    "dims",
    "distinct",
    "elementwise",
    "moved",
    "reduction",
    "register",
    "unknown",
    "whole",
]

for _family in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_family.name}")
