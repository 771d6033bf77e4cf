"""How often a cascade must visit its data, and what must be kept between visits.

FuseMax (arXiv 2406.10491, section IV): an Einsum needs another pass over the fibres of a rank when an
element of a fibre has to be visited again after the whole fibre was visited. A cascade that needs one pass
runs with a buffer that does not grow with that rank; one that needs more holds whole fibres, or spills them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hasten import dtypes
from hasten.workload.einsum import Access, Cascade, Einsum, Op, Role

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
        footprint: the product of the sizes of ``live``, elements a fibre.
    """

    rank: tuple[str, ...]
    count: int
    einsums: tuple[int, ...]
    tensors: Mapping[str, int]
    visits: Mapping[str, int]
    live: Mapping[str, tuple[str, ...]]
    footprint: Mapping[str, int]


def passes(cascade: Cascade, rank: str | Sequence[str]) -> PassReport:
    """Counts passes over ``rank``, or over a rank split into several (outermost first).

    Ranks carry one name throughout the cascade. An element-wise Einsum runs in the latest pass of its
    inputs. A reduction over inner ranks alone stays within the pass, since a tile is on chip; so does a
    running value along an iterative rank. A reduction over the outermost rank is complete only when every
    fibre was visited: data of that rank may meet its result from the next pass on.

    Args:
        cascade: what to analyse.
        rank: one rank, or e.g. ``("m1", "m0")``.
    """
    ranks = (rank,) if isinstance(rank, str) else tuple(rank)
    ready: dict[str, int] = {}
    when: list[int] = []
    sizes: dict[str, int] = {}
    made: dict[str, int] = {}
    read: dict[str, set[int]] = {}
    own: dict[str, tuple[str, ...]] = {}
    for einsum in cascade.einsums:
        number = max((ready.get(a.tensor, 1) for a in einsum.inputs), default=1)
        when.append(number)
        sizes |= {name: size for name, size in einsum.ranks if name in ranks}
        for access in einsum.inputs:
            shared = tuple(r for r in ranks if r in access.ranks)
            if shared:
                own[access.tensor] = shared
                read.setdefault(access.tensor, set()).add(number)
        output = einsum.output
        shared = tuple(r for r in ranks if r in output.ranks)
        if shared:
            own[output.tensor] = shared
            made[output.tensor] = number
        # Split into parts, a rank of which only the inner parts exist here was folded tile by tile before.
        outermost = next((r for r in ranks if r in einsum.sizes), None)
        folded = outermost is not None and outermost in einsum.reduced
        # What an iterative rank leaves at its end is complete only then, but it is used outside the loop.
        ready[output.tensor] = number + 1 if folded and outermost == ranks[0] else number
    live = {}
    for tensor, shared in own.items():
        first = made.get(tensor, 0)
        again = any(number > first for number in read.get(tensor, ())) if first else len(read[tensor]) > 1
        tile = tuple(r for r in shared if r != ranks[0])
        live[tensor] = shared if again else tile
    return PassReport(
        rank=ranks,
        count=max((n for n, e in zip(when, cascade.einsums) if any(r in e.sizes for r in ranks)), default=0),
        einsums=tuple(when),
        tensors=ready,
        visits={tensor: len(found) for tensor, found in read.items()},
        live=live,
        footprint={tensor: math.prod(sizes[r] for r in kept) for tensor, kept in live.items()},
    )


_STREAMS = (Op.ELEMENTWISE, Op.REDUCE, Op.COPY)
_CONTRACTIONS = (Op.MATMUL, Op.CONV)


def expected_loads(cascade: Cascade, report: PassReport) -> dict[str, int]:
    """Tensor that has the rank of ``report`` -> how many times all of it is loaded when the cascade runs pass by pass.

    A pass has at hand what it makes itself; everything else that it reads, it loads.
    """
    runs = list(zip(cascade.einsums, report.einsums, strict=True))
    made = {einsum.output.tensor: when for einsum, when in runs}
    return {
        tensor: len({when for einsum, when in runs for a in einsum.inputs if a.tensor == tensor} - {made.get(tensor)})
        for tensor in report.visits
    }


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
    __slots__ = ("contractions", "folded", "kernels", "members", "produced")

    def __init__(self) -> None:
        self.members: list[int] = []
        self.produced: set[str] = set()
        self.contractions = 0
        self.kernels: set[int] = set()
        # Tensors that exist only once a whole fibre was folded -> bytes of that fibre.
        self.folded: dict[str, int] = {}

    def add(self, index: int, einsum: Einsum, cascade: Cascade) -> None:
        self.members.append(index)
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
    of: list[int] = []  # Einsum -> its group
    producers: list[set[int]] = []  # Einsum -> Einsums it reads from
    last: dict[str, int] = {}
    for index, einsum in enumerate(cascade.einsums):
        sources = {last[a.tensor] for a in einsum.inputs if a.tensor in last}
        # Writing after someone else wrote or read the same storage keeps the order too.
        if einsum.output.tensor in last:
            sources.add(last[einsum.output.tensor])
        producers.append(sources)
        chosen = _choose(index, einsum, cascade, capacity_bytes, groups, of, producers)
        if chosen is None:
            groups.append(_Group())
            chosen = len(groups) - 1
        groups[chosen].add(index, einsum, cascade)
        of.append(chosen)
        last[einsum.output.tensor] = index
    order = _ordered(groups, of, producers)
    consumers = cascade.consumers
    result = []
    for number in order:
        group = groups[number]
        on_chip = frozenset(
            t
            for t in group.produced
            if cascade.tensors[t].role is Role.INTERMEDIATE and all(of[c] == number for c in consumers.get(t, ()))
        )
        result.append(FusedGroup(tuple(group.members), on_chip))
    return result


def _choose(
    index: int,
    einsum: Einsum,
    cascade: Cascade,
    capacity: int,
    groups: list[_Group],
    of: list[int],
    producers: list[set[int]],
) -> int | None:
    previous = index - 1
    if previous >= 0 and einsum.kernel >= 0 and cascade.einsums[previous].kernel == einsum.kernel:
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


def _circle(index: int, number: int, groups: list[_Group], of: list[int], producers: list[set[int]]) -> bool:
    """Whether another producer of ``index`` itself waits for the group that it would join."""
    first = groups[number].members[0]
    waiting = [of[p] for p in producers[index] if of[p] != number]
    seen: set[int] = set()
    while waiting:
        current = waiting.pop()
        if current == number:
            return True
        if current in seen or groups[current].members[-1] < first:
            continue
        seen.add(current)
        for member in groups[current].members:
            waiting.extend(of[p] for p in producers[member] if of[p] != current)
    return False


def _ordered(groups: list[_Group], of: list[int], producers: list[set[int]]) -> list[int]:
    """Groups in dependence order, the earliest first Einsum first."""
    import heapq

    needs: list[set[int]] = [set() for _ in groups]
    feeds: list[set[int]] = [set() for _ in groups]
    for index, sources in enumerate(producers):
        for p in sources:
            if of[p] != of[index]:
                needs[of[index]].add(of[p])
                feeds[of[p]].add(of[index])
    ready = [(groups[g].members[0], g) for g, n in enumerate(needs) if not n]
    heapq.heapify(ready)
    order = []
    while ready:
        _, g = heapq.heappop(ready)
        order.append(g)
        for later in feeds[g]:
            needs[later].discard(g)
            if not needs[later]:
                heapq.heappush(ready, (groups[later].members[0], later))
    return order


def traffic(cascade: Cascade, group: FusedGroup) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes that a kernel must move at least once: (reads, writes), by tensor.

    A tensor made inside is not read back; one that stays on chip is not written either.
    """
    reads: dict[str, int] = {}
    writes: dict[str, int] = {}
    for index in group.einsums:
        einsum = cascade.einsums[index]
        for access in einsum.inputs:
            if access.tensor not in writes and access.tensor not in group.on_chip:
                moved = cascade.access_bytes(einsum, access)
                reads[access.tensor] = max(reads.get(access.tensor, 0), moved)
        target = einsum.output.tensor
        if target not in group.on_chip:
            writes[target] = max(writes.get(target, 0), cascade.access_bytes(einsum, einsum.output))
    return reads, writes


def one_kernel(einsums: list[Einsum]) -> bool:
    """Whether these Einsums of one operator run in one pass over their inputs, nothing spilled."""
    return any(word in e.source for e in einsums for word in ONE_PASS_OPERATORS) or len(einsums) == 1
