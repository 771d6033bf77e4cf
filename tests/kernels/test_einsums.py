"""A kernel says beside itself what Einsums it stands for."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import torch

from hasten import kernels, workload
from hasten.workload import trace_cascade
from hasten.workload.operators import TABLE

SOURCES = {p.name: p.read_text() for p in Path(kernels.__file__).parent.glob("*.py")}


def test_every_operator_has_its_einsums_in_its_own_file() -> None:
    for module in pkgutil.iter_modules(kernels.__path__):
        if module.name != "_native":
            importlib.import_module(f"hasten.kernels.{module.name}")
    found = 0
    for name, text in SOURCES.items():
        for operator in re.findall(r'torch\.library\.define\(\s*"(hasten::\w+)"', text):
            if operator.endswith("_backward"):
                continue
            found += 1
            assert operator in TABLE, f"kernels/{name}: register the Einsums of {operator}"
            assert TABLE[operator].__module__ == f"hasten.kernels.{name.removesuffix('.py')}"
    assert found >= 10


def test_workload_names_no_kernel() -> None:
    folder = Path(workload.__file__).parent
    assert not [p for p in folder.rglob("*.py") if '"hasten::' in p.read_text()]


def test_plain_linear_is_one_matmul() -> None:
    weight = torch.zeros(5, 32)
    cascade = trace_cascade(torch.ops.hasten.plain_linear, (torch.zeros(2, 3, 32), weight)).cascade
    (matmul,) = cascade.einsums
    assert (matmul.sizes, matmul.flops) == ({"m": 6, "n": 5, "k": 32}, 2 * 6 * 5 * 32)
    assert cascade.unknown == ()
