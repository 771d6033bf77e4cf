"""Runs a cascade in torch: operators of one's own, indices with offsets, iterative ranks, tile by tile and counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor as TorchTensor

from hasten.errors import HastenError
from hasten.workload.einsum import Access, Cascade, Einsum, Role
from hasten.workload.index import AffineIndex
from hasten.workload.passes import passes
from hasten.workload.recurrence import Unit, lag, units


def _sub_exp(x: TorchTensor, y: TorchTensor) -> TorchTensor:
    # Where everything so far is masked, both are -inf: nothing is seen, and no NaN arises.
    return torch.exp(torch.where(torch.isneginf(x), x, x - y))


# 2^r for r in [-1/2, 1/2]: the expansion of exp(r ln 2), its last two terms moved to halve the error at the ends.
_EXP2 = (1.0, 0.693147, 0.2402265, 0.0558, 0.0097)


def exp_macs(x: TorchTensor) -> TorchTensor:
    """exp(x) in six multiply-accumulates, as an element without a unit for it computes it (FuseMax, section VI).

    One brings x to powers of two, four are a polynomial on what is left of the whole number (which goes to the
    exponent), one scales. Relative error below 1e-4; -inf gives 0.
    """
    power = x * math.log2(math.e)
    whole = torch.round(power).clamp(min=-1000.0)
    rest = (power - whole).clamp(min=-0.5)
    value = torch.full_like(rest, _EXP2[-1])
    for c in reversed(_EXP2[:-1]):
        value = value * rest + c
    return torch.where(torch.isneginf(x), torch.zeros_like(x), torch.ldexp(value, whole.to(torch.int32)))


MAPS: dict[str, Callable[..., TorchTensor]] = {
    "identity": lambda x: x,
    "mul": lambda x, *others: math.prod(others, start=x),
    "times": torch.mul,
    "add": lambda x, *others: sum(others, start=x),
    "sub": torch.sub,
    "div": torch.div,
    "max": torch.maximum,
    "min": torch.minimum,
    "exp": torch.exp,
    "square": torch.square,
    "copy": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
    "sub-exp": _sub_exp,
    "sub-exp-macs": lambda x, y: exp_macs(torch.where(torch.isneginf(x), x, x - y)),
}
"""Map operators that `execute` knows, beside numbers; add your own."""

REDUCTIONS: dict[str, Callable[[TorchTensor, tuple[int, ...]], TorchTensor]] = {
    "sum": torch.sum,
    "max": torch.amax,
    "min": torch.amin,
}
"""Reduce operators that `execute` knows; add your own."""


@dataclass
class Execution:
    """What running a cascade gave.

    Args:
        outputs: tensors of role OUTPUT by name.
        loads: tensor with the rank -> elements loaded: once for each pass in which it is read.
        operations: map operator -> points it was applied at.
        peak: most elements of tensors with the rank alive at once, over the run.
    """

    outputs: dict[str, TorchTensor]
    loads: dict[str, int]
    operations: dict[str, int]
    peak: int = 0


def execute(cascade: Cascade, inputs: Mapping[str, TorchTensor], rank: str | tuple[str, ...] = "") -> Execution:
    """Runs a cascade in torch, with user-defined map and reduce operators and iterative ranks.

    With a ``rank`` it runs the way a machine with little memory does: pass after pass as
    `hasten.workload.passes.passes` numbers them, within a pass tile after tile of the outermost rank, and
    counts what each pass loads and how much is alive. Without one it runs Einsum after Einsum. What no Einsum
    writes is NaN.

    Args:
        cascade: its ranks have one name throughout.
        inputs: a tensor for each of role INPUT and each other that no Einsum writes, of the shape that the cascade
            gives.
        rank: the rank to run tile by tile, or the ranks it was split into, outermost first.

    Raises:
        HastenError: an input is missing or of another shape, or an operator has no meaning here.
    """
    written = {e.output.tensor for e in cascade.einsums}
    values: dict[str, TorchTensor] = {}
    for name, tensor in cascade.tensors.items():
        if name in inputs or tensor.role is Role.INPUT or name not in written:
            given = inputs.get(name)
            if given is None or tuple(given.shape) != tensor.shape:
                raise HastenError(f"input {name} is missing or of another shape: give one of {tensor.shape}")
            values[name] = given.clone() if name in written else given
    dtype = next((v.dtype for v in values.values() if v.is_floating_point()), torch.get_default_dtype())
    values |= {
        name: torch.full(tensor.shape, math.nan, dtype=dtype)
        for name, tensor in cascade.tensors.items()
        if name not in values
    }
    ranks = (rank,) if isinstance(rank, str) else tuple(rank)
    run = _Tiles(cascade, values, ranks).run() if rank else _plain(cascade, values)
    run.outputs = {n: values[n] for n, t in cascade.tensors.items() if t.role is Role.OUTPUT}
    return run


def _plain(cascade: Cascade, values: dict[str, TorchTensor]) -> Execution:
    run = Execution({}, {}, {})
    for einsum in cascade.einsums:
        for access in einsum.inputs:
            touched = einsum.touched(access, cascade.tensors[access.tensor].shape)
            run.loads[access.tensor] = run.loads.get(access.tensor, 0) + touched
        run.operations[einsum.map] = run.operations.get(einsum.map, 0) + einsum.points
    for unit in units(cascade):
        _run(cascade, unit, values, {})
    return run


def _run(cascade: Cascade, unit: Unit, values: dict[str, TorchTensor], at: Mapping[str, int]) -> None:
    """Runs a unit with some ranks at one place; one that goes on in step, step after step."""
    own = [cascade.einsums[i] for i in unit.einsums]
    if not unit.rank or unit.rank in at:
        for einsum in own:
            write_at(einsum, values, at, compute_at(einsum, values, at))
        return
    for step in range(own[0].sizes[unit.rank]):
        for einsum in own:
            here = {**at, unit.rank: step}
            write_at(einsum, values, here, compute_at(einsum, values, here))


class _Tiles:
    """Runs the Einsums of each pass tile by tile along the rank that goes over the data."""

    def __init__(self, cascade: Cascade, values: dict[str, TorchTensor], ranks: tuple[str, ...]) -> None:
        self.cascade = cascade
        self.values = values
        self.report = passes(cascade, ranks)
        self.along = self.report.along
        self.units = units(cascade)
        self.result = Execution({}, {}, {})
        self.held: dict[str, int] = {}  # tensors of passes before -> elements
        for unit in self.units:
            kinds = {(bool(self.along[i]), self.report.einsums[i]) for i in unit.einsums}
            if len(kinds) > 1 or (unit.rank and any(self.along[i] in cascade.einsums[i].reduced for i in unit.einsums)):
                names = ", ".join(cascade.einsums[i].output.tensor for i in unit.einsums)
                raise HastenError(f"{names} begin passes at every step of {unit.rank}: run without a rank")

    def run(self) -> Execution:
        writers: dict[str, set[int]] = {}
        for number, unit in enumerate(self.units):
            for i in unit.einsums:
                writers.setdefault(self.cascade.einsums[i].output.tensor, set()).add(number)
        pending = dict(enumerate(self.units))

        def free(number: int, unit: Unit) -> bool:
            """Without the rank, and all that it reads is there."""
            reads = [(self.cascade.einsums[i], a) for i in unit.einsums for a in self.cascade.einsums[i].inputs]
            return not self.along[unit.einsums[0]] and not any(
                w < number and w in pending and _meet(self.cascade.einsums[i], reader, access)
                for reader, access in reads
                for w in writers.get(access.tensor, ())
                for i in self.units[w].einsums
            )

        for number in range(1, max(self.report.einsums, default=0) + 1):
            # Free of the rank: as soon as its inputs are there. With the rank: in its pass.
            self._free(pending, free)
            mine = [
                u for u in pending.values() if self.along[u.einsums[0]] and self.report.einsums[u.einsums[0]] == number
            ]
            if mine:
                self._pass(number, mine)
                pending = {n: u for n, u in pending.items() if u not in mine}
        self._free(pending, free)
        return self.result

    def _free(self, pending: dict[int, Unit], free: Callable[[int, Unit], bool]) -> None:
        for number, unit in list(pending.items()):
            if free(number, unit):
                for i in unit.einsums:
                    self._count(self.cascade.einsums[i], self.cascade.einsums[i].points)
                _run(self.cascade, unit, self.values, {})
                del pending[number]

    def _count(self, einsum: Einsum, points: int) -> None:
        self.result.operations[einsum.map] = self.result.operations.get(einsum.map, 0) + points

    def _pass(self, number: int, mine: list[Unit]) -> None:
        members = [i for unit in mine for i in unit.einsums]
        # What goes on along this very rank does so from step to step of the pass.
        parts = [
            [Unit((i,)) for i in unit.einsums] if unit.rank == self.along[unit.einsums[0]] else [unit] for unit in mine
        ]
        delays = self.report.delays
        for i in members:  # what is read in the pass in which it is made must be made in time
            for access in self.cascade.einsums[i].inputs:
                for w in members:
                    if self.cascade.einsums[w].output.tensor == access.tensor and self.along[i] in access.ranks:
                        lag(self.cascade.einsums[w], self.cascade.einsums[i], access, self.along[i], self.along[w])
        steps = max(delays[i] + self._size(i) for i in members)
        self._alive(number, members, steps)
        started: set[int] = set()
        for now in range(steps):
            for unit in chain.from_iterable(parts):
                at = now - delays[unit.einsums[0]]
                if not 0 <= at < self._size(unit.einsums[0]):
                    continue
                for i in unit.einsums:
                    self._count(self.cascade.einsums[i], self.cascade.einsums[i].points // self._size(i))
                index = unit.einsums[0]
                einsum, own = self.cascade.einsums[index], self.along[index]
                if own not in einsum.reduced:
                    _run(self.cascade, unit, self.values, {self.along[i]: at for i in unit.einsums})
                    continue
                made = compute_at(einsum, self.values, {own: at})
                if index in started:
                    made = merge(einsum, read_at(einsum, einsum.output, self.values, {}), made)
                started.add(index)
                write_at(einsum, self.values, {}, made)

    def _size(self, index: int) -> int:
        return self.cascade.einsums[index].sizes[self.along[index]]

    def _alive(self, number: int, members: list[int], steps: int) -> None:
        """Counts what a pass loads, and the most elements that are alive at once in it."""
        made: dict[tuple[str, int], int] = {}  # tensor, place along the rank -> step
        first: dict[tuple[str, int], int] = {}
        last: dict[tuple[str, int], int] = {}
        of_place: dict[str, int] = {}
        dimension: dict[str, int] = {}
        for i in members:
            einsum = self.cascade.einsums[i]
            for access in (*einsum.inputs, einsum.output):
                found = self._places(i, access)
                if found is None:
                    continue
                d, offsets, factor, length = found
                dimension[access.tensor] = d
                tensor = self.cascade.tensors[access.tensor]
                of_place[access.tensor] = tensor.elements // length
                for at in range(self._size(i)):
                    now = at + self.report.delays[i]
                    for offset in offsets:
                        place = (access.tensor, factor * at + offset)
                        if not 0 <= place[1] < length:
                            continue
                        if access is einsum.output:
                            made[place] = min(now, made.get(place, now))
                        else:
                            first[place] = min(now, first.get(place, now))
                        last[place] = max(now, last.get(place, now))
        # What a later pass reads must be held, or spilled and loaded again.
        later = {
            (a.tensor, at)
            for i, e in enumerate(self.cascade.einsums)
            if self.report.einsums[i] > number
            for a in e.inputs
            if a.tensor in dimension
            for at in _values(e, a.indices[dimension[a.tensor]])
        }
        change = [0] * (steps + 1)
        kept: dict[str, int] = {}
        written = {e.output.tensor for e in self.cascade.einsums}
        ranked = {self.cascade.einsums[i].output.tensor for i, own in enumerate(self.along) if own}
        for (name, at), end in last.items():
            size = of_place[name]
            if (name, at) in made:
                begin = made[name, at]
                if (name, at) in later or self.cascade.tensors[name].role is Role.OUTPUT:
                    end = steps - 1
                    kept[name] = kept.get(name, 0) + size
            else:
                begin = first[name, at]
                if name not in written or name in self.held:
                    self.result.loads[name] = self.result.loads.get(name, 0) + size
                elif name in ranked:
                    begin = 0  # what a running value begins with
            change[begin] += size
            change[end + 1] -= size
        alive = sum(self.held.values())
        for step in range(steps):
            alive += change[step]
            self.result.peak = max(self.result.peak, alive)
        self.held |= {n: k for n, k in kept.items() if self.cascade.tensors[n].role is Role.INTERMEDIATE}

    def _places(self, index: int, access: Access) -> tuple[int, set[int], int, int] | None:
        """(number, offsets, factor, length) of the dimension that an Einsum's rank goes over, if any."""
        einsum, own = self.cascade.einsums[index], self.along[index]
        for d, part in enumerate(access.indices):
            if factor := part.factor(own):
                return d, _values(einsum, part, own), factor, self.cascade.tensors[access.tensor].shape[d]
        return None


def _values(einsum: Einsum, index: AffineIndex, without: str = "") -> set[int]:
    """All values of an index, ``without`` what one rank adds."""
    found = {index.offset}
    for rank, factor in index.terms:
        if rank != without:
            found = {v + factor * i for v in found for i in range(einsum.sizes[rank])}
    return found


def _meet(writer: Einsum, reader: Einsum, access: Access) -> bool:
    """Whether an access may read what a writer of its tensor writes."""
    if writer.output.tensor != access.tensor:
        return False
    pairs = [
        (made.bounds(writer.sizes), read.bounds(reader.sizes))
        for made, read in zip(writer.output.indices, access.indices, strict=False)
    ]
    return all(made[0] <= read[1] and read[0] <= made[1] for made, read in pairs)


def merge(einsum: Einsum, before: TorchTensor, now: TorchTensor) -> TorchTensor:
    """What an Einsum folded so far, and what it gives for the next tile, folded.

    Raises:
        HastenError: its reduce operator cannot be folded so.
    """
    if einsum.reduce == "sum":
        return before + now
    if einsum.reduce in ("max", "min"):
        return torch.maximum(before, now) if einsum.reduce == "max" else torch.minimum(before, now)
    raise HastenError(f"reduce operator {einsum.reduce!r} cannot be folded tile by tile: run without a rank")


def compute_at(einsum: Einsum, values: Mapping[str, TorchTensor], at: Mapping[str, int]) -> TorchTensor:
    """What an Einsum gives at one place of some ranks: a dimension for each rank of its output, 1 long for those."""
    out = einsum.output.ranks
    operands = [read_at(einsum, a, values, at) for a in einsum.inputs]
    if einsum.map == "mul" and einsum.reduce == "sum":
        letters = {name: chr(ord("a") + i) for i, (name, _) in enumerate(einsum.ranks)}
        terms = ",".join("".join(letters[r] for r in a.ranks) for a in einsum.inputs)
        return torch.einsum(f"{terms}->{''.join(letters[r] for r in out)}", *operands)
    order = [*out, *(n for n, _ in einsum.ranks if n not in out)]
    full = [1 if n in at else einsum.sizes[n] for n in order]
    if operands:
        if einsum.map not in MAPS:
            raise HastenError(f"no meaning is known for the map operator {einsum.map!r}: add it to execution.MAPS")
        found = MAPS[einsum.map](*(_aligned(o, a.ranks, order) for o, a in zip(operands, einsum.inputs, strict=True)))
    else:
        try:
            found = torch.tensor(float(einsum.map), dtype=values[einsum.output.tensor].dtype)
        except ValueError:
            raise HastenError(f"{einsum.output.tensor} is made of nothing, by {einsum.map!r}: give a number") from None
    found = found.expand(full)
    dims = tuple(range(len(out), len(order)))
    if not dims:
        return found
    if einsum.reduce not in REDUCTIONS:
        raise HastenError(
            f"no meaning is known for the reduce operator {einsum.reduce!r}: add it to execution.REDUCTIONS"
        )
    return REDUCTIONS[einsum.reduce](found, dims)


def _where(einsum: Einsum, access: Access, at: Mapping[str, int]) -> list[TorchTensor]:
    """The numbers that each dimension is indexed by, over the ranks of the access."""
    found = []
    for index in access.indices:
        total = torch.full([1] * len(access.ranks), index.offset)
        for rank, factor in index.terms:
            places = torch.tensor([at[rank]]) if rank in at else torch.arange(einsum.sizes[rank])
            shape = [-1 if r == rank else 1 for r in access.ranks]
            total = total + factor * places.reshape(shape)
        found.append(total)
    return found


def read_at(einsum: Einsum, access: Access, values: Mapping[str, TorchTensor], at: Mapping[str, int]) -> TorchTensor:
    """What an access reads: a dimension for each of its ranks."""
    tensor = values[access.tensor]
    if access.index is None:
        for d, rank in enumerate(access.ranks):
            if rank in at:
                tensor = tensor.narrow(d, at[rank], 1)
            elif tensor.shape[d] > einsum.sizes[rank]:
                tensor = tensor.narrow(d, 0, einsum.sizes[rank])
        return tensor
    where = _where(einsum, access, at)
    shape = [1 if r in at else einsum.sizes[r] for r in access.ranks]
    if access.outside is None:
        return tensor[tuple(where)].expand(shape) if where else tensor
    inside = torch.ones([1] * len(access.ranks), dtype=torch.bool)
    for places, size in zip(where, tensor.shape, strict=True):
        inside = inside & (places >= 0) & (places < size)
    held = [p.clamp(0, max(0, size - 1)) for p, size in zip(where, tensor.shape, strict=True)]
    return torch.where(inside, tensor[tuple(held)], access.outside).expand(shape)


def write_at(einsum: Einsum, values: dict[str, TorchTensor], at: Mapping[str, int], made: TorchTensor) -> None:
    """Puts what `compute_at` gave where it belongs."""
    access = einsum.output
    tensor = values[access.tensor]
    if not tensor.shape:
        tensor.copy_(made.reshape(()))
    elif access.index is None:
        read_at(einsum, access, values, at).copy_(made)
    else:
        where = torch.broadcast_tensors(*_where(einsum, access, at))
        tensor[where] = made.expand(where[0].shape).to(tensor.dtype)


def _aligned(tensor: TorchTensor, ranks: tuple[str, ...], order: list[str]) -> TorchTensor:
    """``tensor`` with its dimensions in ``order``, size 1 where it lacks a rank."""
    present = [r for r in order if r in ranks]
    moved = tensor.permute([ranks.index(r) for r in present])
    for i, r in enumerate(order):
        if r not in ranks:
            moved = moved.unsqueeze(i)
    return moved
