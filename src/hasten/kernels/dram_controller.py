"""A DRAM memory controller, cycle by cycle where something happens and skipping the rest.

Requests wait at an arbiter, are taken into a buffer, and a scheduler turns them into commands: activate a row, read or
write a column of it, precharge. Every command obeys the part's timing. What each knob does:

- ``page``: rows stay ``open``; close after each access (``closed``); or close when, of what is queued for the bank,
  something else waits and nothing for this row (``open-adaptive``), or nothing for this row (``closed-adaptive``).
- ``scheduler``: of a bank's queue the first (``fifo``), the first for the open row (``fr-fcfs``), or that with requests
  of the kind last served before others (``fr-fcfs-grp``). Of the banks' commands the one that can go soonest.
- ``buffer`` and ``size``: how many requests are taken in: for each bank, for reads and for writes, or in all.
- ``arbiter``: ``simple`` takes requests in order; ``fifo`` also limits those that are not answered yet to ``active``;
  ``reorder`` lets later ones pass one that has no room.
- ``response``: answers leave in order, or as they come; in order they hold their place under the limit longer.
- ``refresh``: none, or of all banks; due ones wait up to ``postponed`` times while there is work, and up to ``pulled``
  are done ahead in gaps.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.kernels.compiled import native

PAGES = ("open", "open-adaptive", "closed", "closed-adaptive")
SCHEDULERS = ("fifo", "fr-fcfs-grp", "fr-fcfs")
BUFFERS = ("bankwise", "read-write", "shared")
RESPONSES = ("fifo", "reorder")
REFRESHES = ("none", "all-bank")
ARBITERS = ("simple", "fifo", "reorder")

TIMING = ("banks", "groups", "rcd", "cl", "cwl", "rp", "ras", "ccd_s", "ccd_l", "rrd_s", "rrd_l", "faw", "wr", "wtr",
          "rtp", "rfc", "refi", "burst")  # fmt: skip
"""Order of the timing figures, in clock cycles but for the numbers of banks and bank groups."""
KNOBS = ("page", "scheduler", "buffer", "size", "response", "refresh", "postponed", "pulled", "arbiter", "active")
"""Order of the knobs; those with names by their place in the tuple of names."""

Words = NDArray[np.int64]


@dataclass(frozen=True)
class Totals:
    """What happened.

    Args:
        cycles: until the last answer.
        activates, precharges, reads, writes, refreshes: commands.
        open_cycles: with a row open in any bank.
        latency: cycles from arrival to answer, summed over the requests.
        worst: the longest of them.
        owed: refreshes that were due and still postponed.
    """

    cycles: int
    activates: int
    precharges: int
    reads: int
    writes: int
    refreshes: int
    open_cycles: int
    latency: int
    worst: int
    owed: int


# Longest distance between two commands, and latest arrival, in cycles: sums of them stay far from overflow.
MOST_CYCLES, LATEST = 1 << 20, 1 << 48
# Refreshes that a simulation does: each is a step, also where no request waits.
MOST_REFRESHES = 20_000_000


def check_times(timing: Mapping[str, int], last: int = 0) -> None:
    """Bounds of a part's timing, and of the last request's arrival, in cycles.

    Raises:
        ValueError: a time that is not positive or too long, refreshes that follow each other without a pause, more
            banks than a word has bits, or a trace so long that refreshes alone would take minutes.
    """
    for name, value in timing.items():
        most = 64 if name in ("banks", "groups") else 1 << 30 if name == "refi" else MOST_CYCLES
        if not 1 <= value <= most:
            raise ValueError(f"{name} is {value}: it must be between 1 and {most:,}")
    if timing["refi"] <= timing["rfc"] + timing["rp"]:
        raise ValueError(f"a refresh is due every {timing['refi']} cycles (refi), no more than it takes (rfc + rp)")
    if not 0 <= last < LATEST:
        raise ValueError(f"a request arrives in cycle {last}: the last one that can be simulated is {LATEST:,}")
    if last // timing["refi"] > MOST_REFRESHES:
        raise ValueError(f"a trace up to cycle {last:,} has more than {MOST_REFRESHES:,} refreshes: shorten its gaps")


def simulate(
    timing: Words, knobs: Words, arrival: Words, bank: NDArray[np.int32], row: NDArray[np.int32],
    write: NDArray[np.uint8],
) -> Totals:  # fmt: skip
    """Serves requests in the order of ``arrival``, which does not decrease.

    Args:
        timing, knobs: in the order of `TIMING` and `KNOBS`, int64.
        arrival: cycle of each request.
        bank, row: where it goes.
        write: 1 for a write.

    Raises:
        ValueError: arrays of other types or lengths, a bank that is not there, arrivals out of order.
    """
    n = len(arrival)
    arrays = ((timing, np.int64, len(TIMING)), (knobs, np.int64, len(KNOBS)), (arrival, np.int64, n),
              (bank, np.int32, n), (row, np.int32, n), (write, np.uint8, n))  # fmt: skip
    for array, dtype, length in arrays:
        if array.dtype != dtype or array.shape != (length,) or not array.flags.c_contiguous:
            raise ValueError(f"a DRAM simulation takes contiguous arrays of {np.dtype(dtype)}, of {length} numbers")
    if n == 0:
        return Totals(*[0] * 10)
    if bank.min() < 0 or bank.max() >= timing[0] or row.min() < 0 or arrival[0] < 0 or (np.diff(arrival) < 0).any():
        raise ValueError("a DRAM simulation takes banks of the part, rows from 0, and arrivals in order")
    if knobs[3] < 1 or knobs[9] < 1 or write.max() > 1:
        raise ValueError("a DRAM controller has room for one request at least")
    check_times(dict(zip(TIMING, timing.tolist(), strict=True)), int(arrival[-1]))
    if np.abs(knobs).max() > MOST_CYCLES:
        raise ValueError(f"a DRAM controller's knobs are below {MOST_CYCLES:,}")
    module = native()
    if module is None:
        return plain(timing, knobs, arrival, bank, row, write)
    found = np.zeros(10, np.int64)
    places = (a.ctypes.data for a in (arrival, bank, row, write, found))
    module.dram_simulate(timing.ctypes.data, knobs.ctypes.data, n, *places)
    return Totals(*found.tolist())


_NEVER = 1 << 60


def plain(
    timing: Words, knobs: Words, arrival: Words, bank: NDArray[np.int32], row: NDArray[np.int32],
    write: NDArray[np.uint8],
) -> Totals:  # fmt: skip
    """`simulate` in plain Python: what the compiled one is compared with."""
    return _Controller(timing, knobs, arrival, bank, row, write).run()


class _Bank:
    __slots__ = ("act_ready", "col_ready", "pre_ready", "queue", "row")

    def __init__(self) -> None:
        self.row = -1
        self.act_ready = self.col_ready = self.pre_ready = 0
        self.queue: list[int] = []


class _Controller:
    def __init__(self, timing: Words, knobs: Words, *trace: NDArray[np.generic]) -> None:
        self.t = dict(zip(TIMING, timing.tolist(), strict=True))
        self.k = dict(zip(KNOBS, knobs.tolist(), strict=True))
        self.arrival, self.bank, self.row, self.write = (a.tolist() for a in trace)
        self.n = len(self.arrival)
        self.banks = [_Bank() for _ in range(self.t["banks"])]
        self.done = [-1] * self.n
        self.taken = [False] * self.n
        self.order: list[int] = []
        self.finishing: list[int] = []
        self.now = self.free = self.cursor = self.arrived = self.front = self.active = self.pending = 0
        self.served = self.owed = self.open = self.last_close = self.precharged = 0
        self.due = self.t["refi"]
        self.kinds = [0, 0]
        self.last_column = self.last_read = self.last_written = self.last_act = -_NEVER
        self.column_group = self.act_group = -1
        self.acts = [-_NEVER] * 4
        self.last_kind = 0
        self.limited = ARBITERS[self.k["arbiter"]] != "simple"
        self.counts = dict.fromkeys(("activates", "precharges", "reads", "writes", "refreshes"), 0)

    def run(self) -> Totals:
        while self.served < self.n:
            self.step()
        return self.finish()

    def step(self) -> None:
        k, t = self.k, self.t
        if k["refresh"]:
            while self.now >= self.due:
                self.owed += 1
                self.due += t["refi"]
        self.respond()
        self.admit()
        following = self.next_arrival()
        if k["refresh"]:
            if self.owed > 0 and (self.pending == 0 or self.owed > k["postponed"]):
                return self.refresh()
            gap = following < _NEVER and following - self.now >= t["rfc"] + t["rp"]
            if self.pending == 0 and self.owed > -k["pulled"] and gap:
                return self.refresh()
        full = self.limited and self.active >= k["active"]
        if self.pending == 0:
            coming = self.next_response() if full else following
            if k["refresh"]:
                coming = min(coming, self.due)
            self.now = max(self.now + 1, coming)
            return None
        best: tuple[int, bool, int] | None = None
        where = 0
        for b, bank in enumerate(self.banks):
            if bank.queue:
                r = self.choose(bank)
                column = bank.row == self.row[r]
                key = (self.when(bank, b, r, column), not column, r)
                if best is None or key < best:
                    best, where = key, b
        assert best is not None
        event = self.next_response() if full and len(self.order) < self.n else (_NEVER if full else following)
        if k["refresh"] and self.owed + 1 > k["postponed"]:
            event = min(event, self.due)
        if self.now < event < best[0]:
            self.now = event
            return None
        return self.issue(best[0], where, best[2], not best[1])

    def next_arrival(self) -> int:
        while self.arrived < self.n and self.arrival[self.arrived] <= self.now:
            self.arrived += 1
        return self.arrival[self.arrived] if self.arrived < self.n else _NEVER

    def next_response(self) -> int:
        if self.k["response"] == 0:
            at = self.done[self.order[self.front]] if self.front < len(self.order) else -1
            return _NEVER if at < 0 else max(at, self.now + 1)
        return max(self.finishing[0], self.now + 1) if self.finishing else _NEVER

    def respond(self) -> None:
        if not self.limited:
            return
        if self.k["response"] == 0:
            while self.front < len(self.order) and 0 <= self.done[self.order[self.front]] <= self.now:
                self.front += 1
                self.active -= 1
        else:
            while self.finishing and self.finishing[0] <= self.now:
                heapq.heappop(self.finishing)
                self.active -= 1

    def room(self, r: int) -> bool:
        kind = BUFFERS[self.k["buffer"]]
        if kind == "bankwise":
            return len(self.banks[self.bank[r]].queue) < self.k["size"]
        return (self.kinds[self.write[r]] if kind == "read-write" else self.pending) < self.k["size"]

    def push(self, r: int) -> None:
        self.banks[self.bank[r]].queue.append(r)
        self.pending += 1
        self.kinds[self.write[r]] += 1
        self.order.append(r)
        self.active += 1

    def admit(self) -> None:
        limit = self.k["active"]
        if ARBITERS[self.k["arbiter"]] != "reorder":
            while self.cursor < self.n and self.arrival[self.cursor] <= self.now and self.room(self.cursor):
                if self.limited and self.active >= limit:
                    return
                self.push(self.cursor)
                self.cursor += 1
            return
        again = True
        while again:
            again = False
            for r in range(self.cursor, min(self.n, self.cursor + limit)):
                if self.active >= limit or self.arrival[r] > self.now:
                    break
                if not self.taken[r] and self.room(r):
                    self.taken[r] = True
                    self.push(r)
            while self.cursor < self.n and self.taken[self.cursor]:
                self.cursor += 1
                again = True

    def choose(self, bank: _Bank) -> int:
        scheduler = SCHEDULERS[self.k["scheduler"]]
        if scheduler != "fifo" and bank.row >= 0:
            hits = [r for r in bank.queue if self.row[r] == bank.row]
            if scheduler == "fr-fcfs-grp":
                hits = [r for r in hits if self.write[r] == self.last_kind] or hits
            if hits:
                return hits[0]
        return bank.queue[0]

    def when(self, bank: _Bank, b: int, r: int, column: bool) -> int:
        t, at = self.t, max(self.now, self.free)
        group = b % t["groups"]
        if column:
            apart = t["ccd_l"] if group == self.column_group else t["ccd_s"]
            at = max(at, bank.col_ready, self.last_column + apart)
            if self.write[r]:
                return max(at, self.last_read + t["cl"] + t["burst"] + 2 - t["cwl"])
            return max(at, self.last_written + t["cwl"] + t["burst"] + t["wtr"])
        if bank.row >= 0:
            return max(at, bank.pre_ready)
        apart = t["rrd_l"] if group == self.act_group else t["rrd_s"]
        return max(at, bank.act_ready, self.last_act + apart, self.acts[0] + t["faw"])

    def closed(self, at: int) -> None:
        self.open -= 1
        self.last_close = max(self.last_close, at)

    def issue(self, at: int, b: int, r: int, column: bool) -> None:
        t, bank = self.t, self.banks[b]
        self.now, self.free = at, at + 1
        if not column and bank.row >= 0:
            bank.row = -1
            bank.act_ready = max(bank.act_ready, at + t["rp"])
            self.counts["precharges"] += 1
            self.closed(at)
        elif not column:
            bank.row = self.row[r]
            bank.col_ready, bank.pre_ready = at + t["rcd"], at + t["ras"]
            self.last_act, self.act_group = at, b % t["groups"]
            self.acts = [*self.acts[1:], at]
            self.counts["activates"] += 1
            if self.open == 0 and at > self.last_close:
                self.precharged += at - self.last_close
            self.open += 1
        else:
            self.access(at, b, r)

    def access(self, at: int, b: int, r: int) -> None:
        t, bank = self.t, self.banks[b]
        self.last_column, self.column_group, self.last_kind = at, b % t["groups"], self.write[r]
        if self.write[r]:
            self.last_written = at
            self.done[r] = at + t["cwl"] + t["burst"]
            bank.pre_ready = max(bank.pre_ready, self.done[r] + t["wr"])
            self.counts["writes"] += 1
        else:
            self.last_read = at
            self.done[r] = at + t["cl"] + t["burst"]
            bank.pre_ready = max(bank.pre_ready, at + t["rtp"])
            self.counts["reads"] += 1
        bank.queue.remove(r)
        self.pending -= 1
        self.kinds[self.write[r]] -= 1
        self.served += 1
        if self.limited and self.k["response"]:
            heapq.heappush(self.finishing, self.done[r])
        page = PAGES[self.k["page"]]
        wanted = any(self.row[q] == bank.row for q in bank.queue)
        adaptive = (page == "closed-adaptive" or (page == "open-adaptive" and bool(bank.queue))) and not wanted
        if page == "closed" or adaptive:
            bank.row = -1
            bank.act_ready = max(bank.act_ready, bank.pre_ready + t["rp"])
            self.counts["precharges"] += 1
            self.closed(bank.pre_ready)

    def refresh(self) -> None:
        opened = [b for b in self.banks if b.row >= 0]
        at = max([self.now, self.free, *(b.pre_ready for b in opened)])
        for bank in opened:
            bank.row = -1
            bank.act_ready = max(bank.act_ready, at + self.t["rp"])
            self.closed(at)
        self.counts["precharges"] += bool(opened)
        at = max([at, *(b.act_ready for b in self.banks)])
        for bank in self.banks:
            bank.act_ready = at + self.t["rfc"]
        self.now, self.free = at, at + 1
        self.counts["refreshes"] += 1
        self.owed -= 1

    def finish(self) -> Totals:
        before = total = worst = cycles = 0
        for r in self.order:
            before = max(before, self.done[r]) if self.k["response"] == 0 else self.done[r]
            cycles = max(cycles, before)
            total += before - self.arrival[r]
            worst = max(worst, before - self.arrival[r])
        if self.open == 0:
            self.precharged += max(0, cycles - self.last_close)
        return Totals(
            cycles=cycles,
            **self.counts,
            open_cycles=cycles - min(self.precharged, cycles),
            latency=total,
            worst=worst,
            owed=max(0, self.owed),
        )
