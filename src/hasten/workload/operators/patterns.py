"""What many operators have in common: element by element, a reduction, elements moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor as TorchTensor

from hasten.workload.einsum import Access, Op
from hasten.workload.operators.call import Call, Ranks


def axes(shape: Sequence[int]) -> Ranks:
    """Ranks d0, d1, ... of a tensor's dimensions."""
    return tuple((f"d{i}", int(n)) for i, n in enumerate(shape))


def broadcast(call: Call, tensor: TorchTensor, shape: Sequence[int]) -> Access:
    """How a tensor is read where it is broadcast to ``shape``."""
    offset = len(shape) - tensor.dim()
    strides = tensor.stride()
    ranks = [
        f"d{offset + i}"
        for i, n in enumerate(tensor.shape)
        if not ((n == 1 and shape[offset + i] != 1) or (strides[i] == 0 and n > 1))
    ]
    return call.read(tensor, ranks)


def distinct(tensor: TorchTensor) -> int:
    """Distinct elements of a tensor: a dimension that is only expanded does not count."""
    return math.prod(n for n, stride in zip(tensor.shape, tensor.stride()) if stride != 0 or n <= 1)


def whole(call: Call, tensor: TorchTensor, ranks: Sequence[tuple[str, int]] = ()) -> Access:
    """Reading all of a tensor once, whatever the iteration space."""
    return call.read(tensor, [name for name, _ in ranks], distinct(tensor))


def elementwise(
    call: Call, map: str | None = None, inputs: Sequence[TorchTensor] | None = None, op: Op = Op.ELEMENTWISE
) -> None:
    """One Einsum an output: each point of the output reads its point of every input."""
    name = map or call.name.split("::")[-1].rstrip("_")
    for output in call.outputs:
        ranks = axes(output.shape)
        read = [t for t in (call.tensors if inputs is None else inputs) if broadcasts(t.shape, output.shape)]
        call.emit(
            op,
            ranks,
            [broadcast(call, t, output.shape) for t in read],
            output,
            [r for r, _ in ranks],
            map=name,
        )


def broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    pairs = zip(reversed(shape), reversed(target))
    return len(shape) <= len(target) and all(a in (1, b) for a, b in pairs)


def dims(dim: Any, ndim: int) -> list[int]:
    """Dimensions that a reduction's ``dim`` argument names, sorted; all of them for None or ()."""
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(ndim))
    chosen = dim if isinstance(dim, list | tuple) else [dim]
    return sorted({d % max(ndim, 1) for d in chosen})


def reduction(call: Call, reduce: str, map: str = "identity") -> None:
    """Folds the dimensions in ``dim`` (all, without that argument) of the first tensor."""
    source = call.tensors[0]
    chosen = dims(call.arguments.get("dim"), source.dim())
    ranks = axes(source.shape)
    kept = [name for i, (name, _) in enumerate(ranks) if i not in chosen]
    for output in call.outputs:
        call.emit(Op.REDUCE, ranks, [broadcast(call, source, source.shape)], output, kept, map=map, reduce=reduce)


def moved(
    call: Call,
    op: Op,
    source: TorchTensor,
    others: Sequence[TorchTensor] = (),
    map: str = "copy",
    elements: int | None = None,
) -> None:
    """Every element of the output comes from somewhere in ``source``, at places that ``others`` give.

    Args:
        elements: elements of ``source`` touched; by default as many as the output has, at most all.
    """
    output = call.outputs[0]
    ranks = axes(output.shape)
    names = [r for r, _ in ranks]
    touched = min(output.numel(), distinct(source)) if elements is None else elements
    inputs = [call.read(source, names, touched), *(whole(call, t) for t in others)]
    call.emit(op, ranks, inputs, output, names, map=map)


def unknown(call: Call) -> None:
    """An operator nobody described: bytes in, bytes out, and its name on the cascade's list."""
    call.recorder.note_unknown(call.name)
    inputs = [whole(call, t) for t in call.tensors]
    for output in call.outputs:
        ranks = axes(output.shape)
        call.emit(Op.UNKNOWN, ranks, inputs, output, [r for r, _ in ranks], map="unknown")
