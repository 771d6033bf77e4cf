"""A DRAM controller's ten knobs: time and power of a memory trace (ArchGym's DRAMGym, 442 368 designs)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten.cost.chips.dram import MemoryController, MemorySystem
from hasten.data.memory_traces import WORKLOADS, MemoryTrace, memory_trace, read_memory_trace
from hasten.errors import HastenError
from hasten.hardware.chips.memory_part import memory_part
from hasten.kernels import dram_controller as kernel
from hasten.search.parameter import Params, categorical, ordinal
from hasten.search.problem import Objective, Problem
from hasten.search.space import Space

POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
CODINGS: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "powers": (POWERS, (1, 2, 4, 8), POWERS),
    "integers": (tuple(range(1, 9)), tuple(range(1, 9)), tuple(range(1, 129))),
}
"""ArchGym's two ranges of buffer sizes, refreshes that wait, and requests at once: 442 368 designs, or 28 311 552."""


def space(
    sizes: tuple[int, ...] = POWERS,
    waits: tuple[int, ...] = (1, 2, 4, 8),
    active: tuple[int, ...] = POWERS,
) -> Space:
    """The knobs; fewer values of the numbers make a space small enough to try all of it."""
    return Space(
        [
            categorical("page", kernel.PAGES),
            categorical("scheduler", kernel.SCHEDULERS),
            categorical("buffer", kernel.BUFFERS),
            ordinal("size", sizes),
            categorical("response", kernel.RESPONSES),
            categorical("refresh", kernel.REFRESHES),
            ordinal("postponed", waits),
            ordinal("pulled", waits),
            categorical("arbiter", kernel.ARBITERS),
            ordinal("active", active),
        ]
    )


def problem(
    workload: str = "cloud-1",
    *,
    part: str = "ddr3-1600",
    requests: int = 1000,
    seed: int = 0,
    coding: str = "powers",
    knobs: Space | None = None,
) -> Problem:
    """Least time and least power of serving a trace.

    Args:
        workload: one of `hasten.data.memory_traces.WORKLOADS`, or a trace file.
        part: a DRAM part (`hasten.hardware.chips.memory_part`).
        requests: of a generated trace.
        seed: of a generated trace.
        coding: one of `CODINGS`.
        knobs: the space; all of the coding's when None.

    Raises:
        HastenError: an unknown workload, part, file or coding.
    """
    if coding not in CODINGS:
        raise HastenError(f"there is no coding {coding!r}: choose one of {', '.join(CODINGS)}")
    chosen = memory_part(part)
    trace: MemoryTrace
    if workload in WORKLOADS:
        trace = memory_trace(workload, requests, capacity=chosen.capacity, seed=seed)
    else:
        trace = read_memory_trace(workload)
    memory = MemorySystem(chosen, trace)

    def evaluate(params: Params) -> Mapping[str, Any]:
        cost = memory.run(MemoryController.of(params))
        return {"time": cost.latency, "power": cost.power, "energy": cost.energy, "latency": cost.response_time}

    return Problem(
        f"dram-{trace.name}",
        knobs or space(*CODINGS[coding]),
        (Objective("time", unit="s"), Objective("power", unit="W"), Objective("energy", unit="J")),
        evaluate,
        identity={"part": chosen.name, "trace": f"{trace.name} {len(trace)} seed {seed}"},
        units={"latency": "s"},
    )
