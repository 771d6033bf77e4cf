"""Layers of one kind described once: predictions of what differs from layer to layer in nothing cost a few layers.

Of a run of equal layers the first, one of the middle and the last are kept; the middle one stands for all between. Its
Einsums say so themselves (`RepeatedEinsum`), so that methods rewrite them as any others and the number stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from hasten.workload import Cascade, Einsum, Role, Workload

# Layers of a run that are kept: its first and last meet what is around them, the one between stands for the rest.
_KEPT = 3
_CACHED = re.compile(r"cache\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class RepeatedEinsum(Einsum):
    """An Einsum that stands for equal ones of further layers.

    Args:
        copies: how many it stands for, itself included.
    """

    copies: int = 1


def copies_of(einsum: Einsum) -> int:
    """How many Einsums of equal layers ``einsum`` stands for."""
    return einsum.copies if isinstance(einsum, RepeatedEinsum) else 1


def folded(workload: Workload) -> Workload:
    """``workload`` with each run of equal layers as three of them; as it is where nothing is repeated.

    `hasten.cost.estimate` gives the same latency for both. What counts without knowing of copies (FLOPs of a cascade,
    bytes of ``weights``) is then of the layers that are left.
    """
    order = _layers(workload)
    cut: dict[str, str] = {}  # layer's path -> the path of the one that stands for it
    copies: dict[str, int] = {}
    for run in _runs(order):
        if len(run) > _KEPT:
            middle = run[1]
            cut |= dict.fromkeys(run[2:-1], middle)
            copies[middle] = len(run) - 2
    if not cut:
        return workload
    phases = tuple(replace(p, cascade=_without(p.cascade, cut, copies)) for p in workload.phases)
    left = {name for p in phases for name in p.cascade.tensors}
    known = {name for p in workload.phases for name in p.cascade.tensors}
    gone = {f"{path}." for path in cut}
    caches = {_CACHED.match(name)[1] for name in known - left if _CACHED.match(name)}  # type: ignore[index]

    def stays(name: str) -> bool:
        if name in known:
            return name in left
        if (found := _CACHED.match(name)) is not None:
            return found[1] not in caches
        return not any(name.startswith(path) for path in gone)

    return replace(
        workload,
        phases=phases,
        weights={n: b for n, b in workload.weights.items() if stays(n)},
        state={n: b for n, b in workload.state.items() if stays(n)},
    )


def resident_bytes(workload: Workload) -> tuple[int, int]:
    """Bytes of weights and of state, those of layers that others stand for included."""
    copies = _copies_by_owner(workload)
    if not copies:
        return workload.weight_bytes, workload.state_bytes
    weights, state = (
        sum(size * _of_owner(name, copies) for name, size in table.items())
        for table in (workload.weights, workload.state)
    )
    return weights, state


def _copies_by_owner(workload: Workload) -> dict[str, int]:
    """What is kept for a layer, by the beginning of its name (``model.layers.1.``, ``cache.1.``), and its copies."""
    found: dict[str, int] = {}
    for phase in workload.phases:
        for e in phase.cascade.einsums:
            if (count := copies_of(e)) > 1:
                found[f"{_path(e.module)}."] = count
                for a in (*e.inputs, e.output):
                    if (kept := _CACHED.match(a.tensor)) is not None:
                        found[kept[0]] = count
    return found


def _of_owner(name: str, copies: Mapping[str, int]) -> int:
    return next((count for path, count in copies.items() if name.startswith(path)), 1)


def _path(module: str) -> str:
    """A module's path up to its first number."""
    parts = module.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return ""


def _layers(workload: Workload) -> dict[str, object]:
    """Layer's path -> what makes it equal to others, in the order in which the first phase runs them."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for number, phase in enumerate(workload.phases):
        einsums = phase.cascade.einsums
        for which, group in enumerate(phase.cascade.groups()):
            if group.module.endswith("*"):
                for start in group.starts:
                    found.setdefault(_path(einsums[start].module), []).append((number, start, which))
    # A layer may come in several parts: their groups, in the order of where they begin.
    return {
        path: tuple((number, which) for number, _, which in sorted(parts)) for path, parts in found.items()
    }  # fmt: skip


def _runs(layers: Mapping[str, object]) -> Iterator[list[str]]:
    """Equal layers of one list that follow each other."""
    lists: dict[str, list[tuple[int, str]]] = {}
    for path in layers:
        parent, _, number = path.rpartition(".")
        lists.setdefault(parent, []).append((int(number), path))
    for members in lists.values():
        run: list[str] = []
        for _, path in sorted(members):
            if run and layers[run[-1]] != layers[path]:
                yield run
                run = []
            run.append(path)
        yield run


def _without(cascade: Cascade, cut: Mapping[str, str], copies: Mapping[str, int]) -> Cascade:
    """A cascade without some layers: who reads what they made reads what the layer that stands for them made."""
    made: dict[str, list[str]] = {}
    for e in cascade.einsums:
        if (path := _path(e.module)) in cut or path in copies:
            made.setdefault(path, []).append(e.output.tensor)
    instead = {
        old: new for path, middle in cut.items() for old, new in zip(made.get(path, ()), made.get(middle, ()))
        if cascade.tensors[old].role not in (Role.STATE, Role.WEIGHT)
    }  # fmt: skip
    einsums: list[Einsum] = []
    for e in cascade.einsums:
        path = _path(e.module)
        if path in cut:
            continue
        if any(a.tensor in instead for a in e.inputs):
            e = replace(e, inputs=tuple(replace(a, tensor=instead.get(a.tensor, a.tensor)) for a in e.inputs))
        einsums.append(_repeated(e, copies[path]) if path in copies else e)
    used = {a.tensor for e in einsums for a in (*e.inputs, e.output)}
    tensors = {n: t for n, t in cascade.tensors.items() if n in used}
    return Cascade(tuple(einsums), tensors, cascade.unknown)


def _repeated(e: Einsum, copies: int) -> RepeatedEinsum:
    return RepeatedEinsum(
        e.name, e.op, e.ranks, e.inputs, e.output, e.map, e.reduce, e.iterative, e.module, e.kernel, e.source,
        e.constants, copies * copies_of(e),
    )  # fmt: skip


def tensor_copies(
    kernels: Sequence[tuple[int, Mapping[str, int], Mapping[str, int]]], cascade: Cascade
) -> dict[str, int]:
    """How many tensors of equal layers each tensor stands for.

    Args:
        kernels: of each launch its copies, and what it reads and writes.
        cascade: whose tensors they are.
    """
    found: dict[str, int] = {}
    for count, reads, writes in kernels:
        for name in (*reads, *writes):
            # What several layers read is one; what a layer makes for the next is as many as it stands for.
            made = name in writes and cascade.tensors[name].role not in (Role.WEIGHT, Role.STATE)
            found[name] = count if made else min(found.get(name, count), count)
    return found
