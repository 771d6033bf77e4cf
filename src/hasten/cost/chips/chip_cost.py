"""What anything costs on a chip: the one result of all models in this folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ChipCost:
    """What a layer, a tile, a task or a trace of requests costs on a chip, in SI units.

    The fields are named as those of `hasten.cost.estimate.EinsumCost`. A model that says more subclasses this; what it
    adds may count cycles, which are a number of steps and not a time.

    Args:
        latency: seconds from the first step to the last result.
        energy: joules.
        bytes: memory level -> bytes moved to and from it, the innermost level first.
        area: square metres of the chip, or of the part of it that is used; None where the model does not know.
        bound: what the latency is bound by: a compute unit, a memory level, or what the model's docstring names.

    >>> cost = ChipCost(latency=2e-3, energy=1e-3, bytes={"buffer": 4e6, "memory": 1e6}, area=5e-6, bound="memory")
    >>> cost.power
    0.5
    """

    latency: float
    energy: float
    bytes: Mapping[str, float]
    area: float | None = None
    bound: str

    @property
    def power(self) -> float:
        """Watts, mean over the latency; 0 where nothing takes time."""
        return self.energy / self.latency if self.latency else 0.0
