"""What is launched together: the Einsums of one operator or fused kernel, and what crosses their border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.cost.folding import copies_of
from hasten.workload import Cascade, Einsum


@dataclass
class Launch:
    """Einsums of a cascade that are launched as one, and the bytes of each tensor that crosses their border."""

    einsums: list[Einsum]
    reads: dict[str, int] = field(default_factory=dict)
    writes: dict[str, int] = field(default_factory=dict)

    @property
    def copies(self) -> int:
        """How many launches of equal layers it stands for."""
        return copies_of(self.einsums[0])


def keep_most(table: dict[str, int], name: str, amount: int) -> None:
    """The larger of what ``table`` has for ``name`` and ``amount``, kept there."""
    table[name] = max(table.get(name, 0), amount)


def launches(cascade: Cascade) -> list[list[Einsum]]:
    """Einsums that one operator computes, together; a negative number stands for a launch of its own."""
    groups: list[list[Einsum]] = []
    for einsum in cascade.einsums:
        if groups and einsum.kernel >= 0 and groups[-1][-1].kernel == einsum.kernel:
            groups[-1].append(einsum)
        else:
            groups.append([einsum])
    return groups


def operators_of(group: Sequence[Einsum]) -> list[list[Einsum]]:
    """The traced operators that a fused kernel is made of."""
    parts: dict[int, list[Einsum]] = {}
    for index, einsum in enumerate(group):
        parts.setdefault(einsum.kernel if einsum.kernel >= 0 else -1 - index, []).append(einsum)
    return list(parts.values())


def modules_entered(before: str, now: str) -> int:
    """How many module calls lie between two operators: what of the path was not entered before."""
    if before == now or not now:
        return 0
    old, new = before.split("."), now.split(".")
    common = 0
    for a, b in zip(old, new):
        if a != b:
            break
        common += 1
    return len(new) - common
