"""Editing a workload: what several methods' rewritings share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hasten.workload.einsum import Cascade, Phase, Role, Tensor, Workload


class Draft:
    """A cascade being edited."""

    def __init__(self, cascade: Cascade) -> None:
        self.einsums = list(cascade.einsums)
        self.tensors = dict(cascade.tensors)
        self.unknown = cascade.unknown
        self._kernel = max((e.kernel for e in self.einsums), default=0)
        self._names = 0

    def kernel(self) -> int:
        """A launch number of its own."""
        self._kernel += 1
        return self._kernel

    def temporary(self, shape: tuple[int, ...], dtype: str) -> str:
        """A new intermediate tensor's name."""
        self._names += 1
        name = f"new{self._names}"
        while name in self.tensors:
            self._names += 1
            name = f"new{self._names}"
        self.tensors[name] = Tensor(name, shape, dtype, Role.INTERMEDIATE)
        return name

    def cascade(self) -> Cascade:
        """The edited cascade; tensors that nothing uses any more are gone."""
        used = {a.tensor for e in self.einsums for a in (*e.inputs, e.output)}
        einsums = tuple(replace(e, name=f"e{i}") for i, e in enumerate(self.einsums))
        return Cascade(einsums, {n: t for n, t in self.tensors.items() if n in used}, self.unknown)


def edit(workload: Workload, change: Callable[[Phase, Draft], None]) -> Workload:
    """``workload`` with ``change`` made to each phase's draft."""
    phases = []
    for phase in workload.phases:
        draft = Draft(phase.cascade)
        change(phase, draft)
        phases.append(replace(phase, cascade=draft.cascade()))
    return replace(workload, phases=tuple(phases))


Outline = dict[str, object]


def outline(workload: Workload) -> Outline:
    """What a workload says that a cost model goes by, without torch's incidental plumbing.

    Of each phase: its repeats; every contraction with its module, FLOPs, product, and the bytes and formats of
    weights that it reads; the bytes read and written of each state tensor. And all weights and state in bytes. Two
    workloads with equal outlines differ at most in views, masks and copies, which eager torch arranges by shape.
    """
    phases: dict[str, object] = {}
    for phase in workload.phases:
        cascade = phase.cascade
        contractions = []
        read: dict[str, int] = {}
        written: dict[str, int] = {}
        for e in cascade.einsums:
            for a in e.inputs:
                if cascade.tensors[a.tensor].role is Role.STATE:
                    read[a.tensor] = read.get(a.tensor, 0) + cascade.access_bytes(e, a)
            if cascade.tensors[e.output.tensor].role is Role.STATE:
                name = e.output.tensor
                written[name] = written.get(name, 0) + cascade.access_bytes(e, e.output)
            if e.flops:
                weights = sorted(
                    (a.tensor, cascade.tensors[a.tensor].dtype, cascade.access_bytes(e, a))
                    for a in e.inputs
                    if cascade.tensors[a.tensor].role is Role.WEIGHT
                )
                contractions.append((e.module, e.flops, e.map, tuple(weights)))
        phases[phase.name] = (phase.repeats, contractions, sorted(read.items()), sorted(written.items()))
    return {
        "phases": phases,
        "weights": sorted(workload.weights.items()),
        "state": sorted(workload.state.items()),
        "attributes": sorted(workload.attributes.items()),
    }
