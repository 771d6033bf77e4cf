"""From a cascade to a graph of tasks, with what streams between them derived from the Einsums.

Two tasks that follow each other are looked at as a cascade of their own. For each dimension of the tensor between them
`hasten.workload.passes.passes` says in which pass over that dimension each Einsum runs: where the reader is in the pass
in which the tensor is made, it may begin on a tile; where it is in a later one (a softmax over that dimension, a norm,
a mean) or does not go over it at all (the keys of all queries), it waits for the whole tensor.

A traced program reads tensors through views. So that dimensions can be followed, every access is first brought to
dimensions that all who write or read a tensor share: a rank of 1024 channels that another operator reads as 16 heads of
64 becomes two ranks. What walks through a tensor in no order that a sum of ranks says counts as needing all of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hasten import dtypes
from hasten.errors import HastenError
from hasten.workload.arithmetic import joins
from hasten.workload.einsum import Access, Cascade, Einsum, Op, Phase, Role, Tensor, Workload
from hasten.workload.index import AffineIndex
from hasten.workload.loops import rank_strides, window_indices
from hasten.workload.passes import passes
from hasten.workload.work_graph import Stream, WorkEdge, WorkGraph, WorkTask

_CONTRACTIONS = (Op.MATMUL, Op.CONV)
_OPAQUE = (Op.UNKNOWN, Op.SCATTER, Op.GATHER)
_FOLDS = ("sum", "max", "min", "prod", "any", "all")
# Operators that move elements and leave them where their index says.
_COPIES = frozenset(
    f"aten::{name}"
    for name in (
        "cat", "clone", "contiguous", "copy", "copy_", "detach_copy", "expand_copy", "lift_fresh_copy", "permute_copy",
        "select_copy", "slice_copy", "squeeze_copy", "to", "transpose_copy", "unsqueeze_copy", "view_copy",
        "_reshape_copy", "_to_copy",
    )
)  # fmt: skip
_FIRST = AffineIndex(())


@dataclass(frozen=True)
class ByDimension:
    """A cascade whose accesses index every dimension of their tensors.

    Args:
        cascade: Einsums in the same places as before; ranks of size 1 are gone, others may be split.
        opaque: (Einsum, input) where a tensor is read in no order that a sum of ranks says.
    """

    cascade: Cascade
    opaque: frozenset[tuple[int, int]]


@dataclass
class _Walk:
    """How an access walks through memory: ranks with strides, dimensions read by windows, and where it begins."""

    plain: list[tuple[str, int]]
    windows: list[tuple[AffineIndex, int, int]]  # index, stride, size
    offset: int = 0


def by_dimension(cascade: Cascade) -> ByDimension:
    """The same cascade, every access by an index of each dimension, dimensions as fine as anyone needs them.

    Shapes of tensors are those of the new dimensions: a tensor of (256, 1024) that is read by heads becomes one of
    (256, 16, 64).
    """
    return _ByDimension(cascade).found()


class _ByDimension:
    def __init__(self, cascade: Cascade) -> None:
        self.cascade = cascade
        self.walks: dict[tuple[int, int], _Walk | None] = {}
        for i, einsum in enumerate(cascade.einsums):
            for j, access in enumerate((*einsum.inputs, einsum.output)):
                self.walks[i, j] = self._walk(einsum, j, access)
        written: dict[str, int] = {}
        for einsum in cascade.einsums:
            written[einsum.output.tensor] = written.get(einsum.output.tensor, 0) + 1
        self.parts = {n for n, times in written.items() if times > 1}
        # (Einsum, rank) -> sizes of inner parts at which it is cut, ascending, its own size last.
        self.cuts = {(i, r): [1, n] for i, e in enumerate(cascade.einsums) for r, n in e.ranks if n > 1}
        self.fixed = {(i, r) for (i, _), w in self.walks.items() if w for index, _, _ in w.windows for r in index.ranks}
        self.slid: dict[str, set[tuple[int, int]]] = {}
        for (i, j), walk in self.walks.items():
            name = (*cascade.einsums[i].inputs, cascade.einsums[i].output)[j].tensor
            self.slid.setdefault(name, set()).update((s, n) for _, s, n in (walk.windows if walk else ()))
        self._refine()

    def _walk(self, einsum: Einsum, place: int, access: Access) -> _Walk | None:
        tensor = self.cascade.tensors[access.tensor]
        written = place == len(einsum.inputs)
        sizes = einsum.sizes
        if tensor.role is not Role.WEIGHT and _mixes(einsum):
            return None
        if access.index is not None:
            return _indexed(access, sizes, tensor.shape)
        if not written and place == 0 and access.view and (einsum.op is Op.CONV or "_pool" in einsum.source):
            if dict(einsum.constants).get("transposed"):
                return None
            try:
                indices = window_indices(einsum, access.view, sizes)
            except HastenError:
                return None
            found = zip(indices, access.view.strides, access.view.sizes, strict=True)
            return _split_windows([f for f in found if f[2] > 1], sizes, access.view.offset)
        joined = None
        if einsum.source == "aten::cat" and not written:
            try:
                joined = joins(einsum)[place]
            except HastenError:
                return None
            einsum = replace(
                einsum, ranks=tuple((r, joined[2] - joined[1] if r == joined[0] else n) for r, n in einsum.ranks)
            )
        elif access.elements is not None and access.elements != math.prod(sizes[r] for r in access.ranks):
            return None
        terms = rank_strides(einsum, access, tensor)
        if terms is None:
            return None
        # What is joined lies elsewhere than it is written, and what is folded by no running value is needed whole.
        skipped = {joined[0]} if joined else set()
        if not written and not _accumulates(einsum):
            skipped |= set(einsum.reduced)
        plain = [(r, s) for r, s in terms if sizes[r] > 1 and s > 0 and r not in skipped]
        return _Walk(plain, [], access.view.offset if access.view else 0)

    def _refine(self) -> None:
        """Cuts ranks until every step that anyone takes through a tensor is a step of all who walk through it."""
        accesses: dict[str, list[tuple[int, _Walk]]] = {}
        for (i, j), walk in self.walks.items():
            einsum = self.cascade.einsums[i]
            access = (*einsum.inputs, einsum.output)[j]
            if walk is not None and access.tensor not in self.parts:
                accesses.setdefault(access.tensor, []).append((i, walk))
        moved = True
        while moved:
            moved = False
            for users in accesses.values():
                steps = set()
                for i, walk in users:
                    steps |= {s * c for r, s in walk.plain for c in self.cuts[i, r]}
                    steps |= {e for _, s, n in walk.windows for e in (s, s * n)}
                # A dimension that a window slides over, or that is written by a rank of such a window, stays whole.
                whole = {(s, s * self.cuts[i, r][-1]) for i, w in users for r, s in w.plain if (i, r) in self.fixed}
                whole |= {(s, s * n) for _, w in users for _, s, n in w.windows}
                steps = {b for b in steps if not any(low < b < high for low, high in whole)}
                for i, walk in users:
                    for rank, stride in walk.plain:
                        moved |= (i, rank) not in self.fixed and self._cut((i, rank), stride, steps)

    def _cut(self, key: tuple[int, str], stride: int, steps: set[int]) -> bool:
        cuts = self.cuts[key]
        for step in sorted(steps):
            inner = step // stride
            if step % stride or not 1 < inner < cuts[-1] or inner in cuts:
                continue
            more = sorted([*cuts, inner])
            if all(b % a == 0 for a, b in itertools.pairwise(more)):
                self.cuts[key] = more
                return True
        return False

    def _ranks(self, i: int, rank: str, stride: int) -> list[tuple[str, int, int]]:
        """(part of a rank, stride, size), the outermost first."""
        cuts = self.cuts[i, rank]
        whole = len(cuts) == 2
        return [
            (rank if whole else f"{rank}_{k}", stride * cuts[k], cuts[k + 1] // cuts[k])
            for k in range(len(cuts) - 2, -1, -1)
        ]

    def found(self) -> ByDimension:
        tensors: dict[str, Tensor] = {}
        steps: dict[str, list[tuple[int, int]]] = {}  # tensor -> (stride, size) of each dimension
        order = sorted(self.walks, key=lambda k: (k[1] < len(self.cascade.einsums[k[0]].inputs), k))
        for i, j in order:  # who writes says how it lies; of what nobody writes, who reads first
            einsum = self.cascade.einsums[i]
            name = (*einsum.inputs, einsum.output)[j].tensor
            if name not in steps:
                steps[name] = self._dimensions(i, self.walks[i, j], self.cascade.tensors[name])
                known = self.cascade.tensors[name]
                tensors[name] = Tensor(name, tuple(n for _, n in steps[name]), known.dtype, known.role)
        opaque: set[tuple[int, int]] = set()
        einsums = []
        for i, einsum in enumerate(self.cascade.einsums):
            accesses = []
            for j, access in enumerate((*einsum.inputs, einsum.output)):
                made = None if access.tensor in self.parts else self._access(i, j, access.tensor, steps[access.tensor])
                if made is None:
                    opaque.add((i, j))
                    made = Access.at(access.tensor, *[_FIRST] * len(steps[access.tensor]), outside=0.0)
                accesses.append(made)
            ranks = tuple((part, n) for r, size in einsum.ranks if size > 1 for part, _, n in self._ranks(i, r, 1))
            along = tuple(part for r in einsum.iterative if (i, r) in self.cuts for part, _, _ in self._ranks(i, r, 1))
            einsums.append(
                replace(einsum, ranks=ranks, inputs=tuple(accesses[:-1]), output=accesses[-1], iterative=along)
            )
        return ByDimension(Cascade(tuple(einsums), tensors), frozenset(opaque))

    def _dimensions(self, i: int, walk: _Walk | None, tensor: Tensor) -> list[tuple[int, int]]:
        flat = [(1, tensor.elements)]
        if walk is None or tensor.name in self.parts:
            return flat
        found = [(s, n) for r, stride in walk.plain for _, s, n in self._ranks(i, r, stride)]
        found += [(s, n) for _, s, n in walk.windows]
        # A dimension that somebody slides a window over is one, by however many ranks it was written.
        for stride, size in self.slid.get(tensor.name, ()):
            inside = [(s, n) for s, n in found if stride <= s and s * n <= stride * size]
            if math.prod(n for _, n in inside) == size:
                found = [(stride, size), *(f for f in found if f not in inside)]
        found.sort(reverse=True)
        inner = 1
        for stride, size in reversed(found):
            if stride != inner:
                return flat
            inner *= size
        return (found or [(1, 1)]) if inner == tensor.elements else flat

    def _access(self, i: int, j: int, name: str, steps: Sequence[tuple[int, int]]) -> Access | None:
        walk = self.walks[i, j]
        if walk is None:
            return None
        left = walk.offset
        indices = []
        parts = [p for r, stride in walk.plain for p in self._ranks(i, r, stride)]
        windows = list(walk.windows)
        outside = None
        for stride, size in steps:
            begin, left = divmod(left, stride)
            own = [p for p in parts if stride <= p[1] < stride * size]
            over = [w for w in windows if w[1] == stride]
            if over and own:
                return None
            if over:
                index, _, wide = over[0]
                windows.remove(over[0])
                if wide != size or begin:
                    return None
                low, high = index.bounds(self.cascade.einsums[i].sizes)
                outside = 0.0 if low < 0 or high >= size else outside
                indices.append(index)
            elif own:
                parts = [p for p in parts if p not in own]
                reach = sum(step // stride * (count - 1) for _, step, count in own)
                if any(step % stride for _, step, _ in own) or begin + reach >= size:
                    return None
                indices.append(AffineIndex(tuple((rank, step // stride) for rank, step, _ in own), begin))
            else:
                if begin >= size:
                    return None
                indices.append(AffineIndex((), begin))
        return None if parts or windows or left else Access.at(name, *indices, outside=outside)


def _indexed(access: Access, sizes: Mapping[str, int], shape: tuple[int, ...]) -> _Walk | None:
    """Of an access that was written down with an index of each dimension."""
    if len(access.indices) != len(shape):
        return None
    stride, found = math.prod(shape), []
    for index, size in zip(access.indices, shape, strict=True):
        stride //= max(size, 1)
        if size > 1:
            found.append((index, stride, size))
    return _split_windows(found, sizes, 0)


def _split_windows(found: Sequence[tuple[AffineIndex, int, int]], sizes: Mapping[str, int], offset: int) -> _Walk:
    """Dimensions that ranks walk through without meeting an element twice are no windows."""
    walk = _Walk([], [], offset)
    for index, stride, size in found:
        terms = sorted((f, sizes[r], r) for r, f in index.terms if sizes[r] > 1)
        reach, apart = 1, index.offset >= 0
        for factor, count, _ in terms:
            apart &= factor > 0 and factor % reach == 0
            reach = factor * count
        if apart and index.bounds(sizes)[1] < size:
            walk.plain += [(r, f * stride) for f, _, r in terms]
            walk.offset += index.offset * stride
        else:
            walk.windows.append((AffineIndex(tuple((r, f) for f, _, r in terms), index.offset), stride, size))
    return walk


def _mixes(einsum: Einsum) -> bool:
    """Whether elements go elsewhere than ranks say: rows that are looked up, sorted, turned or transformed."""
    if einsum.op is Op.REDUCE:
        return einsum.reduce not in _FOLDS or einsum.map in ("butterfly", "compare")
    if einsum.op is Op.COPY:
        return bool(einsum.source) and einsum.source not in _COPIES
    return einsum.op in _OPAQUE


def _accumulates(einsum: Einsum) -> bool:
    """Whether what is folded away can be folded a tile at a time."""
    return einsum.reduce is not None or einsum.op in _CONTRACTIONS


# -- tasks ---------------------------------------------------------------------------------------------


def work_graph(
    cascade: Cascade | Workload | Phase, name: str = "", *, grain: str = "contraction", dtype: str = ""
) -> WorkGraph:
    """The graph of tasks of a cascade.

    Args:
        cascade: what is computed; a workload of one phase, or a phase of one, too.
        name: for people.
        grain: ``contraction`` (each product of tensors is a task, and what is element by element or a reduction goes
            with the last of those whose results it reads) or ``kernel`` (each launched operator is a task).
        dtype: a number format in which all tensors of 32-bit, 16-bit and 64-bit floating point are counted instead.

    Raises:
        HastenError: another grain, an unknown format, a workload of several phases, or a cascade of nothing or of
            tensors without elements.
    """
    if isinstance(cascade, Workload):
        if len(cascade.phases) > 1:
            names = ", ".join(p.name for p in cascade.phases)
            raise HastenError(f"{cascade.name} has several phases ({names}): give one of them")
        name, cascade = name or cascade.name, cascade.phases[0]
    if isinstance(cascade, Phase):
        name, cascade = name or cascade.name, cascade.cascade
    if grain not in ("contraction", "kernel"):
        raise HastenError(f"there is no grain {grain[:20]!r} of tasks: use contraction or kernel")
    if dtype:
        if dtype not in dtypes.BITS:
            raise HastenError(f"there is no number format {dtype[:20]!r}: use one of {', '.join(dtypes.BITS)}")
        wide = ("fp64", "fp32", "tf32", "fp16", "bf16")
        tensors = {n: replace(t, dtype=dtype) if t.dtype in wide else t for n, t in cascade.tensors.items()}
        cascade = replace(cascade, tensors=tensors)
    try:
        return _Tasks(cascade, name or "cascade", grain).graph()
    except HastenError:
        empty = next((e for e in cascade.einsums if 0 in e.sizes.values()), None)
        if empty is None:
            raise
        where = empty.module or empty.source.rpartition("::")[2] or empty.output.tensor
        told = f"{name or 'cascade'} has no elements at {where}: give inputs and layers of at least one"
        raise HastenError(told) from None


class _Tasks:
    def __init__(self, cascade: Cascade, name: str, grain: str) -> None:
        self.cascade, self.name = cascade, name
        self.members: list[list[int]] = []
        self.of: dict[int, int] = {}
        self._group(grain)
        self.writers: dict[str, list[int]] = {}
        for i, einsum in enumerate(cascade.einsums):
            self.writers.setdefault(einsum.output.tensor, []).append(i)
        self.fine = by_dimension(cascade)
        self.names = self._names()

    def _group(self, grain: str) -> None:
        last: dict[str, int] = {}  # tensor -> the task that wrote it last
        kernels: dict[int, int] = {}
        for i, einsum in enumerate(self.cascade.einsums):
            sources = [last[a.tensor] for a in (*einsum.inputs, einsum.output) if a.tensor in last]
            task = max(sources, default=-1)
            if grain == "kernel":
                # A kernel whose number came back after another began is another one: tasks stay in order.
                task = kernels.get(einsum.kernel, -1) if einsum.kernel >= 0 else -1
                task = -1 if task < max(sources, default=-1) else task
            elif einsum.op in _CONTRACTIONS or (einsum.op is Op.GATHER and not sources):
                task = -1
            if task < 0:
                task = len(self.members)
                self.members.append([])
            if einsum.kernel >= 0:
                kernels[einsum.kernel] = task
            self.members[task].append(i)
            self.of[i] = task
            last[einsum.output.tensor] = task

    def _names(self) -> list[str]:
        found: list[str] = []
        for members in self.members:
            head = self.cascade.einsums[self._anchor(members)]
            plain = head.module or head.source.rpartition("::")[2].strip("_") or head.output.tensor
            if not head.source and not head.module:
                plain = head.output.tensor
            name, again = plain, 2
            while name in found:
                name, again = f"{plain}.{again}", again + 1
            found.append(name)
        return found

    def _anchor(self, members: Sequence[int]) -> int:
        """The Einsum by whose ranks a task's direction is named: its product, or the largest of the others."""
        einsums = self.cascade.einsums
        return max(members, key=lambda i: (einsums[i].op in _CONTRACTIONS, einsums[i].points, -i))

    def graph(self) -> WorkGraph:
        if not self.members:
            raise HastenError(f"{self.name} computes nothing: there are no tasks in it")
        tasks = tuple(self._task(t) for t in range(len(self.members)))
        edges: dict[tuple[int, int, str], None] = {}
        last: dict[str, int] = {}
        for i, einsum in enumerate(self.cascade.einsums):
            for access in (*einsum.inputs, einsum.output):
                source = last.get(access.tensor)
                if source is not None and source != self.of[i]:
                    edges[source, self.of[i], access.tensor] = None
            last[einsum.output.tensor] = self.of[i]
        made = tuple(self._edge(*e) for e in sorted(edges))
        return WorkGraph(self.name, tasks, made)

    def _task(self, task: int) -> WorkTask:
        members = [self.cascade.einsums[i] for i in self.members[task]]
        weights: dict[str, int] = {}
        given: dict[str, int] = {}
        for einsum in members:
            for access in einsum.inputs:
                tensor = self.cascade.tensors[access.tensor]
                size = self.cascade.access_bytes(einsum, access)
                if tensor.role in (Role.WEIGHT, Role.STATE):
                    weights[tensor.name] = max(weights.get(tensor.name, 0), size)
                elif tensor.name not in self.writers:
                    given[tensor.name] = max(given.get(tensor.name, 0), size)
        leaving = {
            e.output.tensor: self.cascade.tensors[e.output.tensor].nbytes
            for e in members
            if self.cascade.tensors[e.output.tensor].role is Role.OUTPUT
        }
        place = self._anchor(self.members[task])
        anchor = self.cascade.einsums[place]
        return WorkTask(
            self.names[task],
            macs=sum(e.points for e in members if e.op in _CONTRACTIONS),
            operations=sum(e.operations for e in members),
            weight_bytes=sum(weights.values()),
            input_bytes=sum(given.values()),
            result_bytes=sum(leaving.values()),
            kind=anchor.op,
            module=anchor.module,
            einsums=tuple(self.members[task]),
            anchor=place,
            ways=tuple(n for r, n in anchor.ranks if r in anchor.output.ranks and n > 1),
            inputs=tuple(given.items()),
        )

    def _edge(self, producer: int, consumer: int, tensor: str) -> WorkEdge:
        size = self.cascade.tensors[tensor].nbytes
        return WorkEdge(
            self.names[producer], self.names[consumer], size, tensor, self._streams(producer, consumer, tensor)
        )

    def _streams(self, producer: int, consumer: int, tensor: str) -> tuple[Stream, ...]:
        """Ways in which a tensor passes between two tasks tile by tile, by the passes over each of its dimensions."""
        if len(self.writers[tensor]) > 1:
            return ()  # written in parts: not before the last is any of it known to be whole
        own, other = self.members[producer], self.members[consumer]
        readers = [i for i in other if any(a.tensor == tensor for a in self.cascade.einsums[i].inputs)]
        writer = self.writers[tensor][0]
        opaque = self.fine.opaque
        inputs = {(i, j) for i in readers for j, a in enumerate(self.cascade.einsums[i].inputs) if a.tensor == tensor}
        if inputs & opaque or (writer, len(self.cascade.einsums[writer].inputs)) in opaque:
            return ()
        pair, place = apart(self.fine.cascade, (*own, *other))
        made = self.fine.cascade.einsums[writer].output
        size = self.fine.cascade.tensors[tensor]
        found = []
        for d, index in enumerate(made.indices):
            sizes = self.fine.cascade.einsums[writer].sizes
            rank = max(index.ranks, key=sizes.__getitem__, default="")
            if not rank or size.shape[d] < 2:
                continue
            report = passes(pair, f"{rank}@{writer}")
            along = {i: report.along[p].rpartition("@")[0] for i, p in place.items()}
            when = {i: report.einsums[p] for i, p in place.items()}
            if not all(along[r] and when[r] == when[writer] for r in readers):
                continue
            if any(along[r] not in a.ranks for r in readers for a in self._reads(r, tensor)):
                continue
            # One pass, and nothing folded on the way: otherwise the tensor comes only after the last tile.
            if len({when[i] for i in own if along[i]}) != 1 or report.live.get(tensor, ()):
                continue
            ends = (along[self._anchor(own)], along[self._anchor(other)])
            if not all(ends):
                continue
            later = {when[i] for i in other if along[i] or when[i] > when[writer]}
            folds = any(along[i] in self.fine.cascade.einsums[i].reduced for i in other if along[i])
            row = dtypes.nbytes(size.elements // size.shape[d], size.dtype)
            rows = max(-(-size.shape[d] // sizes[rank]), report.footprint.get(tensor, 1))
            found.append(
                Stream(
                    *ends,
                    steps=sizes[rank],
                    folds=folds or len(later) > 1,
                    buffer_bytes=min(size.nbytes, row * rows),
                    producer_held=self._held(own, along),
                    consumer_held=self._held(other, along),
                    producer_whole=self._whole(own, along),
                    consumer_whole=self._whole(other, along),
                )
            )
        return tuple(dict.fromkeys(found))

    def _reads(self, index: int, tensor: str) -> list[Access]:
        return [a for a in self.fine.cascade.einsums[index].inputs if a.tensor == tensor]

    def _held(self, members: Sequence[int], along: Mapping[int, str]) -> int:
        """Bytes of weights that Einsums which go along a rank read at each step again: all that lack the rank."""
        lacking = self._lacking(members, along)
        return sum(n for name, n in lacking.items() if self.cascade.tensors[name].role in (Role.WEIGHT, Role.STATE))

    def _whole(self, members: Sequence[int], along: Mapping[int, str]) -> tuple[str, ...]:
        """Other tensors that they are given and read at each step again."""
        made = {self.cascade.einsums[i].output.tensor for i in members}
        kept = (Role.WEIGHT, Role.STATE)
        lacking = self._lacking(members, along)
        return tuple(n for n in lacking if n not in made and self.cascade.tensors[n].role not in kept)

    def _lacking(self, members: Sequence[int], along: Mapping[int, str]) -> dict[str, int]:
        """Tensors that lack the rank along which Einsums go -> bytes that are read of them."""
        found: dict[str, int] = {}
        for i in members:
            if not along[i]:
                continue
            einsum = self.cascade.einsums[i]
            for j, access in enumerate(einsum.inputs):
                if along[i] not in self.fine.cascade.einsums[i].inputs[j].ranks:
                    size = self.cascade.access_bytes(einsum, access)
                    found[access.tensor] = max(found.get(access.tensor, 0), size)
        return found


def apart(cascade: Cascade, members: Sequence[int]) -> tuple[Cascade, dict[int, int]]:
    """Some Einsums as a cascade of their own: what comes from elsewhere is given to each of them apart.

    Args:
        cascade: as `by_dimension` gives it.
        members: places of the Einsums in it.

    Returns:
        The cascade, in which rank ``r`` of the Einsum at ``i`` is called ``r@i``; and place before -> place in it.
    """
    chosen = sorted(members)
    made = {cascade.einsums[i].output.tensor for i in chosen}
    tensors: dict[str, Tensor] = {}

    def moved(access: Access, i: int) -> Access:
        known = cascade.tensors[access.tensor]
        name = access.tensor if access.tensor in made else f"{access.tensor}@{i}"
        tensors.setdefault(name, replace(known, name=name))
        index = (AffineIndex(tuple((f"{r}@{i}", f) for r, f in d.terms), d.offset) for d in access.indices)
        return Access.at(name, *index, outside=access.outside)

    einsums = [
        replace(
            e,
            ranks=tuple((f"{r}@{i}", n) for r, n in e.ranks),
            inputs=tuple(moved(a, i) for a in e.inputs),
            output=moved(e.output, i),
            iterative=tuple(f"{r}@{i}" for r in e.iterative),
        )
        for i, e in ((i, cascade.einsums[i]) for i in chosen)
    ]
    return Cascade(tuple(einsums), tensors), {i: p for p, i in enumerate(chosen)}
