"""Running what was emitted as plain C++ with the system's compiler, on a module's own weights."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.hardware.hls.directives import HlsDesign
from hasten.hardware.hls.emission import bench, parameters
from hasten.workload.loop_execution import arrays_of


def compiler() -> str:
    """The system's C++ compiler.

    Raises:
        HastenError: there is none.
    """
    found = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if found is None:
        raise HastenError("emitted circuits are run with a C++ compiler: install g++")
    return found


def run_design(
    design: HlsDesign, module: nn.Module, *inputs: torch.Tensor, seconds: float = 120.0
) -> tuple[torch.Tensor, ...]:
    """What the emitted source of a design computes, compiled and run as plain C++.

    Args:
        design: of a program of ``module``.
        module: whose weights are given to it.
        inputs: of the shapes that the program was traced with.
        seconds: that compiling and running may each take.

    Returns:
        The tensors that the module returns, fp32.

    Raises:
        HastenError: inputs of other shapes, no compiler, a source that does not compile, or a program that fails or
            gives too few numbers.
    """
    program = design.program
    values = arrays_of(program, module, *inputs)
    parts = [values[n].astype(np.float32).ravel() for n in parameters(program) if n not in program.outputs]
    with tempfile.TemporaryDirectory() as folder:
        source, binary, given_file, made = (Path(folder) / n for n in ("design.cpp", "design", "given", "made"))
        source.write_text(bench(design))
        np.concatenate(parts).tofile(given_file)
        # Directives are a synthesis tool's: any other says that it does not know them.
        build = [compiler(), "-O1", "-std=c++14", "-Wall", "-Wno-unknown-pragmas", "-o", str(binary), str(source)]
        run = [str(path) for path in (binary, given_file, made)]
        for command, what in ((build, "does not compile"), (run, "does not run")):
            try:
                ran = subprocess.run(
                    command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False
                )
            except subprocess.TimeoutExpired:
                raise HastenError(f"{program.name} {what} within {seconds:g} s") from None
            except OSError as error:
                raise HastenError(f"{program.name} {what}: {command[0]}: {error.strerror}") from None
            if ran.returncode:
                said = (ran.stderr or ran.stdout).decode("utf-8", "replace")
                line = said.strip().splitlines() or [f"exit code {ran.returncode}"]
                raise HastenError(f"{program.name} {what}: {line[0][:300]}")
        results = torch.from_numpy(np.fromfile(made, np.float32) if made.is_file() else np.zeros(0, np.float32))
    if len(results) != (wanted := sum(program.arrays[n].elements for n in program.outputs)):
        raise HastenError(f"{program.name} gives {len(results)} numbers, where it has {wanted} results")
    found = []
    for name, view in zip(program.outputs, program.results, strict=True):
        here, results = results[: program.arrays[name].elements], results[program.arrays[name].elements :]
        found.append(here.clone().as_strided(view.sizes, view.strides, view.offset).clone())
    return tuple(found)
