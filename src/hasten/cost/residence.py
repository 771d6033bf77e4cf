"""Where tensors are while launches follow each other: the memory level that serves them, and bytes alive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hasten.cost.folding import tensor_copies
from hasten.cost.launches import Launch, keep_most
from hasten.hardware import Device
from hasten.workload import Cascade, Role


class Residence:
    """Which memory level serves a tensor: the innermost one that still holds it.

    The bytes touched since the last use of a tensor bound its reuse distance; a level with a larger
    capacity still has the tensor, if it replaces the least recently used. A phase repeats: what is touched
    for the first time was last touched one whole execution ago. Kernels of a layer that stands for several
    (`hasten.cost.folding`) count as often as there are such layers.
    """

    def __init__(self, device: Device, kernels: Sequence[Launch], cascade: Cascade) -> None:
        self._capacities = [float(level.capacity) if level.keeps else 0.0 for level in device.memory]
        touched: dict[str, int] = {}
        for kernel in kernels:
            for table in (kernel.reads, kernel.writes):
                for name, amount in table.items():
                    keep_most(touched, name, amount)
        each = tensor_copies([(k.copies, k.reads, k.writes) for k in kernels], cascade)
        self.copies: Mapping[str, int] = each
        self._footprint = sum(amount * each[name] for name, amount in touched.items())
        self._clock = 0
        self._seen: dict[str, int] = {}
        # Of the layer at hand, where it stands for several: how many, its bytes so far, and what it touched.
        self._repeated, self._passed = 1, 0
        self._touched: dict[str, None] = {}

    def serve(self, kernel: Launch) -> tuple[dict[str, int], dict[str, int]]:
        """Tensor -> number of the level that serves its read, and of the level its write reaches."""
        size = sum(kernel.reads.values()) + sum(kernel.writes.values())
        reads, writes = {}, {}
        if kernel.copies != self._repeated:
            self._pass_the_rest()
            self._repeated = kernel.copies
        for name in kernel.reads:
            since = self._clock - self._seen[name] if name in self._seen else self._footprint
            reads[name] = self._holding(min(since + size, self._footprint))
        for name, amount in kernel.writes.items():
            # Freed memory is given out again: a result lands where something of its size just died.
            writes[name] = self._holding(min(size + amount, self._footprint))
        self._clock += size
        for name in (*kernel.reads, *kernel.writes):
            self._seen[name] = self._clock
        if kernel.copies > 1:
            self._passed += size
            self._touched |= dict.fromkeys((*kernel.reads, *kernel.writes))
        return reads, writes

    def _pass_the_rest(self) -> None:
        """The layers that the one at hand stands for, which touch what it touched, have run too."""
        passed = (self._repeated - 1) * self._passed
        self._clock += passed
        for name in self._touched:
            self._seen[name] += passed
        self._passed, self._touched = 0, {}

    def _holding(self, distance: float) -> int:
        for index, capacity in enumerate(self._capacities):
            if distance <= capacity:
                return index
        return len(self._capacities) - 1


def live_bytes(kernels: Sequence[Launch], cascade: Cascade) -> float:
    """Bytes of inputs, outputs and intermediates alive at the worst moment."""
    tensors = cascade.tensors
    last: dict[str, int] = {}
    for index, kernel in enumerate(kernels):
        for name in kernel.reads:
            last[name] = index
    current = float(sum(t.nbytes for t in tensors.values() if t.role is Role.INPUT))
    alive: dict[str, int] = {}
    ending: dict[int, list[str]] = {}
    worst = current
    for index, kernel in enumerate(kernels):
        for name in kernel.writes:
            role = tensors[name].role
            if role in (Role.WEIGHT, Role.STATE, Role.INPUT) or name in alive:
                continue
            alive[name] = tensors[name].nbytes
            current += alive[name]
            if role is Role.INTERMEDIATE:
                ending.setdefault(max(last.get(name, index), index), []).append(name)
        worst = max(worst, current)
        for name in ending.pop(index, ()):
            current -= alive.pop(name)
    return worst
