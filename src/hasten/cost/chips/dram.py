"""Time, power and energy of a DRAM controller on a trace: a simulation, and the current-based method for power."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np

from hasten.cost.chips.chip_cost import ChipCost
from hasten.data.memory_traces import MemoryTrace
from hasten.errors import HastenError
from hasten.hardware.chips.memory_part import MemoryPart
from hasten.kernels import dram_controller as kernel

_NAMES = {
    "page": kernel.PAGES,
    "scheduler": kernel.SCHEDULERS,
    "buffer": kernel.BUFFERS,
    "response": kernel.RESPONSES,
    "refresh": kernel.REFRESHES,
    "arbiter": kernel.ARBITERS,
}


@dataclass(frozen=True)
class MemoryController:
    """Ten choices, whose effects `hasten.kernels.dram_controller` tells.

    Args:
        page, scheduler, buffer, response, refresh, arbiter: names of that module.
        size: requests that a buffer holds.
        postponed, pulled: refreshes that may wait, and be done ahead.
        active: requests taken and not answered yet.

    Raises:
        HastenError: a name that is not known, or a number below 1.
    """

    page: str = "open"
    scheduler: str = "fr-fcfs"
    buffer: str = "bankwise"
    size: int = 8
    response: str = "fifo"
    refresh: str = "all-bank"
    postponed: int = 8
    pulled: int = 8
    arbiter: str = "fifo"
    active: int = 128

    def __post_init__(self) -> None:
        for name, known in _NAMES.items():
            if getattr(self, name) not in known:
                raise HastenError(
                    f"a DRAM controller's {name} is one of {', '.join(known)}, not {getattr(self, name)!r}"
                )
        for name in ("size", "postponed", "pulled", "active"):
            if getattr(self, name) < 1:
                raise HastenError(f"a DRAM controller's {name} is at least 1")

    @classmethod
    def of(cls, params: Mapping[str, object]) -> MemoryController:
        """From a mapping with some of its fields.

        Raises:
            HastenError: another key.
        """
        known = {f.name for f in fields(cls)}
        if unknown := set(params) - known:
            raise HastenError(f"a DRAM controller has no {sorted(unknown)[0]!r}: it has {', '.join(sorted(known))}")
        return cls(**params)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class MemoryCost(ChipCost):
    """What serving a trace costs: latency until the last answer, level ``memory``, no area.

    It is bound by ``data bus`` or ``requests`` where transferring the data, or waiting for the next request to come,
    takes at least half of the time; else by ``commands``: opening and closing rows, refreshing, one after the other.

    Args:
        response_time: seconds from arrival to answer, mean over the requests.
        bandwidth: B/s served.
        totals: commands and cycles.
    """

    response_time: float
    bandwidth: float
    totals: kernel.Totals


@dataclass(frozen=True)
class _Prepared:
    """A trace spread over a part's banks."""

    timing: kernel.Words
    cycle: kernel.Words
    bank: np.ndarray[tuple[int], np.dtype[np.int32]]
    row: np.ndarray[tuple[int], np.dtype[np.int32]]
    write: np.ndarray[tuple[int], np.dtype[np.uint8]]


class MemorySystem:
    """A part that serves one trace under many controllers.

    Addresses count through a row, then through the banks, then through the rows (row-bank-column).

    Args:
        part: the memory.
        trace: requests; cycles are of the part's clock.

    Raises:
        HastenError: an address beyond the part's capacity.
    """

    def __init__(self, part: MemoryPart, trace: MemoryTrace) -> None:
        if int(trace.address.max()) >= part.capacity:
            raise HastenError(
                f"the trace {trace.name} reaches address {int(trace.address.max()):#x}, but {part.title} holds "
                f"{part.capacity:#x} bytes: use a larger part"
            )
        self.part, self.trace = part, trace
        timing = part.timing.model_dump()
        try:
            kernel.check_times(timing, int(trace.cycle.max(initial=0)))
        except ValueError as error:
            raise HastenError(f"the trace {trace.name} cannot be simulated on {part.title}: {error}") from None
        self._prepared = _Prepared(
            timing=np.array([timing[name] for name in kernel.TIMING], np.int64),
            cycle=np.ascontiguousarray(trace.cycle, np.int64),
            bank=(trace.address // part.row % part.timing.banks).astype(np.int32),
            row=(trace.address // (part.row * part.timing.banks)).astype(np.int32),
            write=np.ascontiguousarray(trace.write, np.uint8),
        )
        self._energies = part.energies()

    def run(self, controller: MemoryController) -> MemoryCost:
        """Serves the trace."""
        values = asdict(controller)
        knobs = [_NAMES[n].index(values[n]) if n in _NAMES else values[n] for n in kernel.KNOBS]
        p = self._prepared
        t = kernel.simulate(p.timing, np.array(knobs, np.int64), p.cycle, p.bank, p.row, p.write)
        e, clock = self._energies, self.part.clock
        energy = (
            t.activates * e["activate"]
            + t.reads * e["read"]
            + t.writes * e["write"]
            # What is still postponed will have to be done.
            + (t.refreshes + t.owed) * e["refresh"]
            + t.open_cycles / clock * e["open"]
            + (t.cycles - t.open_cycles) / clock * e["closed"]
        )
        seconds, moved = t.cycles / clock, len(self.trace) * self.part.burst_bytes
        transferring = len(self.trace) * self.part.timing.burst
        limits = {"data bus": transferring, "requests": int(self.trace.cycle[-1])}
        longest = max(limits, key=limits.__getitem__)
        return MemoryCost(
            latency=seconds,
            energy=energy,
            bytes={"memory": moved},
            bound=longest if 2 * limits[longest] >= t.cycles else "commands",
            response_time=t.latency / len(self.trace) / clock,
            bandwidth=moved / seconds,
            totals=t,
        )
