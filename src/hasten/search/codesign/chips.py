"""Chips of several sub-accelerators: what may be chosen, what networks cost there, and the limits they must keep.

The chip part of NASAIC (arXiv 2002.04116, section III).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.cost.chips.chip_cost import ChipCost
from hasten.cost.chips.dataflow import CLOCK, DATAFLOWS, ConvShape, LayerCost, SubAccelerator, area, layer_costs
from hasten.errors import HastenError
from hasten.search.codesign.assignment import Assignment, assign, makespan
from hasten.search.parameter import Params, categorical, ordinal
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Space

_Costs = list[list[list[LayerCost]]]  # network -> layer -> unit

MAPPER: Mapping[str, Any] = {"restarts": 0, "pairs": False}
"""Settings of `assign` with which chips are mapped: one costs milliseconds, and a search asks for thousands."""


@dataclass(frozen=True)
class ChipSpace:
    """Chips of ``units`` sub-accelerators; all their PEs and all their bandwidth are limited together.

    Args:
        units: most sub-accelerators; each may have 0 PEs, and is then absent.
        dataflows: a sub-accelerator is one of.
        pes, bandwidths: what each may have; 0 among ``pes`` leaves it out. Bandwidths in GB/s.
        total_pes, total_bandwidth: limits of the chip.

    Raises:
        HastenError: nothing to choose from, or no choice within the limits.
    """

    units: int = 2
    dataflows: tuple[str, ...] = DATAFLOWS
    pes: tuple[int, ...] = tuple(range(0, 4097, 256))
    bandwidths: tuple[int, ...] = tuple(range(8, 65, 8))
    total_pes: int = 4096
    total_bandwidth: int = 64

    def __post_init__(self) -> None:
        if self.units < 1 or not self.dataflows or not self.pes or not self.bandwidths:
            raise HastenError("a chip space needs a unit, and dataflows, PEs and bandwidths to choose from")
        if min(self.pes) < 0 or min(self.bandwidths) <= 0:
            raise HastenError("PEs count from 0, and bandwidth is above 0")
        if max(self.pes) == 0 or min(p for p in self.pes if p) > self.total_pes:
            raise HastenError("no choice of PEs is within the chip's limit")
        if min(self.bandwidths) * self.units > self.total_bandwidth:
            raise HastenError("the least bandwidth of all units together is over the chip's limit")

    @property
    def space(self) -> Space:
        """Parameters ``dataflow-1``, ``pes-1``, ``bandwidth-1``, ``dataflow-2``, ..."""
        return Space(
            [
                p
                for k in range(1, self.units + 1)
                for p in (
                    categorical(f"dataflow-{k}", self.dataflows),
                    ordinal(f"pes-{k}", self.pes),
                    ordinal(f"bandwidth-{k}", self.bandwidths),
                )
            ]
        )

    def chip(self, params: Mapping[str, Any]) -> tuple[SubAccelerator, ...]:
        """The sub-accelerators of a point, absent ones left out.

        Raises:
            Infeasible: none is left, or the limits of the chip are exceeded.
        """
        rows = [
            (params[f"dataflow-{k}"], params[f"pes-{k}"], params[f"bandwidth-{k}"]) for k in range(1, self.units + 1)
        ]
        rows = [r for r in rows if r[1] > 0]
        if not rows:
            raise Infeasible("a chip without processing elements")
        pes, bandwidth = sum(r[1] for r in rows), sum(r[2] for r in rows)
        over = max(0.0, pes / self.total_pes - 1) + max(0.0, bandwidth / self.total_bandwidth - 1)
        if pes > self.total_pes:
            raise Infeasible(f"more than {self.total_pes} processing elements", over)
        if bandwidth > self.total_bandwidth:
            raise Infeasible(f"more than {self.total_bandwidth} GB/s", over)
        return tuple(SubAccelerator(*r) for r in rows)


@dataclass(frozen=True)
class Specs:
    """Limits of a chip, or what one costs, as three numbers: seconds, joules and square metres."""

    latency: float
    energy: float
    area: float

    @classmethod
    def of(cls, cost: ChipCost) -> Specs:
        """Those of a cost whose area is known."""
        assert cost.area is not None
        return cls(cost.latency, cost.energy, cost.area)

    @property
    def all(self) -> tuple[float, float, float]:
        return (self.latency, self.energy, self.area)

    def scaled(self, factor: float) -> Specs:
        return Specs(self.latency * factor, self.energy * factor, self.area * factor)

    def meets(self, limits: Specs) -> bool:
        return all(a <= b for a, b in zip(self.all, limits.all, strict=True))


def penalty(cost: Specs, limits: Specs, bounds: Specs) -> float:
    """How far over the limits, each in parts of the distance to its bound; 0 where all hold (section III)."""
    found = 0.0
    for value, limit, bound in zip(cost.all, limits.all, bounds.all, strict=True):
        if value > limit:
            found += (value - limit) / max(bound - limit, 1e-12 * limit)
    return found


def map_chip(
    networks: Sequence[Sequence[ConvShape]], chip: Sequence[SubAccelerator], deadline: float = math.inf
) -> tuple[ChipCost, Assignment]:
    """Cost of the networks on the chip, their layers assigned for the least energy within the deadline (seconds).

    A layer is taken in the pieces that spend least energy, or, where it must be, in those that take less time: layers
    are assigned with the former, and where that is not within the deadline with the soonest of all, after which each
    goes back to pieces of less energy as long as the whole stays within.

    Past the deadline the soonest assignment that was found. The chip is bound by what bounds the layers that take most
    of the time: ``compute`` or ``memory``. The assignment's makespan is in cycles, in which a list schedule compares
    exactly.
    """
    ways = [[[layer_costs(layer, unit) for unit in chip] for layer in network] for network in networks]
    costs = [[[row[-1] for row in layer] for layer in network] for network in ways]
    found = _assigned(costs, deadline * CLOCK) if deadline > 0 else None
    if found is None or found.makespan > deadline * CLOCK:
        costs = [[[row[0] for row in layer] for layer in network] for network in ways]
        found = _saved(ways, costs, _assigned(costs, deadline * CLOCK), deadline * CLOCK)
    placed = zip(itertools.chain(*costs), itertools.chain(*found.units), strict=True)
    chosen = [row[unit] for row, unit in placed]
    waiting = sum(c.cycles for c in chosen if c.bound == "memory")
    cost = ChipCost(
        latency=found.makespan / CLOCK,
        energy=found.energy,
        bytes={level: sum(c.bytes[level] for c in chosen) for level in ("buffer", "memory")},
        area=area(chip),
        bound="memory" if 2 * waiting > sum(c.cycles for c in chosen) else "compute",
    )
    return cost, found


def _assigned(costs: _Costs, deadline: float) -> Assignment:
    times = [[[c.cycles for c in row] for row in network] for network in costs]
    energies = [[[c.energy for c in row] for row in network] for network in costs]
    return assign(times, energies, deadline, **MAPPER)


def _saved(
    ways: Sequence[Sequence[Sequence[Sequence[LayerCost]]]], costs: _Costs, found: Assignment, deadline: float
) -> Assignment:
    """The assignment with layers in pieces of less energy, in the order of energy saved for time added, where all are
    still done within the deadline, or as soon as they are where they are not; ``costs`` are changed."""
    limit = max(deadline, found.makespan)
    times = [[[c.cycles for c in row] for row in network] for network in costs]
    moves = []
    for n, network in enumerate(found.units):
        for i, unit in enumerate(network):
            now = costs[n][i][unit]
            for way in ways[n][i][unit][1:]:
                saved = now.energy - way.energy
                moves.append((saved / (way.cycles - now.cycles), saved, n, i, unit, way))
    end = found.makespan
    for _, _, n, i, unit, way in sorted(moves, key=lambda m: m[:2], reverse=True):
        before = times[n][i][unit]
        if way.energy >= costs[n][i][unit].energy:
            continue
        times[n][i][unit] = way.cycles
        if (after := makespan(times, found.units)) <= limit:
            costs[n][i][unit], end = way, after
        else:
            times[n][i][unit] = before
    energy = sum(costs[n][i][u].energy for n, row in enumerate(found.units) for i, u in enumerate(row))
    return Assignment(found.units, end, energy)


def chip_problem(networks: Sequence[Sequence[ConvShape]], chips: ChipSpace, deadline: float = math.inf) -> Problem:
    """The chip for given networks as a search: least latency (s), energy (J) and area (mm^2).

    Args:
        networks: their layers.
        deadline: seconds within which the mapper saves energy.
    """

    def evaluate(params: Params) -> Mapping[str, Any]:
        units = chips.chip(params)
        cost, found = map_chip(networks, units, deadline)
        return {
            "latency": cost.latency,
            "energy": cost.energy,
            "area": area(units) * 1e6,
            "units": [list(u) for u in found.units],
        }

    return Problem(
        "chip",
        chips.space,
        (Objective("latency", unit="s"), Objective("energy", unit="J"), Objective("area", unit="mm^2")),
        evaluate,
        identity={
            "networks": str(networks),
            "deadline": str(deadline * CLOCK),  # in cycles, as studies on disk have it
            "limits": f"{chips.total_pes} PEs, {chips.total_bandwidth} GB/s",
        },
    )
