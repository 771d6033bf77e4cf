"""How much a workload costs: what every estimator returns, and a measurement in the same shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class EinsumCost:
    """The cost of one Einsum, or of one group of Einsums executed as one kernel.

    Args:
        name: the first Einsum's name; ``einsums`` counts how many run in this kernel.
        module: dotted path of the torch module.
        source: the traced operator.
        latency: seconds, launch included, of one execution.
        energy: joules of one execution.
        bound: what bounds it: a compute unit's name, a memory level's name, or ``launch``.
        flops: contraction FLOPs plus scalar operations.
        bytes: memory level name -> bytes moved over its port.
        repeats: executions in the whole run.
    """

    name: str
    module: str
    source: str
    latency: float
    energy: float
    bound: str
    flops: int
    bytes: Mapping[str, float]
    einsums: int = 1
    repeats: int = 1


@dataclass(frozen=True)
class PhaseCost:
    """Sum over one phase, all its repeats: seconds, joules, bytes a memory level."""

    name: str
    repeats: int
    latency: float
    energy: float
    bytes: Mapping[str, float]
    einsums: tuple[EinsumCost, ...]

    @property
    def latency_per_repeat(self) -> float:
        return self.latency / self.repeats


@dataclass(frozen=True)
class Estimate:
    """A predicted cost.

    Args:
        workload, device: their names.
        phases: in order.
        peak_memory: bytes resident at the worst moment: weights, state and live intermediates.
        io_lower_bound: bytes that any schedule must move over the outermost memory's port.
        fits: whether ``peak_memory`` fits the device's main memory.
        notes: what the reader should know: unknown operators, formats the device emulates, ...
        attention_io: bytes that attention moves to and from main memory, over the bound of
            `hasten.workload.attention_io` for the memory on the chip; None where nothing attends. Constants of the
            bound are 1: about 4 is as near as any program known comes where not all fits on the chip.
    """

    workload: str
    device: str
    phases: tuple[PhaseCost, ...]
    peak_memory: float
    io_lower_bound: float
    fits: bool = True
    notes: tuple[str, ...] = ()
    attention_io: float | None = None

    @property
    def latency(self) -> float:
        """Seconds of the whole run."""
        return sum(p.latency for p in self.phases)

    @property
    def energy(self) -> float:
        """Joules of the whole run."""
        return sum(p.energy for p in self.phases)

    @property
    def bytes(self) -> dict[str, float]:
        """Memory level name -> bytes moved over its port in the whole run."""
        total: dict[str, float] = {}
        for phase in self.phases:
            for level, moved in phase.bytes.items():
                total[level] = total.get(level, 0.0) + moved
        return total

    @property
    def io_distance(self) -> float:
        """Outermost traffic over its lower bound: 1 is optimal."""
        outermost = max(self.bytes.values(), default=0.0) if not self.bytes else list(self.bytes.values())[-1]
        return outermost / self.io_lower_bound if self.io_lower_bound else 1.0

    def phase(self, name: str) -> PhaseCost:
        """The phase called ``name``.

        Raises:
            KeyError: no such phase.
        """
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise KeyError(name)


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of repeated measurements."""

    median: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Measurement:
    """A measured cost, in the shape of an `Estimate`: seconds a phase with spread, bytes of peak memory."""

    workload: str
    device: str
    phases: Mapping[str, Spread]
    peak_memory: float
    extra: Mapping[str, float] = field(default_factory=dict)

    @property
    def latency(self) -> float:
        """Seconds of the whole run: the sum of the phases' medians."""
        return sum(s.median for s in self.phases.values())
