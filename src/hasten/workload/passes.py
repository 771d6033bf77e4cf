"""How often a cascade must visit its data, and what must be kept between visits.

FuseMax (arXiv 2406.10491, section IV): an Einsum needs another pass over the fibres of a rank when an
element of a fibre has to be visited again after the whole fibre was visited. A cascade that needs one pass
runs with a buffer that does not grow with that rank; one that needs more holds whole fibres, or spills them.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hasten import dtypes
from hasten.errors import HastenError
from hasten.workload.einsum import Access, Cascade, Einsum, Op, Role
from hasten.workload.recurrence import Unit, lag, units

# Attention written as one operator that visits each key once, keeping a running maximum and sum.
ONE_PASS_OPERATORS = ("scaled_dot_product",)


@dataclass(frozen=True)
class PassReport:
    """The passes of a cascade over one rank.

    Args:
        rank: the rank, or the ranks it was split into, outermost first.
        count: passes over data of that rank; 0 when nothing has it.
        einsums: for each Einsum of the cascade, the pass in which it runs.
        tensors: tensor -> the pass from which on it may be used with data of that rank.
        visits: tensor that has the rank -> in how many passes it is read.
        live: tensor that has the rank -> the ranks of it of which all must be held (or spilled): the whole
            rank where a later pass reads the tensor again, otherwise only the tile that is at work.
        footprint: elements of a fibre held at once: the product of the sizes of ``live``, and where that is a tile,
            as many of them as there are steps from the first that makes or reads an element to the last that reads it.
        along: for each Einsum, the rank of its own that goes over the data; empty for one that has none.
        delays: for each Einsum, how many steps it runs behind the first of its pass, so that what it reads is there.
    """

    rank: tuple[str, ...]
    count: int
    einsums: tuple[int, ...]
    tensors: Mapping[str, int]
    visits: Mapping[str, int]
    live: Mapping[str, tuple[str, ...]]
    footprint: Mapping[str, int]
    along: tuple[str, ...]
    delays: tuple[int, ...]


def passes(cascade: Cascade, rank: str | Sequence[str]) -> PassReport:
    """Counts passes over ``rank``, or over a rank split into several (outermost first).

    Ranks carry one name throughout the cascade; a dimension that they index may be read by an index of other ranks
    (``A[i+k]`` where A is made over w), of which the longest then goes over it. An element-wise Einsum runs in the
    latest pass of its inputs. A reduction over inner ranks alone stays within the pass, since a tile is on chip; so
    does a running value along an iterative rank, and a neighbour some steps off, which is waited for. A reduction over
    the outermost rank is complete only when every fibre was visited, and so is one element that is made on the way:
    data of that rank may meet them from the next pass on.

    Args:
        cascade: what to analyse.
        rank: one rank, or e.g. ``("m1", "m0")``.

    Raises:
        HastenError: Einsums wait for each other, see `hasten.workload.recurrence`.
    """
    ranks = (rank,) if isinstance(rank, str) else tuple(rank)
    return _Analysis(cascade, ranks).report()


class _Analysis:
    def __init__(self, cascade: Cascade, ranks: tuple[str, ...]) -> None:
        self.cascade = cascade
        self.ranks = ranks
        self.along = _along(cascade, ranks[0])
        self.ready: dict[str, int] = {}
        self.when = [1] * len(cascade)
        # Tensor -> those that write it and go over it.
        self.writers: dict[str, list[int]] = {}
        for i, einsum in enumerate(cascade.einsums):
            if self.along[i] and self.along[i] in einsum.output.ranks:
                self.writers.setdefault(einsum.output.tensor, []).append(i)
        self.units = units(cascade)
        for unit in self.units:
            self._visit(unit)

    def _visit(self, unit: Unit) -> None:
        steps = 1
        if unit.rank:
            outer = any(self.along[i] == unit.rank for i in unit.einsums)
            # Along another rank each step may begin passes of its own; along this one a step ends none.
            steps = len(unit.einsums) + 1 if outer else self.cascade.einsums[unit.einsums[0]].sizes[unit.rank]
        for step in range(steps):
            before = [self.when[i] for i in unit.einsums]
            for i in unit.einsums:
                einsum = self.cascade.einsums[i]
                self.when[i] = max((self.ready.get(a.tensor, 1) + self._late(i, a) for a in einsum.inputs), default=1)
                # What is folded over the rank is complete only when every fibre was visited.
                folded = bool(self.along[i]) and self.along[i] in einsum.reduced
                name = einsum.output.tensor
                # An index of its own may write a part beside what another Einsum wrote.
                others = self.ready.get(name, 1) if einsum.output.index is not None else 1
                self.ready[name] = max(self.when[i] + folded, others)
            if step and before == [self.when[i] for i in unit.einsums]:
                break

    def _late(self, reader: int, access: Access) -> int:
        """1 if elements are read of what is made on the way, other than by the rank that goes over it."""
        own = self.along[reader]
        for w in self.writers.get(access.tensor, ()):
            writer = self.cascade.einsums[w]
            for made, read in zip(writer.output.indices, access.indices, strict=False):
                if not made.factor(self.along[w]) or (own and read.factor(own)):
                    continue
                written = made.bounds(writer.sizes)
                wanted = read.bounds(self.cascade.einsums[reader].sizes)
                if wanted[0] <= written[1] and wanted[1] >= written[0]:
                    return 1
        return 0

    def report(self) -> PassReport:
        cascade, ranks = self.cascade, self.ranks
        delays = self._delays()
        sizes: dict[str, int] = {}
        made: dict[str, int] = {}
        read: dict[str, set[int]] = {}
        own: dict[str, tuple[str, ...]] = {}
        spans: dict[str, list[tuple[int, int]]] = {}
        for i, einsum in enumerate(cascade.einsums):
            names = (self.along[i] or ranks[0], *ranks[1:])
            sizes |= {name: size for name, size in einsum.ranks if name in names}
            for access in (*einsum.inputs, einsum.output):
                shared = tuple(r for r in names if r in access.ranks)
                if not shared:
                    continue
                # The longest of several ranks that go over it stands for all.
                known = own.get(access.tensor, shared)
                own[access.tensor] = shared if sizes[shared[0]] > sizes.get(known[0], 0) else known
                if access is einsum.output:
                    made[access.tensor] = self.when[i]
                else:
                    read.setdefault(access.tensor, set()).add(self.when[i])
                if span := _span(einsum, access, self.along[i], ranks[1:], delays[i]):
                    spans.setdefault(access.tensor, []).append(span)
        live, footprint = {}, {}
        for tensor, shared in own.items():
            first = made.get(tensor, 0)
            again = any(number > first for number in read.get(tensor, ())) if first else len(read[tensor]) > 1
            live[tensor] = shared if again else tuple(r for r in shared if r in ranks[1:])
            footprint[tensor] = math.prod(sizes[r] for r in live[tensor])
            if not again and tensor in spans:
                footprint[tensor] *= max(last for _, last in spans[tensor]) - min(f for f, _ in spans[tensor]) + 1
        return PassReport(
            rank=ranks,
            count=max((n for i, n in enumerate(self.when) if self._ranked(i)), default=0),
            einsums=tuple(self.when),
            tensors=self.ready,
            visits={tensor: len(found) for tensor, found in read.items()},
            live=live,
            footprint=footprint,
            along=tuple(self.along),
            delays=tuple(delays),
        )

    def _ranked(self, index: int) -> bool:
        return bool(self.along[index]) or any(r in self.cascade.einsums[index].sizes for r in self.ranks)

    def _delays(self) -> list[int]:
        """Steps by which each Einsum runs behind, the fewest with which it reads nothing before it is made."""
        after: list[tuple[int, int, int]] = []  # reader, writer, steps
        for reader, einsum in enumerate(self.cascade.einsums):
            for access in einsum.inputs:
                for w in self.writers.get(access.tensor, ()):
                    if self.along[reader] in access.ranks and self.when[w] == self.when[reader]:
                        writer = self.cascade.einsums[w]
                        try:
                            fewest, _ = lag(writer, einsum, access, self.along[reader], self.along[w])
                        except HastenError:
                            continue  # at different speeds: `execute` refuses it
                        after.append((reader, w, (w >= reader) - fewest))
        for unit in self.units:  # what goes on in step along another rank runs whole at each step of this one
            if unit.rank and not any(self.along[i] == unit.rank for i in unit.einsums):
                after += [(a, b, 0) for a in unit.einsums for b in unit.einsums if a != b]
        delays = [0] * len(self.cascade)
        for _ in range(len(self.cascade) + 1):
            moved = False
            for reader, w, steps in after:
                if delays[w] + steps > delays[reader]:
                    delays[reader], moved = delays[w] + steps, True
            if not moved:
                break
        return delays


def _along(cascade: Cascade, rank: str) -> list[str]:
    """For each Einsum the rank that goes over the data: ``rank``, or the longest that indexes what ``rank`` indexes."""
    along = [rank if rank in e.sizes else "" for e in cascade.einsums]
    indexed: set[tuple[str, int]] = set()
    found = True
    while found:
        found = False
        for i, einsum in enumerate(cascade.einsums):
            for access in (*einsum.inputs, einsum.output):
                if len(access.indices) != len(cascade.tensors[access.tensor].shape):
                    continue  # a view: its dimensions are others
                for d, index in enumerate(access.indices):
                    if not along[i] and (access.tensor, d) in indexed and index.terms:
                        along[i] = max(index.ranks, key=lambda r: einsum.sizes[r])
                        found = True
                    if along[i] and index.factor(along[i]) and (access.tensor, d) not in indexed:
                        indexed.add((access.tensor, d))
                        found = True
    return along


def _span(einsum: Einsum, access: Access, along: str, inner: Sequence[str], delay: int) -> tuple[int, int] | None:
    """The first and the last step at which an element is used, counted from its place; tiles of inner ranks aside."""
    if not along:
        return None
    for index in access.indices:
        if factor := index.factor(along):
            sizes = {r: 1 if r in inner else n for r, n in einsum.sizes.items()}
            low, high = index.bounds(sizes, without=along)
            ends = sorted((-high / factor, -low / factor)) if abs(factor) == 1 or index.plain else (-high, -low)
            return int(ends[0]) + delay, int(ends[1]) + delay
    return None


_STREAMS = (Op.ELEMENTWISE, Op.REDUCE, Op.COPY)
_CONTRACTIONS = (Op.MATMUL, Op.CONV)


def expected_loads(cascade: Cascade, report: PassReport) -> dict[str, int]:
    """Tensor that has the rank of ``report`` -> how many times all of it is loaded when the cascade runs pass by pass.

    A pass has at hand what it makes itself; everything else that it reads, it loads.
    """
    read: dict[str, set[int]] = {tensor: set() for tensor in report.visits}
    made: dict[str, set[int]] = {}
    for einsum, when, along in zip(cascade.einsums, report.einsums, report.along, strict=True):
        made.setdefault(einsum.output.tensor, set()).add(when)
        for access in einsum.inputs:
            if along and along in access.ranks:
                read[access.tensor].add(when)
    return {tensor: len(found - made.get(tensor, set())) for tensor, found in read.items()}


@dataclass(frozen=True)
class FusedGroup:
    """Einsums that run as one kernel.

    Args:
        einsums: their places in the cascade, ascending.
        on_chip: intermediates that the kernel makes and uses up itself: they cost no memory traffic.
    """

    einsums: tuple[int, ...]
    on_chip: frozenset[str]


class _Group:
    __slots__ = ("contractions", "first", "folded", "kernels", "last", "members", "produced")

    def __init__(self, first: int) -> None:
        self.members: list[int] = []
        self.first = self.last = first  # its Einsums' places in the order in which they were taken up
        self.produced: set[str] = set()
        self.contractions = 0
        self.kernels: set[int] = set()
        # Tensors that exist only once a whole fibre was folded -> bytes of that fibre.
        self.folded: dict[str, int] = {}

    def add(self, index: int, einsum: Einsum, cascade: Cascade, place: int) -> None:
        self.members.append(index)
        self.last = place
        self.produced.add(einsum.output.tensor)
        self.kernels.add(einsum.kernel)
        if einsum.op in _CONTRACTIONS:
            self.contractions += 1
        inherited = max((self.folded.get(a.tensor, 0) for a in einsum.inputs), default=0)
        if einsum.op is Op.REDUCE:
            inherited = max(inherited, _fibre_bytes(einsum, cascade))
        if inherited:
            self.folded[einsum.output.tensor] = inherited


def _fibre_bytes(einsum: Einsum, cascade: Cascade) -> int:
    """Bytes of what one output element of a reduction folds."""
    sizes = einsum.sizes
    length = 1
    for rank in einsum.reduced:
        length *= sizes[rank]
    return dtypes.nbytes(length, cascade.tensors[einsum.inputs[0].tensor].dtype)


def fuse(cascade: Cascade, capacity_bytes: int) -> list[FusedGroup]:
    """Partitions a cascade into kernels for a device that keeps ``capacity_bytes`` on chip.

    Einsums of one traced operator stay together. An element-wise Einsum or a reduction joins the kernel
    that makes its input. Where it needs the result of a full reduction together with the fibre that was
    reduced (another pass, FuseMax section III), it joins only if that fibre fits on chip; otherwise the
    fibre is written out and read again. A contraction reads its inputs many times over, so it takes in an
    element-wise producer only if the produced tensor fits in half of the chip. Groups never depend on each
    other in a circle.

    Args:
        cascade: what to execute.
        capacity_bytes: on-chip memory that one kernel can use.

    Returns:
        Groups in an order that respects every dependence; each Einsum is in exactly one.
    """
    groups: list[_Group] = []
    of: dict[int, int] = {}  # Einsum -> its group
    producers: dict[int, set[int]] = {}  # Einsum -> Einsums it reads from
    last: dict[str, int] = {}
    order, begins = _with_beginnings(cascade)
    for unit in order:
        chosen = None
        for index in (*begins.get(unit.einsums, ()), *unit.einsums):
            einsum = cascade.einsums[index]
            sources = {last[a.tensor] for a in einsum.inputs if a.tensor in last}
            # Writing after someone else wrote or read the same storage keeps the order too.
            if einsum.output.tensor in last:
                sources.add(last[einsum.output.tensor])
            producers[index] = sources
            if not unit.rank:
                chosen = _choose(index, einsum, cascade, capacity_bytes, groups, of, producers)
            # What goes on in step is a kernel of its own: it cannot be taken apart.
            if chosen is None:
                groups.append(_Group(len(of)))
                chosen = len(groups) - 1
            groups[chosen].add(index, einsum, cascade, len(of))
            of[index] = chosen
            last[einsum.output.tensor] = index
    sequence = _ordered(groups, of, producers)
    consumers = cascade.consumers
    parts: dict[str, list[int]] = {}  # tensor that is written in parts -> who writes one
    for index, einsum in enumerate(cascade.einsums):
        if einsum.output.index is not None:
            parts.setdefault(einsum.output.tensor, []).append(index)
    result = []
    for number in sequence:
        group = groups[number]
        on_chip = frozenset(
            t
            for t in group.produced
            if cascade.tensors[t].role is Role.INTERMEDIATE
            and all(of[c] == number for c in consumers.get(t, ()))
            and all(of[w] == number for w in parts.get(t, ()))
        )
        result.append(FusedGroup(tuple(group.members), on_chip))
    return result


def _with_beginnings(cascade: Cascade) -> tuple[list[Unit], dict[tuple[int, ...], list[int]]]:
    """Units in order, and for recurrences the Einsums without inputs that write what they begin with."""
    order = units(cascade)
    goes_on = {cascade.einsums[i].output.tensor: unit.einsums for unit in order if unit.rank for i in unit.einsums}
    begins: dict[tuple[int, ...], list[int]] = {}
    for index, einsum in enumerate(cascade.einsums):
        unit = goes_on.get(einsum.output.tensor)
        if unit and not einsum.inputs and index not in unit:
            begins.setdefault(unit, []).append(index)
    taken = {i for found in begins.values() for i in found}
    return [unit for unit in order if not taken.intersection(unit.einsums)], begins


def _choose(
    index: int,
    einsum: Einsum,
    cascade: Cascade,
    capacity: int,
    groups: list[_Group],
    of: Mapping[int, int],
    producers: Mapping[int, set[int]],
) -> int | None:
    previous = index - 1
    if previous in of and einsum.kernel >= 0 and cascade.einsums[previous].kernel == einsum.kernel:
        return of[previous]
    made = {cascade.einsums[p].output.tensor: of[p] for p in producers[index]}
    reads = sorted((a for a in einsum.inputs if a.tensor in made), key=lambda a: -cascade.access_bytes(einsum, a))
    for access in reads:
        number = made[access.tensor]
        if _joins(einsum, access, groups[number], cascade, capacity) and not _circle(
            index, number, groups, of, producers
        ):
            return number
    return None


def _joins(einsum: Einsum, access: Access, group: _Group, cascade: Cascade, capacity: int) -> bool:
    if cascade.tensors[access.tensor].role is not Role.INTERMEDIATE:
        return False
    made_by = cascade.einsums[max(m for m in group.members if cascade.einsums[m].output.tensor == access.tensor)]
    if made_by.op in (Op.UNKNOWN, Op.SCATTER):
        return False
    if einsum.op in _CONTRACTIONS:
        fits = 2 * cascade.tensors[access.tensor].nbytes <= capacity
        return group.contractions == 0 and fits
    if einsum.op not in _STREAMS:
        return False
    for read in einsum.inputs:
        fibre = group.folded.get(read.tensor, 0)
        # Broadcast back over what was folded: the fibre is visited again.
        if fibre and einsum.points > einsum.touched(read) and fibre > capacity:
            return False
    if group.contractions and einsum.op is Op.REDUCE:
        # The contraction hands over tiles; a fold needs whole fibres of its result.
        return _fibre_bytes(einsum, cascade) <= capacity
    return True


def _circle(
    index: int, number: int, groups: list[_Group], of: Mapping[int, int], producers: Mapping[int, set[int]]
) -> bool:
    """Whether another producer of ``index`` itself waits for the group that it would join."""
    first = groups[number].first
    waiting = [of[p] for p in producers[index] if of[p] != number]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop()
        if current == number:
            return True
        if current in seen or groups[current].last < first:
            continue
        seen.add(current)
        for member in groups[current].members:
            waiting.extend(of[p] for p in producers[member] if of[p] != current)
    return False


def _ordered(groups: list[_Group], of: Mapping[int, int], producers: Mapping[int, set[int]]) -> list[int]:
    """Groups in dependence order, the earliest first Einsum first."""
    needs: list[set[int]] = [set() for _ in groups]
    feeds: list[set[int]] = [set() for _ in groups]
    for index, sources in producers.items():
        for p in sources:
            if of[p] != of[index]:
                needs[of[index]].add(of[p])
                feeds[of[p]].add(of[index])
    ready = [(groups[g].first, g) for g, n in enumerate(needs) if not n]
    heapq.heapify(ready)
    order = []
    while ready:
        _, g = heapq.heappop(ready)
        order.append(g)
        for later in feeds[g]:
            needs[later].discard(g)
            if not needs[later]:
                heapq.heappush(ready, (groups[later].first, later))
    return order


def traffic(cascade: Cascade, group: FusedGroup) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that a kernel must move at least once: (reads, writes), by tensor.

    A tensor made inside is not read back; one that stays on chip is not written either.
    """
    reads: dict[str, int] = {}
    writes: dict[str, int] = {}
    inside = [cascade.einsums[i] for i in group.einsums]
    steps = {
        e.output.tensor: cascade.access_bytes(e, e.output) for e in inside if e.iterative and e.output.index is not None
    }
    for index in group.einsums:
        einsum = cascade.einsums[index]
        for access in einsum.inputs:
            if access.tensor not in writes and access.tensor not in group.on_chip:
                moved = cascade.access_bytes(einsum, access)
                if access.tensor in steps:  # of what the kernel makes step by step, only what was there before
                    moved = min(moved, cascade.tensors[access.tensor].nbytes - steps[access.tensor])
                reads[access.tensor] = max(reads.get(access.tensor, 0), moved)
        target = einsum.output.tensor
        if target not in group.on_chip:
            writes[target] = max(writes.get(target, 0), cascade.access_bytes(einsum, einsum.output))
    return reads, writes


def one_kernel(einsums: list[Einsum]) -> bool:
    """Whether these Einsums of one operator run in one pass over their inputs, nothing spilled."""
    return any(word in e.source for e in einsums for word in ONE_PASS_OPERATORS) or len(einsums) == 1
