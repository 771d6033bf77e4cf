"""Loops of a traced program: each Einsum as a nest with exact subscripts, for who compiles it to hardware.

An Einsum says which ranks index a tensor; where its elements lie was traced with it (`Access.view`). From both follows
the subscript of every dimension of an array, a sum of ranks with factors. Ranks are split where a view joined
dimensions of an array, so that no subscript needs a division. What runs depends on nothing but the cascade.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from hasten.errors import HastenError
from hasten.workload.arithmetic import (
    ACC,
    FOLD,
    Expression,
    arithmetic,
    joins,
    ranks_of,
    read,
    substitute,
    walk,
)
from hasten.workload.einsum import Access, Cascade, Einsum, Op, Role, StridedView, Tensor
from hasten.workload.index import AffineIndex
from hasten.workload.tracing import trace_cascade

Terms = tuple[tuple[str, int], ...]
# Functions that a circuit has few units of.
_LARGE = ("exp", "log", "sqrt", "tanh", "erf", "pow", "div")


@dataclass(frozen=True)
class ArrayUse:
    """Reading or writing an array.

    Args:
        array: its name.
        subscripts: one for each of its dimensions.
        outside: what is read where a subscript leaves the array (the padding of a window); None where none does.
    """

    array: str
    subscripts: tuple[AffineIndex, ...]
    outside: float | None = None

    @property
    def ranks(self) -> frozenset[str]:
        return frozenset(rank for s in self.subscripts for rank, _ in s.terms)


@dataclass(frozen=True)
class LoopArray:
    """An array of a program: shape outermost first, row by row in memory."""

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class LoopStage:
    """A nest of loops that makes one array, whole, from others: ``out = finish(fold(value))``.

    Args:
        name: unique in its program, a C identifier.
        loops: (rank, size); those that index what is written first, then those that are folded away.
        reads: what ``value`` and ``finish`` read, by index.
        writes: where the result goes: more than one array where several stages read it.
        value: at a point of the loops, see `hasten.workload.arithmetic`.
        reduce: ``sum``, ``max`` or ``min``; None where nothing is folded.
        finish: of the folded value.
        op: kind of the Einsum that it came from.
        title: module and operator, for people.
    """

    name: str
    loops: tuple[tuple[str, int], ...]
    reads: tuple[ArrayUse, ...]
    writes: tuple[ArrayUse, ...]
    value: Expression
    reduce: str | None = None
    finish: Expression = ACC
    op: Op = Op.ELEMENTWISE
    title: str = ""

    def __hash__(self) -> int:
        return hash((self.name, self.loops))

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.loops)

    @property
    def points(self) -> int:
        return math.prod(n for _, n in self.loops)

    @property
    def reduced(self) -> tuple[str, ...]:
        """Ranks that are folded away."""
        kept = self.writes[0].ranks
        return tuple(r for r, n in self.loops if r not in kept and (n > 1 or self.reduce is not None))

    def used(self, expression: Expression) -> tuple[int, ...]:
        """Indices of the reads in an expression, each once."""
        return tuple(sorted({part[1] for part in walk(expression) if part[0] == "read"}))


@dataclass(frozen=True)
class LoopProgram:
    """Stages in an order in which they may run, and their arrays.

    Args:
        name: for people, a C identifier.
        stages: each makes one array.
        arrays: by name.
        inputs, outputs: names of the arrays that are given and asked for, in order.
        results: how each output is seen as the tensor that the program returns.
    """

    name: str
    stages: tuple[LoopStage, ...]
    arrays: Mapping[str, LoopArray]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    results: tuple[StridedView, ...] = ()

    def __hash__(self) -> int:
        return hash((self.name, self.stages, self.outputs))

    @property
    def weights(self) -> tuple[str, ...]:
        return tuple(n for n, a in self.arrays.items() if a.role in (Role.WEIGHT, Role.STATE))

    @property
    def macs(self) -> int:
        """Points of the stages that multiply and sum."""
        return sum(s.points for s in self.stages if s.op in (Op.MATMUL, Op.CONV))

    def readers(self, array: str) -> list[LoopStage]:
        return [s for s in self.stages if any(u.array == array for u in s.reads)]

    def writer(self, array: str) -> LoopStage | None:
        """The stage that makes an array; None for an input or a weight."""
        return next((s for s in self.stages if any(u.array == array for u in s.writes)), None)


def loop_program(module: nn.Module, *inputs: torch.Tensor, name: str = "") -> LoopProgram:
    """The loops of one forward pass of a module, as a dataflow compiler wants them.

    Element-wise work is done where its input is made, and every array has one reader.

    Args:
        module: in evaluation mode or not: what its forward does is traced.
        inputs: of its forward; only shapes matter, and they are taken as contiguous.
        name: of the program.

    Raises:
        HastenError: the module does what loops cannot say here, in one line.
    """
    given = [t.contiguous() for t in inputs]
    traced = trace_cascade(module, given)
    if traced.cascade.unknown:
        raise HastenError(f"no loops for operators that are not known: {', '.join(traced.cascade.unknown)}")
    sparse = [n for n, p in (*module.named_parameters(), *module.named_buffers()) if not p.is_contiguous()]
    if sparse:
        raise HastenError(f"the weight {sparse[0]} does not lie row by row: call .contiguous() on it")
    program = lower(traced.cascade, name or _identifier(type(module).__name__))
    return split_weights(single_readers(merge_pointwise(program)))


def lower(cascade: Cascade, name: str = "program") -> LoopProgram:
    """One stage an Einsum of a cascade that was traced; those that nobody reads are left out.

    Raises:
        HastenError: an access that was not traced with its layout, or is not a sum of ranks; a tensor that is written
            in several places; an operator without an expression.
    """
    flat: set[str] = set()
    while True:
        lowered = _Lowering(cascade, flat)
        try:
            stages = [lowered.stage(e) for e in cascade.einsums]
            break
        except _Across as error:
            if error.tensor in flat:
                raise HastenError(f"tensor {error.tensor} is read in an order that no loops say here") from None
            flat.add(error.tensor)
    outputs = tuple(dict.fromkeys(a.tensor for a in cascade.results if a.view))
    made = {s.writes[0].array for s in stages}
    if not outputs or not made.issuperset(outputs):
        raise HastenError("the program returns what it was given, or nothing that it made: nothing is to compute")
    needed = set(outputs)
    kept = []
    for stage in reversed(stages):
        if stage.writes[0].array in needed:
            kept.append(stage)
            needed.update(u.array for u in stage.reads)
    arrays = {n: a for n, a in lowered.arrays.items() if n in needed}
    given = tuple(n for n, t in cascade.tensors.items() if t.role is Role.INPUT and n in needed)
    views = {a.tensor: a.view for a in cascade.results if a.view}
    return LoopProgram(name, tuple(reversed(kept)), arrays, given, outputs, tuple(views[n] for n in outputs))


def _identifier(text: str) -> str:
    plain = re.sub(r"\W+", "_", text).strip("_").lower() or "stage"
    return plain if plain[0].isalpha() else f"s{plain}"


class _Across(Exception):
    """A tensor is read across its rows: it must be one dimension."""

    def __init__(self, tensor: str) -> None:
        super().__init__(tensor)
        self.tensor = tensor


def _short(source: str) -> str:
    """An operator's name without what tells its implementations apart."""
    name = source.rpartition("::")[2].strip("_").removeprefix("native_").removesuffix("_with_indices")
    return "attention" if "scaled_dot_product" in name else name


@dataclass
class _Raw:
    """An access before its array's dimensions are known: ranks with strides in memory, or ready dimensions."""

    tensor: str
    terms: list[tuple[str, int]]
    offset: int
    dimensions: list[AffineIndex] | None = None  # of a window, dimension by dimension
    outside: float | None = None
    joined: tuple[str, int, int] | None = None  # the rank along which it is a part of what is joined, from and to


class _Lowering:
    def __init__(self, cascade: Cascade, flat: set[str]) -> None:
        self.cascade = cascade
        self.names: dict[str, int] = {}
        self.arrays: dict[str, LoopArray] = {}
        written = [e.output.tensor for e in cascade.einsums]
        twice = [n for n in dict.fromkeys(written) if written.count(n) > 1]
        if twice:
            raise HastenError(f"tensor {twice[0]} is written in parts: no loops for programs that change tensors")
        views = {e.output.tensor: e.output.view for e in cascade.einsums}
        for einsum in cascade.einsums:
            for access in einsum.inputs:
                # What nobody here makes lies as it is read first.
                views.setdefault(access.tensor, None)
        for n, view in views.items():
            tensor = cascade.tensors[n]
            shape = tensor.shape if view is None else _natural(view, tensor.elements)
            shape = (tensor.elements,) if n in flat else shape
            self.arrays[n] = LoopArray(n, tuple(s for s in shape if s != 1) or (1,), tensor.role)

    def stage(self, einsum: Einsum) -> LoopStage:
        computed = arithmetic(einsum)
        if any(size < 1 for _, size in einsum.ranks):
            raise HastenError(f"{einsum.source} has a rank without elements")
        sizes = dict(einsum.ranks)
        kept = [r for r, _ in einsum.ranks if r in einsum.output.ranks]
        loops = [(r, sizes[r]) for r in (*kept, *einsum.reduced) if sizes[r] > 1] or [("once", 1)]
        accesses = [*einsum.inputs, einsum.output]
        raw = [self._raw(einsum, i, a, sizes) for i, a in enumerate(accesses)]
        uses, loops = self._subscripts(raw, loops)
        asked = ranks_of(computed.value) | ranks_of(computed.finish)
        if any(sizes[r] > 1 and r not in dict(loops) for r in asked):
            raise HastenError(f"{einsum.source} joins or masks across rows: call .contiguous() on what it is given")
        title = f"{einsum.module or 'forward'} {einsum.source.removeprefix('aten::')}"
        base = _identifier(f"{einsum.module.rpartition('.')[2]}_{_short(einsum.source)}_{einsum.map.replace('-', '_')}")
        self.names[base] = self.names.get(base, 0) + 1
        name = base if self.names[base] == 1 else f"{base}_{self.names[base]}"
        reduce = einsum.reduce if einsum.reduced and einsum.reduce in FOLD else None
        return LoopStage(
            name, tuple(loops), tuple(uses[:-1]), (uses[-1],), computed.value, reduce, computed.finish, einsum.op, title
        )

    def _raw(self, einsum: Einsum, at: int, access: Access, sizes: Mapping[str, int]) -> _Raw:
        written = at == len(einsum.inputs)
        windowed = einsum.op is Op.CONV or "_pool" in einsum.source
        if windowed and at == 0:
            return self._window(einsum, access, sizes)
        view = access.view or _contiguous(self.cascade.tensors[access.tensor].shape)
        joined = joins(einsum)[at] if einsum.source == "aten::cat" and not written else None
        if joined is not None:
            sizes = {**sizes, joined[0]: joined[2] - joined[1]}
        terms = _matched(access.ranks, sizes, view)
        if terms is None:
            where = f"{einsum.source} in module {einsum.module or 'forward'!r}"
            raise HastenError(f"{where} reads {access.tensor} otherwise than by a sum of its ranks: no loops say so")
        return _Raw(access.tensor, [(r, s) for r, s in terms if sizes[r] > 1], view.offset, joined=joined)

    def _window(self, einsum: Einsum, access: Access, sizes: Mapping[str, int]) -> _Raw:
        """The input of a convolution or a pooling."""
        view = access.view
        if view is None or einsum.source.startswith("aten::upsample"):
            raise HastenError(f"{einsum.source} was not traced with its layout")
        dims = window_indices(einsum, view, sizes)
        over = [s.bounds(sizes) for s in dims]
        if all(low >= 0 and high < n for (low, high), n in zip(over, view.sizes, strict=True)):
            steps = [(r, f * step) for d, step in zip(dims, view.strides, strict=True) for r, f in d.terms]
            offset = view.offset + sum(d.offset * step for d, step in zip(dims, view.strides, strict=True))
            return _Raw(access.tensor, steps, offset)
        if einsum.reduce == "sum" and dict(einsum.constants).get("ceil_mode"):
            raise HastenError(f"{einsum.source} with ceil_mode divides by another number at the edges: no loops say so")
        shape = tuple(n for n in view.sizes if n > 1)
        lies = view.strides == _contiguous(view.sizes).strides and not view.offset
        narrow = any(n == 1 and span != (0, 0) for span, n in zip(over, view.sizes, strict=True))
        if not lies or narrow or self.arrays[access.tensor].shape != shape:
            raise HastenError(f"{einsum.source} pads a tensor that lies in another order or has one row: pad it before")
        outside = -math.inf if einsum.reduce == "max" else 0.0
        dims = [d for d, n in zip(dims, view.sizes, strict=True) if n > 1]
        return _Raw(access.tensor, [], 0, dims, outside)

    def _subscripts(
        self, raw: list[_Raw], loops: list[tuple[str, int]]
    ) -> tuple[list[ArrayUse], list[tuple[str, int]]]:
        """AffineIndexs of all accesses of a stage, and its loops with ranks split where subscripts need it."""
        for _ in range(32):
            sizes = dict(loops)
            uses: list[ArrayUse] = []
            split: tuple[str, int] | None = None
            for access in raw:
                shape = self.arrays[access.tensor].shape
                found = access.dimensions if access.dimensions is not None else _delinearized(access, shape, sizes)
                if isinstance(found, tuple) and access.joined is not None and found[0] == access.joined[0]:
                    found = None  # the place of what is joined must stay one rank
                if found is None:
                    raise _Across(access.tensor)
                if isinstance(found, tuple):
                    split = found
                    break
                outside = access.outside
                if access.joined is not None:
                    found, outside = [_moved_back(s, *access.joined[:2]) for s in found], 0.0
                    spans = [s.bounds(sizes) for s in found]
                    within = all(low >= 0 and high < n for (low, high), n in zip(spans, shape, strict=True))
                    outside = None if within else outside
                uses.append(ArrayUse(access.tensor, tuple(found), outside))
            if split is None:
                return uses, loops
            rank, inner = split
            high, low = f"{rank}h", f"{rank}l"
            loops = [
                part
                for r, n in loops
                for part in ([(high, n // inner), (low, inner)] if r == rank else [(r, n)])
                if part[1] > 1 or r != rank
            ]
            for access in raw:
                access.terms = _parted(access.terms, rank, inner, dict(loops))
                if access.dimensions is not None:
                    access.dimensions = [
                        AffineIndex(tuple(_parted(s.terms, rank, inner, dict(loops))), s.offset)
                        for s in access.dimensions
                    ]
        raise HastenError("a tensor is read in an order that no few loops say: call .contiguous()")


def window_indices(einsum: Einsum, view: StridedView, sizes: Mapping[str, int]) -> list[AffineIndex]:
    """By what a convolution or a pooling reads each dimension of its input, ranks of size 1 left out.

    Args:
        einsum: as it was traced.
        view: of its input.
        sizes: of its ranks.

    Raises:
        HastenError: an adaptive pooling whose windows are not equal.
    """
    c = dict(einsum.constants)
    taps = [r for r, _ in einsum.ranks if r.startswith("r")]
    spatial = len(taps)

    def of_each(name: str, default: int) -> list[int]:
        value = c.get(name)
        listed = list(value) if isinstance(value, tuple) else [default if value is None else value]
        return [int(v) for v in (listed * spatial if len(listed) == 1 else listed)] or [default] * spatial

    padding, dilation = of_each("padding", 0), of_each("dilation", 1)
    if einsum.op is Op.CONV:
        strides = of_each("stride", 1)
        places = [f"o{i}" for i in range(spatial)]
        lead = [[("n", 1)], [("g", sizes["c"]), ("c", 1)]]
    else:
        kernel = [sizes[t] for t in taps]
        if "adaptive" in einsum.source:
            taps = taps[::-1]  # named from the last dimension on
            kernel = kernel[::-1]
            out = [n for r, n in einsum.ranks if r.startswith("d")][-spatial:]
            if any(k * o != n for k, o, n in zip(kernel, out, view.sizes[-spatial:], strict=True)):
                raise HastenError("an adaptive pooling whose windows are not equal has no loops")
            strides = kernel
        else:
            # Without a stride a window begins where the last one ended.
            strides = of_each("stride", 0)
            strides = [s or k for s, k in zip(strides, kernel, strict=True)]
        names = [r for r, _ in einsum.ranks if r.startswith("d")]
        places, lead = names[-spatial:], [[(r, 1)] for r in names[:-spatial]]
    dims = [AffineIndex(tuple((r, f) for r, f in d if sizes[r] > 1)) for d in lead]
    for place, tap, stride, pad, apart in zip(places, taps, strides, padding, dilation, strict=True):
        terms = tuple((r, f) for r, f in ((place, stride), (tap, apart)) if sizes[r] > 1)
        dims.append(AffineIndex(terms, -pad))
    return dims


def rank_strides(einsum: Einsum, access: Access, tensor: Tensor) -> list[tuple[str, int]] | None:
    """(rank, stride in memory) of every rank by which an access walks through its tensor; None where none says so."""
    return _matched(access.ranks, einsum.sizes, access.view or _contiguous(tensor.shape))


def _parted(terms: Iterable[tuple[str, int]], rank: str, inner: int, left: Container[str]) -> list[tuple[str, int]]:
    """Terms with a rank as two, the lower one of size ``inner``; those of ranks that are not left are gone."""
    split = ((rank + "h", inner), (rank + "l", 1))
    parts = [(r, f * n) for name, f in terms for r, n in (split if name == rank else ((name, 1),))]
    return [part for part in parts if part[0] in left]


def _contiguous(shape: Sequence[int]) -> StridedView:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return StridedView(tuple(shape), tuple(reversed(strides)))


def _natural(view: StridedView, elements: int) -> tuple[int, ...]:
    """The shape in which a tensor lies row by row, by the view through which it was written."""
    order = sorted((i for i, n in enumerate(view.sizes) if n > 1), key=lambda i: -view.strides[i])
    shape = tuple(view.sizes[i] for i in order)
    lies = _contiguous(shape).strides == tuple(view.strides[i] for i in order)
    return shape if lies and math.prod(shape) == elements else (elements,)


def _matched(ranks: Sequence[str], sizes: Mapping[str, int], view: StridedView) -> list[tuple[str, int]] | None:
    """(rank, stride in memory) of every rank, by the dimensions of a view in order; None where they do not fit."""
    dims = list(zip(view.sizes, view.strides, strict=True))
    names = list(ranks)
    for keep in (
        lambda n, s: True,
        lambda n, s: s != 0 or n == 1,  # without what is only expanded
        lambda n, s: s != 0 and n != 1,
    ):
        kept = [(n, s) for n, s in dims if keep(n, s)]
        if len(kept) == len(names) and all(n == sizes[r] for (n, _), r in zip(kept, names, strict=True)):
            return [(r, s) for (_, s), r in zip(kept, names, strict=True)]
    names = [r for r in names if sizes[r] != 1]
    kept = [(n, s) for n, s in dims if s != 0 and n != 1]
    found: list[tuple[str, int]] = []
    while names or kept:
        if not names or not kept:
            return None
        group, own = [names.pop(0)], [kept.pop(0)]
        while (left := math.prod(sizes[r] for r in group)) != (right := math.prod(n for n, _ in own)):
            if left < right and names:
                group.append(names.pop(0))
            elif right < left and kept:
                own.append(kept.pop(0))
            else:
                return None
        if any(own[i][1] != own[i + 1][1] * own[i + 1][0] for i in range(len(own) - 1)):
            return None
        step = own[-1][1]
        for r in reversed(group):
            found.append((r, step))
            step *= sizes[r]
    return found


def _delinearized(
    access: _Raw, shape: Sequence[int], sizes: Mapping[str, int]
) -> list[AffineIndex] | tuple[str, int] | None:
    """AffineIndexs of the dimensions of an array; or the rank to split, and the size of its inner part; or neither."""
    steps = _contiguous(shape).strides
    if access.joined is not None:
        rank, begin, end = access.joined
        sizes = {**sizes, rank: end - begin}
    offsets, rest = [], access.offset
    for step in steps:
        offsets.append(rest // step)
        rest %= step
    terms: list[list[tuple[str, int]]] = [[] for _ in shape]
    for rank, stride in access.terms:
        left = stride
        for j, step in enumerate(steps):
            if left // step:
                terms[j].append((rank, left // step))
                left %= step
    found = [AffineIndex(tuple(t), o) for t, o in zip(terms, offsets, strict=True)]
    for subscript, size in zip(found, shape, strict=True):
        low, high = subscript.bounds(sizes)
        if low >= 0 and high < size:
            continue
        for rank, factor in sorted(subscript.terms, key=lambda t: -t[1]):
            inner = size // factor
            if size % factor == 0 and 1 < inner < sizes[rank] and sizes[rank] % inner == 0:
                return rank, inner
        return None
    return found


def _moved_back(subscript: AffineIndex, rank: str, begin: int) -> AffineIndex:
    """The subscript where the rank counts from the beginning of what is joined, not of its part."""
    return AffineIndex(subscript.terms, subscript.offset - begin * subscript.factor(rank))


def merge_pointwise(program: LoopProgram) -> LoopProgram:
    """Element-wise stages done where their input is made, so that no array lies between.

    That is where the input has no other reader, and is read just as it was written. What takes a large unit is not done
    where sums are made: of its copies each would work once in many rounds.
    """
    stages = list(program.stages)
    arrays = dict(program.arrays)
    changed = True
    while changed:
        changed = False
        for later in stages:
            merged = next((m for u in later.reads if (m := _merged(program, stages, later, u))), None)
            if merged is not None:
                first, gone, joined = merged
                # Where the later one stood: everything that it reads is made by then.
                stages[stages.index(later)] = joined
                stages.remove(first)
                del arrays[gone]
                changed = True
                break
    return replace(program, stages=tuple(stages), arrays=arrays)


def _merged(
    program: LoopProgram, stages: Sequence[LoopStage], later: LoopStage, use: ArrayUse
) -> tuple[LoopStage, str, LoopStage] | None:
    """(the earlier stage, the array that lay between, both in one) where ``later`` goes into what makes ``use``."""
    name = use.array
    if any(part[0] in _LARGE for part in walk(later.value)) and any(
        s.reduce and s.writes[0].array == name for s in stages
    ):
        return None
    if later.reduce is not None or later.op not in (Op.ELEMENTWISE, Op.COPY) or name in program.outputs:
        return None
    readers = [s for s in stages if any(u.array == name for u in s.reads)]
    first = next((s for s in stages if s.writes[0].array == name), None)
    if first is None or len(readers) != 1 or len(first.writes) != 1:
        return None
    mine, theirs = [u for u in later.reads if u.array == name], first.writes[0]
    renamed = _renaming(mine[0], theirs, later.sizes, first.sizes)
    if renamed is None or any(m != mine[0] for m in mine):
        return None

    def moved(u: ArrayUse) -> ArrayUse:
        subscripts = (AffineIndex(tuple((renamed[r], f) for r, f in s.terms), s.offset) for s in u.subscripts)
        return ArrayUse(u.array, tuple(subscripts), u.outside)

    places = {i: (ACC if u.array == name else None) for i, u in enumerate(later.reads)}
    others = [i for i, at in places.items() if at is None]
    base = len(first.reads)

    def change(part: Expression) -> Expression | None:
        if part[0] == "read":
            return inner if places[part[1]] is ACC else read(base + others.index(part[1]))
        if part[0] == "upto":
            return ("upto", renamed[part[1]], renamed[part[2]], substitute(part[3], change))
        if part[0] == "below":
            return ("below", renamed[part[1]], part[2], *(substitute(p, change) for p in part[3:]))
        return None

    # `later` folds nothing: its value, then its finish, which is of nothing but the value.
    def whole(stage: LoopStage) -> Expression:
        return substitute(stage.finish, lambda p: stage.value if p == ACC else None)

    inner: Expression = first.finish if first.reduce is not None else whole(first)
    together = substitute(whole(later), change)
    value, finish = (first.value, together) if first.reduce is not None else (together, ACC)
    reads = (*first.reads, *(moved(later.reads[i]) for i in others))
    joined = replace(
        first, reads=reads, writes=tuple(moved(w) for w in later.writes), value=value, finish=finish,
        title=f"{first.title}, {later.title}",
    )  # fmt: skip
    return first, name, joined


def _renaming(
    mine: ArrayUse, theirs: ArrayUse, own: Mapping[str, int], other: Mapping[str, int]
) -> dict[str, str] | None:
    """Reader's rank -> writer's, where an array is read just as it is written and by all of the reader's ranks."""
    found: dict[str, str] = {}
    for a, b in zip(mine.subscripts, theirs.subscripts, strict=True):
        if a.offset != b.offset or len(a.terms) != len(b.terms) or mine.outside is not None:
            return None
        for (r, f), (s, g) in zip(sorted(a.terms, key=lambda t: -t[1]), sorted(b.terms, key=lambda t: -t[1]),
                                  strict=True):  # fmt: skip
            if f != g or own[r] != other[s] or found.get(r, s) != s:
                return None
            found[r] = s
    if any(r not in found and n > 1 for r, n in own.items()) or len(set(found.values())) < len(found):
        return None
    # A loop of one round stands for any other.
    return {**dict.fromkeys(own, next(iter(other), "")), **found}


def single_readers(program: LoopProgram) -> LoopProgram:
    """A copy of an array for each stage that reads it, written by whoever makes it; inputs are copied in first."""
    arrays = dict(program.arrays)
    stages = list(program.stages)
    for name, array in program.arrays.items():
        readers = [s for s in stages if any(u.array == name for u in s.reads)]
        copies = [name] if name in program.outputs else []
        wanted = len(readers) + len(copies)
        if wanted < 2:
            continue
        fresh = [f"{name}_{i}" for i in range(len(readers))]
        role = array.role if array.role in (Role.WEIGHT, Role.STATE) else Role.INTERMEDIATE
        for copy, reader in zip(fresh, readers, strict=True):
            arrays[copy] = LoopArray(copy, array.shape, role)
            at = stages.index(reader)
            stages[at] = replace(reader, reads=tuple(_renamed(u, name, copy) for u in reader.reads))
        maker = next((s for s in stages if any(u.array == name for u in s.writes)), None)
        if maker is not None:
            use = next(u for u in maker.writes if u.array == name)
            writes = [u for u in maker.writes if u.array != name]
            writes += [replace(use, array=n) for n in (*copies, *fresh)]
            stages[stages.index(maker)] = replace(maker, writes=tuple(writes))
            if not copies:
                del arrays[name]
        elif array.role is Role.INPUT:
            ranks = [(f"i{j}", n) for j, n in enumerate(array.shape)]
            subscripts = tuple(AffineIndex(((r, 1),) if n > 1 else ()) for r, n in ranks)
            use = ArrayUse(name, subscripts)
            load = LoopStage(
                _identifier(f"load_{name}"), tuple(ranks), (use,), tuple(replace(use, array=n) for n in fresh),
                read(0), op=Op.COPY, title=f"load {name}",
            )  # fmt: skip
            stages.insert(0, load)
        else:  # a weight that is used twice is held twice
            del arrays[name]
    return replace(program, stages=tuple(stages), arrays=arrays)


def split_weights(program: LoopProgram) -> LoopProgram:
    """Dimensions of weights as their ranks are, where one dimension is read by several.

    What lies in memory stays as it was: a dimension of 400 becomes three of 16, 5 and 5.
    """
    arrays, stages = dict(program.arrays), list(program.stages)
    for at, stage in enumerate(stages):
        uses = list(stage.reads)
        for i, use in enumerate(uses):
            array = arrays[use.array]
            if array.role is not Role.WEIGHT or sum(u.array == use.array for u in uses) != 1:
                continue
            shape: list[int] = []
            subscripts: list[AffineIndex] = []
            for s, size in zip(use.subscripts, array.shape, strict=True):
                terms = sorted(s.terms, key=lambda t: -t[1])
                sizes = [stage.sizes[r] for r, _ in terms]
                radix = [math.prod(sizes[j + 1 :]) for j in range(len(sizes))]
                if len(terms) > 1 and not s.offset and radix == [f for _, f in terms] and math.prod(sizes) == size:
                    shape += sizes
                    subscripts += [AffineIndex(((r, 1),)) for r, _ in terms]
                else:
                    shape.append(size)
                    subscripts.append(s)
            arrays[use.array] = replace(array, shape=tuple(shape))
            uses[i] = replace(use, subscripts=tuple(subscripts))
        stages[at] = replace(stage, reads=tuple(uses))
    return replace(program, stages=tuple(stages), arrays=arrays)


def _renamed(use: ArrayUse, old: str, new: str) -> ArrayUse:
    return replace(use, array=new) if use.array == old else use


def weight_source(array: str, known: Sequence[str]) -> str:
    """The parameter that a weight's array holds: itself, or what it is a copy of."""
    return array if array in known else array.rpartition("_")[0]


__all__ = [
    "ArrayUse", "LoopArray", "LoopProgram", "LoopStage", "loop_program", "lower",
    "merge_pointwise", "single_readers", "split_weights", "weight_source",
]  # fmt: skip
