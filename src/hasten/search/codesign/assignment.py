"""Layers of several networks to sub-accelerators: NASAIC's heterogeneous assignment problem (arXiv 2002.04116).

Minimize the energy such that all are done by a deadline, when layers of a network follow each other and a unit runs
one at a time.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.errors import HastenError

# network -> layer -> unit -> time or energy
Table = Sequence[Sequence[Sequence[float]]]
Choice = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Assignment:
    """Who runs what: the unit of each layer of each network, the time all are done, and the energy.

    ``order`` names the network whose next layer is scheduled, as often as there are layers; where it is empty the
    makespan is that of the list schedule.
    """

    units: Choice
    makespan: float
    energy: float
    order: tuple[int, ...] = ()


def makespan(times: Table, units: Sequence[Sequence[int]], order: Sequence[int] = ()) -> float:
    """The time all are done, each layer as soon as its network and its unit are free, in a given order.

    Without an order that of a list schedule: whoever can begin first begins, and of several the network with the most
    left. It is good, not the best: see `best_order`.

    Args:
        times: network -> layer -> unit -> time.
        units: network -> layer -> unit that runs it.
        order: the network whose next layer is scheduled, as often as there are layers.

    Raises:
        HastenError: an order that does not name each network as often as it has layers.
    """
    took = [[times[n][i][u] for i, u in enumerate(row)] for n, row in enumerate(units)]
    if not order:
        return _listed(took, units, math.inf)
    if sorted(order) != [n for n, row in enumerate(took) for _ in row]:
        raise HastenError("an order names each network as often as it has layers")
    at, ready = [0] * len(took), [0.0] * len(took)
    free = [0.0] * (1 + max(u for row in units for u in row))
    for n in order:
        unit = units[n][at[n]]
        ready[n] = free[unit] = max(ready[n], free[unit]) + took[n][at[n]]
        at[n] += 1
    return max(ready)


def best_order(times: Table, units: Sequence[Sequence[int]], limit: float = math.inf) -> tuple[float, tuple[int, ...]]:
    """The least makespan of a placement over all orders, and such an order, by branch and bound.

    Branches are those of Giffler and Thompson (1960): of the layers that may be next, the one done first claims its
    unit, and whoever could begin there before that may have it instead. These active schedules hold an optimum.

    Args:
        times, units: as in `makespan`.
        limit: schedules that end after it are not looked for.

    Returns:
        The makespan and the order; infinity and no order where none ends within the limit.
    """
    took = [[times[n][i][u] for i, u in enumerate(row)] for n, row in enumerate(units)]
    total = sum(map(len, took))
    left = [sum(row) for row in took]
    loads = [0.0] * (1 + max((u for row in units for u in row), default=0))
    for n, row in enumerate(units):
        for i, u in enumerate(row):
            loads[u] += took[n][i]
    at, ready, free = [0] * len(took), [0.0] * len(took), [0.0] * len(loads)
    best, found, chosen = limit * (1 + 1e-12), (), []  # type: tuple[float, tuple[int, ...], list[int]]

    def visit() -> None:
        nonlocal best, found
        bound = max(*map(sum, zip(ready, left, strict=True)), *map(sum, zip(free, loads, strict=True)))
        if bound > best or (found and bound >= best):
            return
        if len(chosen) == total:
            best, found = bound, tuple(chosen)
            return
        waiting = []
        for n, row in enumerate(took):
            if at[n] < len(row):
                unit = units[n][at[n]]
                begin = max(ready[n], free[unit])
                waiting.append((begin + row[at[n]], n, unit, begin))
        done, first, claimed, _ = min(waiting)
        rivals = [(b, -left[n], n) for _, n, u, b in waiting if u == claimed and (b < done or n == first)]
        for begin, _, n in sorted(rivals):
            time, before = took[n][at[n]], (ready[n], free[claimed], left[n], loads[claimed])
            ready[n] = free[claimed] = begin + time
            left[n] -= time
            loads[claimed] -= time
            at[n] += 1
            chosen.append(n)
            visit()
            chosen.pop()
            at[n] -= 1
            ready[n], free[claimed], left[n], loads[claimed] = before

    if total:
        visit()
        return (makespan(times, units, found), found) if found else (math.inf, ())
    return 0.0, ()


def _listed(took: list[list[float]], units: Sequence[Sequence[int]], limit: float) -> float:
    """`makespan` of layers that take so long; infinity as soon as it must end after the limit."""
    count = len(took)
    left = [sum(row) for row in took]
    at = [0] * count
    ready = [0.0] * count
    free = [0.0] * (1 + max((u for row in units for u in row), default=0))
    end = 0.0
    open_ = [n for n in range(count) if took[n]]
    while open_:
        best, begin = -1, math.inf
        for n in open_:
            start, other = ready[n], free[units[n][at[n]]]
            if other > start:  # noqa: PLR1730 (a call would cost more than all else in this loop)
                start = other
            if start < begin or (start == begin and left[n] > left[best]):
                best, begin = n, start
        if begin + left[best] > limit * (1 + 1e-12):
            return math.inf
        step = at[best]
        time = took[best][step]
        end = begin + time
        free[units[best][step]] = ready[best] = end
        left[best] -= time
        at[best] = step + 1
        if step + 1 == len(took[best]):
            open_.remove(best)
    return max(ready, default=0.0)


def _energy(energies: Table, units: Sequence[Sequence[int]]) -> float:
    return sum(energies[n][i][u] for n, row in enumerate(units) for i, u in enumerate(row))


def _check(times: Table, energies: Table) -> int:
    counts = {len(row) for network in times for row in network}
    if (
        len(counts) != 1
        or 0 in counts
        or [[len(r) for r in n] for n in times] != [[len(r) for r in n] for n in energies]
    ):
        raise HastenError(
            "an assignment needs a time and an energy of every layer on every unit, and at least one unit"
        )
    return counts.pop()


def best_assignment(times: Table, energies: Table, deadline: float = math.inf) -> Assignment:
    """The least energy within the deadline by trying all placements and all orders; the soonest when none is within it.

    Of several with the least energy the one that is done first.

    Raises:
        HastenError: tables of different shapes, or over a million placements.
    """
    count = _check(times, energies)
    layers = [len(network) for network in times]
    if count ** sum(layers) > 1_000_000:
        raise HastenError(f"{count} units and {sum(layers)} layers are too many to try all: use assign")
    found, soonest = Assignment((), math.inf, math.inf), Assignment((), math.inf, math.inf)
    for flat in itertools.product(range(count), repeat=sum(layers)):
        rest = iter(flat)
        units = tuple(tuple(itertools.islice(rest, n)) for n in layers)
        energy = _energy(energies, units)
        if energy > found.energy:
            continue
        # What must be reached to be of use: the deadline, or sooner than what has as little energy or is the soonest.
        limit = deadline
        if energy == found.energy:
            limit = found.makespan
        elif not found.units:
            limit = max(deadline, soonest.makespan)
        end, order = best_order(times, units, limit)
        if end <= deadline:
            if (energy, end) < (found.energy, found.makespan):
                found = Assignment(units, end, energy, order)
        elif (end, energy) < (soonest.makespan, soonest.energy):
            soonest = Assignment(units, end, energy, order)
    return found if found.units else soonest


def _earliest(times: Table) -> list[list[int]]:
    """Each layer where it is done first, layer by layer through the networks in turn."""
    chosen: list[list[int]] = [[] for _ in times]
    ready = [0.0] * len(times)
    free = [0.0] * len(times[0][0])
    left = [sum(min(row) for row in network) for network in times]
    while any(len(chosen[n]) < len(times[n]) for n in range(len(times))):
        n = max((n for n in range(len(times)) if len(chosen[n]) < len(times[n])), key=lambda n: (-ready[n], left[n]))
        row = times[n][len(chosen[n])]
        unit = min(range(len(row)), key=lambda u: (max(ready[n], free[u]) + row[u], row[u]))
        ready[n] = free[unit] = max(ready[n], free[unit]) + row[unit]
        left[n] -= min(row)
        chosen[n].append(unit)
    return chosen


class _Search:
    def __init__(self, times: Table, energies: Table, deadline: float, pairs: bool) -> None:
        self.times, self.energies, self.deadline, self.pairs = times, energies, deadline, pairs
        self.count = len(times[0][0])

    def end(self, units: Sequence[Sequence[int]]) -> float:
        return makespan(self.times, units)

    def made(self, units: Sequence[Sequence[int]]) -> Assignment:
        return Assignment(tuple(map(tuple, units)), self.end(units), _energy(self.energies, units))

    def hasten(self, units: list[list[int]]) -> bool:
        """Moves single layers, then pairs, while that ends sooner, until it is within the deadline."""
        now = self.end(units)
        while now > self.deadline:
            best: tuple[float, list[tuple[int, int, int]]] = (now, [])
            moves = [
                (n, i, u)
                for n, row in enumerate(units)
                for i, at in enumerate(row)
                for u in range(self.count)
                if u != at
            ]
            small = self.pairs and len(moves) <= 24
            bounds = self.bounds(units)
            for group in itertools.chain(((m,) for m in moves), itertools.combinations(moves, 2) if small else ()):
                if len(group) == 2 and best[1]:
                    break
                end = self.tried(units, group, bounds, best[0])
                if end < best[0]:
                    best = (end, list(group))
            if not best[1]:
                return False
            for n, i, u in best[1]:
                units[n][i] = u
            now = best[0]
        return True

    def bounds(self, units: list[list[int]]) -> tuple[list[float], list[float]]:
        """Time of all layers of each network, and of each unit: nothing ends sooner."""
        networks, loads = [0.0] * len(units), [0.0] * self.count
        for n, row in enumerate(units):
            for i, u in enumerate(row):
                networks[n] += self.times[n][i][u]
                loads[u] += self.times[n][i][u]
        return networks, loads

    def tried(
        self, units: list[list[int]], moves: Sequence[tuple[int, int, int]],
        bounds: tuple[list[float], list[float]], limit: float,
    ) -> float:  # fmt: skip
        """The end after the moves; infinity where it is after the limit.

        Args:
            units: before, as they are again when this returns.
            moves: network, layer and the unit it moves to.
            bounds: of ``units``.
            limit: what is asked for.
        """
        networks, loads = bounds[0].copy(), bounds[1].copy()
        for n, i, u in moves:
            row, at = self.times[n][i], units[n][i]
            networks[n] += row[u] - row[at]
            loads[at] -= row[at]
            loads[u] += row[u]
        if max(networks) > limit * (1 + 1e-9) or max(loads) > limit * (1 + 1e-9):
            return math.inf
        before = [(n, i, units[n][i]) for n, i, _ in moves]
        for n, i, u in moves:
            units[n][i] = u
        took = [[row[u] for row, u in zip(network, row_, strict=True)] for network, row_ in zip(self.times, units)]
        end = _listed(took, units, limit)
        for n, i, u in reversed(before):
            units[n][i] = u
        return end

    def save(self, units: list[list[int]]) -> None:
        """Moves layers in the order of energy saved for time added, while all ends in time."""
        changed = True
        while changed:
            changed = False
            moves = []
            for n, row in enumerate(units):
                for i, at in enumerate(row):
                    for u in range(self.count):
                        saved = self.energies[n][i][at] - self.energies[n][i][u]
                        if saved > 0:
                            added = self.times[n][i][u] - self.times[n][i][at]
                            moves.append((saved / added if added > 0 else math.inf, saved, n, i, u, at))
            bounds = self.bounds(units)
            for _, _, n, i, u, at in sorted(moves, reverse=True):
                if units[n][i] == at and self.tried(units, [(n, i, u)], bounds, self.deadline) <= self.deadline:
                    units[n][i] = u
                    bounds = self.bounds(units)
                    changed = True
        self.exchange(units)

    def exchange(self, units: list[list[int]]) -> None:
        """Two moves at once that save energy together, in small instances, where one by one they would not fit."""
        flat = [(n, i) for n, row in enumerate(units) for i in range(len(row))]
        if not self.pairs or len(flat) * (self.count - 1) > 24:
            return
        again = True
        while again:
            again = False
            moves = [(n, i, u) for n, i in flat for u in range(self.count) if u != units[n][i]]
            bounds = self.bounds(units)
            for a, b in itertools.combinations(moves, 2):
                saved = sum(self.energies[n][i][units[n][i]] - self.energies[n][i][u] for n, i, u in (a, b))
                if a[:2] != b[:2] and saved > 0 and self.tried(units, (a, b), bounds, self.deadline) <= self.deadline:
                    for n, i, u in (a, b):
                        units[n][i] = u
                    again = True
                    break


def assign(
    times: Table, energies: Table, deadline: float = math.inf, *, restarts: int = 8, pairs: bool = True
) -> Assignment:
    """A good assignment within the deadline, by ratios; the soonest that was found when none is.

    Starts from every layer on its fastest unit, from every layer where it is done first, and from the least energy;
    each is hastened until it is within the deadline, then layers move in the order of energy saved for time added
    while it stays so. The best of the three is returned. Where none got there, random starts are tried. Where the
    deadline is sooner than any assignment can be, only the second start is hastened.

    Args:
        times: network -> layer -> unit -> time, in any unit.
        energies: as ``times``, in any unit.
        deadline: in the unit of ``times``.
        restarts: random starts, where the three do not get within the deadline.
        pairs: whether two layers may move at once, in small instances: slower and a little better.

    Raises:
        HastenError: tables of different shapes.
    """
    count = _check(times, energies)
    search = _Search(times, energies, deadline, pairs)
    least = _cheapest(energies)
    end = search.end(least)
    if end <= deadline:
        return search.made(least)
    rng = random.Random(0)
    anywhere = ([[rng.randrange(count) for _ in network] for network in times] for _ in range(restarts))
    found: Assignment | None = None
    soonest: Assignment | None = None
    starts = itertools.chain((_cheapest(times), _earliest(times), least), anywhere)
    if deadline < _soonest(times):
        starts = itertools.chain((_earliest(times),))
    for number, start in enumerate(starts):
        if number >= 3 and found is not None:
            break
        units = [list(row) for row in start]
        if search.hasten(units):
            search.save(units)
            made = search.made(units)
            if found is None or made.energy < found.energy:
                found = made
        else:
            made = search.made(units)
            if soonest is None or made.makespan < soonest.makespan:
                soonest = made
    result = found or soonest
    assert result is not None
    return result


def _soonest(times: Table) -> float:
    """No assignment ends before: each network's layers follow each other, and no unit does two at a time."""
    alone = [sum(min(row) for row in network) for network in times]
    return max(*alone, sum(alone) / len(times[0][0]))


def _cheapest(table: Table) -> list[list[int]]:
    return [[min(range(len(row)), key=row.__getitem__) for row in network] for network in table]
