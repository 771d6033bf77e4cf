"""Running a program of loops in NumPy: what it means, for comparison with what a compiler makes of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hasten.errors import HastenError
from hasten.workload.arithmetic import evaluate, ranks_of
from hasten.workload.loops import ArrayUse, LoopProgram, LoopStage, weight_source

MOST_POINTS = 20_000_000

Values = dict[str, NDArray[np.float64]]


def run_loops(program: LoopProgram, module: nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a program computes with a module's weights, in double precision.

    Args:
        program: of ``module``.
        inputs: as its forward takes them.

    Returns:
        What the module returns.

    Raises:
        HastenError: a stage of more than `MOST_POINTS` points, or a missing input.
    """
    values = arrays_of(program, module, *inputs)
    for stage in program.stages:
        _run(stage, program, values)
    found = []
    for name, view in zip(program.outputs, program.results, strict=True):
        flat = torch.from_numpy(np.ascontiguousarray(values[name])).reshape(-1)
        found.append(flat.as_strided(view.sizes, view.strides, view.offset).clone())
    return tuple(found)


def arrays_of(program: LoopProgram, module: nn.Module, *inputs: torch.Tensor) -> Values:
    """The arrays that a program is given: its inputs and weights, in the program's shapes.

    Raises:
        HastenError: an input is missing, or has another number of elements.
    """
    known = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    given = {f"input{i}": t for i, t in enumerate(inputs)}
    values: Values = {}
    for name in (*program.inputs, *program.weights):
        shape = program.arrays[name].shape
        tensor = given.get(name) if name in program.inputs else known[weight_source(name, list(known))]
        if tensor is None or tensor.numel() != math.prod(shape):
            raise HastenError(
                f"the program wants {name} of {math.prod(shape)} elements: give the inputs it was made for"
            )
        values[name] = tensor.detach().to("cpu", torch.float64).contiguous().numpy().reshape(shape)
    return values


def _run(stage: LoopStage, program: LoopProgram, values: Values) -> None:
    if stage.points > MOST_POINTS:
        raise HastenError(f"stage {stage.name} has {stage.points:,} points, too many to run here")
    grid = np.indices([n for _, n in stage.loops])
    ranks: Mapping[str, NDArray[np.int64]] = {r: grid[i] for i, (r, _) in enumerate(stage.loops)}

    def places(use: ArrayUse, at: Mapping[str, NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        like = next(iter(at.values()))
        return [sum((f * at[r] for r, f in s.terms), np.zeros_like(like)) + s.offset for s in use.subscripts]

    def taken(use: ArrayUse, at: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float64]:
        index = places(use, at)
        if use.outside is None:
            return values[use.array][tuple(index)]
        shape = program.arrays[use.array].shape
        inside = np.logical_and.reduce([(i >= 0) & (i < n) for i, n in zip(index, shape, strict=True)])
        clipped = tuple(np.clip(i, 0, n - 1) for i, n in zip(index, shape, strict=True))
        return np.where(inside, values[use.array][clipped], use.outside)

    early = set(stage.used(stage.value))
    reads = [taken(u, ranks) if i in early else None for i, u in enumerate(stage.reads)]
    where = {**dict.fromkeys(ranks_of(stage.value), 0), **ranks}
    made = np.broadcast_to(evaluate(stage.value, reads, ranks=where), grid.shape[1:])
    folding = tuple(i for i, (r, _) in enumerate(stage.loops) if r in stage.reduced)
    if stage.reduce is not None:
        made = np.asarray(getattr(np, stage.reduce)(made, axis=folding, keepdims=True))
    # What is finished stands where folded ranks are 0.
    first = tuple(slice(0, 1) if i in folding else slice(None) for i in range(len(stage.loops)))
    kept = {r: g[first] for r, g in ranks.items()}
    late = set(stage.used(stage.finish))
    reads = [taken(u, kept) if i in late else None for i, u in enumerate(stage.reads)]
    result = np.broadcast_to(
        evaluate(stage.finish, reads, made, {**dict.fromkeys(ranks_of(stage.finish), 0), **kept}), made.shape
    )
    for use in stage.writes:
        out = values.setdefault(use.array, np.full(program.arrays[use.array].shape, np.nan))
        out[tuple(places(use, kept))] = result
