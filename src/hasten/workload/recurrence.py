"""Einsums that wait for each other's steps along an iterative rank, and the order in which a cascade can run."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from hasten.errors import HastenError
from hasten.workload.einsum import Access, Cascade, Einsum


@dataclass(frozen=True)
class Unit:
    """Einsums that run together: one, or several in step along a rank.

    Args:
        einsums: their places in the cascade, ascending.
        rank: the iterative rank along which they go on; empty for an Einsum that reads nothing of its own.
    """

    einsums: tuple[int, ...]
    rank: str = ""


def units(cascade: Cascade) -> list[Unit]:
    """The cascade in an order that it can run in; its own order where nothing reads what is written later.

    A recurrence is an Einsum with an iterative rank whose output, indexed by that rank, is read by itself or by an
    earlier Einsum that has the rank too: ``P[i] = F[i] * S[i]; S[i+1] = P[i] + A[i] along i``.

    Raises:
        HastenError: Einsums that wait for each other have no iterative rank in common.
    """
    backward = _backward(cascade)
    if not backward:
        return [Unit((i,)) for i in range(len(cascade))]
    after = _edges(cascade, backward)
    of = list(range(len(cascade)))  # Einsum -> the first of its unit
    before = _turned(after)
    for writer, reader, _ in backward:
        own = _reached(after, reader) & _reached(before, writer) | {writer, reader}
        joined = {of[i] for i in own}
        of = [min(joined) if unit in joined else unit for unit in of]
    members: dict[int, list[int]] = {}
    for index, unit in enumerate(of):
        members.setdefault(unit, []).append(index)
    found = []
    for unit in _sorted(of, after):
        own_members = members[unit]
        along = {rank for writer, reader, rank in backward if of[writer] == of[reader] == unit}
        if len(along) > 1 or not all(along <= cascade.einsums[i].sizes.keys() for i in own_members):
            names = ", ".join(cascade.einsums[i].output.tensor for i in own_members)
            raise HastenError(f"{names} wait for each other without one iterative rank in all: say along which")
        found.append(Unit(tuple(own_members), next(iter(along), "")))
    return found


def _edges(cascade: Cascade, backward: list[tuple[int, int, str]]) -> list[set[int]]:
    """Einsum -> those that wait for it."""
    after: list[set[int]] = [set() for _ in cascade.einsums]
    for writer, reader, _ in backward:
        after[writer].add(reader)
    written: dict[str, list[int]] = {}
    read: dict[str, list[int]] = {}
    steps = {(reader, writer) for writer, reader, _ in backward}
    for index, einsum in enumerate(cascade.einsums):
        for access in einsum.inputs:
            for writer in written.get(access.tensor, ()):
                after[writer].add(index)
            read.setdefault(access.tensor, []).append(index)
        # What is written again waits for who wrote or read it before, unless that is a step of a recurrence.
        name = einsum.output.tensor
        for before in (*written.get(name, ()), *read.get(name, ())):
            if before != index and (before, index) not in steps:
                after[before].add(index)
        written.setdefault(name, []).append(index)
    return after


def _turned(after: list[set[int]]) -> list[set[int]]:
    before: list[set[int]] = [set() for _ in after]
    for index, others in enumerate(after):
        for other in others:
            before[other].add(index)
    return before


def _reached(after: list[set[int]], start: int) -> set[int]:
    found, waiting = {start}, [start]
    while waiting:
        new = after[waiting.pop()] - found
        found |= new
        waiting += new
    return found


def _sorted(of: list[int], after: list[set[int]]) -> list[int]:
    """Units in an order in which none waits for a later one, the earliest first."""
    waits: dict[int, set[int]] = {unit: set() for unit in of}
    for index, others in enumerate(after):
        for other in others:
            if of[other] != of[index]:
                waits[of[other]].add(of[index])
    ready = [unit for unit, before in waits.items() if not before]
    heapq.heapify(ready)
    order = []
    while ready:
        unit = heapq.heappop(ready)
        order.append(unit)
        for other, before in waits.items():
            if unit in before:
                before.discard(unit)
                if not before:
                    heapq.heappush(ready, other)
    return order


def _backward(cascade: Cascade) -> list[tuple[int, int, str]]:
    """(writer, reader, rank) wherever a step reads what the same or a later Einsum wrote a step before."""
    iterative = [(i, e) for i, e in enumerate(cascade.einsums) if e.iterative]
    found = []
    for writer, einsum in iterative:
        for reader in range(writer + 1):
            for access in cascade.einsums[reader].inputs:
                rank = _shared(einsum, access) if access.tensor == einsum.output.tensor else ""
                if not rank:
                    continue
                if lag(einsum, cascade.einsums[reader], access, rank)[0] < 1:
                    raise HastenError(
                        f"{cascade.einsums[reader].output.tensor} reads of {access.tensor} what is not written yet: "
                        f"read an earlier step of {rank}"
                    )
                found.append((writer, reader, rank))
    return found


def _shared(writer: Einsum, access: Access) -> str:
    """The iterative rank that indexes a dimension of what is written and read, one of both by an index of its own."""
    output = writer.output
    if output.index is None and access.index is None:
        return ""
    for rank in writer.iterative:
        for made, read in zip(output.indices, access.indices, strict=True):
            if made.factor(rank) and read.factor(rank):
                return rank
    return ""


def lag(writer: Einsum, reader: Einsum, access: Access, rank: str, own: str = "") -> tuple[int, int]:
    """The fewest and the most steps after which a reader of an element follows its writer; below 0: goes before it.

    Args:
        writer, reader: two Einsums.
        access: how the reader reads what the writer writes.
        rank: of the reader, along which both go on.
        own: the same rank of the writer; ``rank`` when empty.

    Raises:
        HastenError: the two go over the tensor at different speeds.
    """
    own = own or rank
    for made, read in zip(writer.output.indices, access.indices, strict=True):
        factor = made.factor(own)
        if not factor and not read.factor(rank):
            continue
        if factor != read.factor(rank):
            raise HastenError(
                f"{writer.output.tensor} is written at [{made}] and read at [{read}]: "
                f"along {rank} both must go on by the same number"
            )
        first, last = made.bounds(writer.sizes, without=own)
        low, high = read.bounds(reader.sizes, without=rank)
        ends = sorted(((first - high) / factor, (last - low) / factor))
        return -int(-ends[0] // 1), int(ends[1] // 1)
    return 0, 0
