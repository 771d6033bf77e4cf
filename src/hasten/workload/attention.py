"""Attention as cascades of Einsums, in 3, 2 and 1 passes over the keys, and an interpreter that runs them.

The cascades are those of FuseMax (arXiv 2406.10491, section V). Ranks: p queries, m keys (m1 tiles of m0),
e channels of queries and keys, f channels of values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor as TorchTensor

from hasten.errors import HastenError
from hasten.workload.einsum import Access, Cascade, Einsum, Op, Role, Tensor


def attention(kind: str, *, p: int, m: int, e: int, f: int, m0: int = 0, dtype: str = "fp32") -> Cascade:
    """A cascade that computes softmax(Q K^T) V for Q (p, e), K (m, e), V (m, f).

    Args:
        kind: ``three-pass`` (stable softmax), ``two-pass`` (the division deferred), ``local-max`` (two
            passes, a maximum for each tile of keys), ``one-pass`` (running maximum and sum, the cascade of
            FlashAttention-2).
        p, m, e, f: sizes.
        m0: keys a tile, for the last two. Keys and values are padded to whole tiles; the cascade masks the
            padding itself.
        dtype: of every tensor.

    Raises:
        HastenError: an unknown kind, or a size below 1.
    """
    builders = {"three-pass": _three, "two-pass": _two, "local-max": _local, "one-pass": _one}
    if kind not in builders:
        raise HastenError(f"unknown attention cascade {kind!r}: choose one of {', '.join(builders)}")
    m0 = m0 or m
    if min(p, m, e, f, m0) < 1:
        raise HastenError("an attention cascade needs sizes of at least 1: check p, m, e, f and m0")
    tiles = -(-m // m0)
    write = _Writer({"p": p, "m": m, "m1": tiles, "m0": m0, "e": e, "f": f}, dtype)
    write.given("Q", "p e")
    builders[kind](write)
    return Cascade(tuple(write.einsums), write.tensors)


def tiled(tensor: TorchTensor, m0: int) -> TorchTensor:
    """Splits the first rank (m) into (m1, m0), padded with zeros to whole tiles."""
    m = tensor.shape[0]
    padded = torch.cat((tensor, tensor.new_zeros(-m % m0, *tensor.shape[1:])))
    return padded.reshape(-1, m0, *tensor.shape[1:])


def padding(m: int, m0: int, dtype: torch.dtype = torch.float32) -> TorchTensor:
    """The mask (m1, m0) that a tiled cascade adds to its scores: 0 for a key, -inf for padding."""
    places = torch.arange(-(-m // m0) * m0)
    mask = torch.zeros(places.shape, dtype=dtype).masked_fill(places >= m, -math.inf)
    return mask.reshape(-1, m0)


@dataclass
class _Writer:
    sizes: dict[str, int]
    dtype: str
    einsums: list[Einsum] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def _tensor(self, name: str, ranks: tuple[str, ...], role: Role) -> None:
        if name not in self.tensors:
            self.tensors[name] = Tensor(name, tuple(self.sizes[r] for r in ranks), self.dtype, role)

    def given(self, name: str, ranks: str) -> None:
        self._tensor(name, tuple(ranks.split()), Role.INPUT)

    def __call__(
        self,
        output: str,
        *inputs: str,
        map: str = "mul",
        reduce: str | None = None,
        iterative: str = "",
        role: Role = Role.INTERMEDIATE,
    ) -> None:
        """Writes ``output`` from ``inputs``, each as ``Name:rank rank``."""
        out, *ins = (self._access(text) for text in (output, *inputs))
        self._tensor(out.tensor, out.ranks, role)
        names = dict.fromkeys(r for a in (out, *ins) for r in a.ranks)
        if map == "mul" and reduce == "sum":
            op = Op.MATMUL
        elif iterative:
            op = Op.SCAN
        else:
            op = Op.REDUCE if reduce else Op.ELEMENTWISE
        self.einsums.append(
            Einsum(
                name=f"e{len(self.einsums)}",
                op=op,
                ranks=tuple((n, self.sizes[n]) for n in names),
                inputs=tuple(ins),
                output=out,
                map=map,
                reduce=reduce,
                iterative=tuple(iterative.split()),
            )
        )

    @staticmethod
    def _access(text: str) -> Access:
        name, _, ranks = text.partition(":")
        return Access(name, tuple(ranks.split()))


def _scores(write: _Writer) -> None:
    write.given("K", "m e")
    write.given("V", "m f")
    write("QK:p m", "Q:p e", "K:m e", reduce="sum")
    write("GM:p", "QK:p m", map="identity", reduce="max")
    write("SN:p m", "QK:p m", "GM:p", map="sub-exp")
    write("SD:p", "SN:p m", map="identity", reduce="sum")


def _three(write: _Writer) -> None:
    _scores(write)
    write("A:p m", "SN:p m", "SD:p", map="div")
    write("AV:p f", "A:p m", "V:m f", reduce="sum", role=Role.OUTPUT)


def _two(write: _Writer) -> None:
    _scores(write)
    write("SNV:p f", "SN:p m", "V:m f", reduce="sum")
    write("AV:p f", "SNV:p f", "SD:p", map="div", role=Role.OUTPUT)


def _tiles(write: _Writer) -> None:
    write.given("K", "m1 m0 e")
    write.given("V", "m1 m0 f")
    write.given("PAD", "m1 m0")
    write("BQK:p m1 m0", "Q:p e", "K:m1 m0 e", reduce="sum")
    write("QK:p m1 m0", "BQK:p m1 m0", "PAD:m1 m0", map="add")
    write("LM:p m1", "QK:p m1 m0", map="identity", reduce="max")


def _local(write: _Writer) -> None:
    _tiles(write)
    write("SLN:p m1 m0", "QK:p m1 m0", "LM:p m1", map="sub-exp")
    write("SLD:p m1", "SLN:p m1 m0", map="identity", reduce="sum")
    write("GM:p", "LM:p m1", map="identity", reduce="max")
    write("PM:p m1", "LM:p m1", "GM:p", map="sub-exp")
    write("SD:p", "SLD:p m1", "PM:p m1", map="times", reduce="sum")
    write("SN:p m1 m0", "SLN:p m1 m0", "PM:p m1", map="times")
    write("SNV:p f", "SN:p m1 m0", "V:m1 m0 f", reduce="sum")
    write("AV:p f", "SNV:p f", "SD:p", map="div", role=Role.OUTPUT)


def _one(write: _Writer) -> None:
    _tiles(write)
    write("RM:p m1", "LM:p m1", map="running-max", iterative="m1")
    write("SLN:p m1 m0", "QK:p m1 m0", "RM:p m1", map="sub-exp")
    write("SLD:p m1", "SLN:p m1 m0", map="identity", reduce="sum")
    write("SLNV:p m1 f", "SLN:p m1 m0", "V:m1 m0 f", reduce="sum")
    write("PRM:p m1", "RM:p m1", map="previous-sub-exp", iterative="m1")
    write("RD:p m1", "SLD:p m1", "PRM:p m1", map="decay-add", iterative="m1")
    write("RNV:p m1 f", "SLNV:p m1 f", "PRM:p m1", map="decay-add", iterative="m1")
    # The last running values: what the iterative rank leaves.
    write("FD:p", "RD:p m1", map="identity", reduce="last", iterative="m1")
    write("FNV:p f", "RNV:p m1 f", map="identity", reduce="last", iterative="m1")
    write("AV:p f", "FNV:p f", "FD:p", map="div", role=Role.OUTPUT)


# -- running a cascade -------------------------------------------------------------------------------


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
    "mul": torch.mul,
    "times": torch.mul,
    "add": torch.add,
    "sub": torch.sub,
    "div": torch.div,
    "exp": torch.exp,
    "square": torch.square,
    "sub-exp": _sub_exp,
    "sub-exp-macs": lambda x, y: exp_macs(torch.where(torch.isneginf(x), x, x - y)),
}
"""Map operators that `execute` knows; add your own."""

REDUCTIONS: dict[str, Callable[[TorchTensor, tuple[int, ...]], TorchTensor]] = {
    "sum": torch.sum,
    "max": torch.amax,
    "min": torch.amin,
    "last": lambda x, dims: x[tuple(-1 if i in dims else slice(None) for i in range(x.dim()))],
}
"""Reduce operators that `execute` knows; add your own."""

_Step = Callable[..., tuple[TorchTensor, TorchTensor]]


def _running_max(carry: TorchTensor, x: TorchTensor) -> tuple[TorchTensor, TorchTensor]:
    largest = torch.maximum(carry, x)
    return largest, largest


def _previous_sub_exp(carry: TorchTensor, x: TorchTensor) -> tuple[TorchTensor, TorchTensor]:
    return x, _sub_exp(carry, x)


def _decay_add(carry: TorchTensor, x: TorchTensor, factor: TorchTensor) -> tuple[TorchTensor, TorchTensor]:
    total = factor * carry + x
    return total, total


STEPS: dict[str, tuple[float, _Step]] = {
    "running-max": (-math.inf, _running_max),
    "previous-sub-exp": (-math.inf, _previous_sub_exp),
    "decay-add": (0.0, _decay_add),
}
"""Operators along an iterative rank: the value before the first step, and (carry, inputs) -> (carry, output)."""


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
    counts what each pass loads and how much is alive. Without one it runs Einsum after Einsum.

    Args:
        cascade: its ranks have one name throughout.
        inputs: a tensor for each of role INPUT, of the shape that the cascade gives.
        rank: the rank to run tile by tile, or the ranks it was split into, outermost first.

    Raises:
        HastenError: an input is missing or of another shape, or an operator has no meaning here.
    """
    values: dict[str, TorchTensor] = {}
    for name, tensor in cascade.tensors.items():
        if tensor.role is Role.INPUT:
            given = inputs.get(name)
            if given is None or tuple(given.shape) != tensor.shape:
                raise HastenError(f"input {name} is missing or of another shape: give one of {tensor.shape}")
            values[name] = given
    ranks = (rank,) if isinstance(rank, str) else tuple(rank)
    run = _Tiles(cascade, values, ranks).run() if rank else _plain(cascade, values)
    run.outputs = {n: values[n] for n, t in cascade.tensors.items() if t.role is Role.OUTPUT}
    return run


def _plain(cascade: Cascade, values: dict[str, TorchTensor]) -> Execution:
    run = Execution({}, {}, {})
    for einsum in cascade.einsums:
        for access in einsum.inputs:
            run.loads[access.tensor] = run.loads.get(access.tensor, 0) + values[access.tensor].numel()
        run.operations[einsum.map] = run.operations.get(einsum.map, 0) + einsum.points
        operands = {a.tensor: values[a.tensor] for a in einsum.inputs}
        values[einsum.output.tensor] = _run_one(einsum, operands, {})
    return run


class _Tiles:
    """Runs the Einsums of each pass tile by tile along the outermost rank."""

    def __init__(self, cascade: Cascade, values: dict[str, TorchTensor], ranks: tuple[str, ...]) -> None:
        from hasten.workload.passes import passes

        self.cascade = cascade
        self.values = values
        self.ranks = ranks
        self.outer = ranks[0]
        self.report = passes(cascade, ranks)
        self.run_ = Execution({}, {}, {})
        self.size = next((e.sizes[self.outer] for e in cascade if self.outer in e.sizes), 1)
        self.axis = {a.tensor: a.ranks for e in cascade for a in (*e.inputs, e.output)}

    def run(self) -> Execution:
        pending = list(enumerate(self.cascade.einsums))
        number = 0
        while pending:
            number += 1
            # Free of the rank: as soon as its inputs are there. With the rank: in its pass.
            pending = self._free(pending)
            mine = [(i, e) for i, e in pending if self.outer in e.sizes and self.report.einsums[i] == number]
            if mine:
                self._pass(number, [e for _, e in mine])
                done = {i for i, _ in mine}
                pending = [(i, e) for i, e in pending if i not in done]
            elif pending and number > self.report.count:
                raise HastenError(f"Einsum {pending[0][1].name} reads a tensor nobody writes: give it as an input")
        return self.run_

    def _free(self, pending: list[tuple[int, Einsum]]) -> list[tuple[int, Einsum]]:
        left = []
        for i, e in pending:
            if self.outer not in e.sizes and all(a.tensor in self.values for a in e.inputs):
                self._count(e, e.points)
                self.values[e.output.tensor] = _run_one(e, self.values, {})
            else:
                left.append((i, e))
        return left

    def _count(self, einsum: Einsum, points: int) -> None:
        self.run_.operations[einsum.map] = self.run_.operations.get(einsum.map, 0) + points

    def _pass(self, number: int, einsums: list[Einsum]) -> None:
        carries: dict[str, TorchTensor] = {}
        folded: dict[str, TorchTensor] = {}
        kept: dict[str, list[TorchTensor]] = {}
        later = {
            a.tensor for i, e in enumerate(self.cascade.einsums) for a in e.inputs if self.report.einsums[i] > number
        }
        for at in range(self.size):
            tile: dict[str, TorchTensor] = {}
            for e in einsums:
                operands = {a.tensor: self._operand(a, at, tile) for a in e.inputs}
                self._count(e, e.points // self.size)
                last = at == self.size - 1
                if e.reduce == "last" and self.outer in e.reduced:
                    if last:
                        folded[e.output.tensor] = _run_one(e, operands, carries)
                    continue
                made = _run_one(e, operands, carries)
                name = e.output.tensor
                if self.outer in e.output.ranks:
                    tile[name] = made
                elif name in folded:
                    folded[name] = _merge(e, folded[name], made)
                else:
                    folded[name] = made
            # A tensor that a later pass reads must be held, or spilled and loaded again.
            for name, part in tile.items():
                if name in later or self.cascade.tensors[name].role is Role.OUTPUT:
                    kept.setdefault(name, []).append(part)
            alive = sum(t.numel() for n, t in tile.items() if n not in kept)
            alive += sum(t.numel() for parts in kept.values() for t in parts)
            held = sum(
                self.values[n].numel()
                for n, r in self.axis.items()
                if n in self.values and self.outer in r and self.cascade.tensors[n].role is Role.INTERMEDIATE
            )
            self.run_.peak = max(self.run_.peak, alive + held)
        for name, parts in kept.items():
            self.values[name] = torch.cat(parts, self.axis[name].index(self.outer))
        self.values.update(folded)

    def _operand(self, access: Access, at: int, tile: dict[str, TorchTensor]) -> TorchTensor:
        if self.outer not in access.ranks:
            return self.values[access.tensor]
        if access.tensor not in tile:
            axis = access.ranks.index(self.outer)
            tile[access.tensor] = part = self.values[access.tensor].narrow(axis, at, 1)
            loads = self.run_.loads
            loads[access.tensor] = loads.get(access.tensor, 0) + part.numel()
        return tile[access.tensor]


def _merge(einsum: Einsum, before: TorchTensor, now: TorchTensor) -> TorchTensor:
    if einsum.reduce == "sum":
        return before + now
    if einsum.reduce in ("max", "min"):
        return torch.maximum(before, now) if einsum.reduce == "max" else torch.minimum(before, now)
    raise HastenError(f"reduce operator {einsum.reduce!r} cannot be folded tile by tile: run without a rank")


def _run_one(einsum: Einsum, values: Mapping[str, TorchTensor], carries: dict[str, TorchTensor]) -> TorchTensor:
    out = einsum.output.ranks
    if einsum.map == "mul" and einsum.reduce == "sum":
        letters = {name: chr(ord("a") + i) for i, (name, _) in enumerate(einsum.ranks)}
        terms = ",".join("".join(letters[r] for r in a.ranks) for a in einsum.inputs)
        operands = [values[a.tensor] for a in einsum.inputs]
        return torch.einsum(f"{terms}->{''.join(letters[r] for r in out)}", *operands)
    order = [*out, *(n for n, _ in einsum.ranks if n not in out)]
    aligned = [_aligned(values[a.tensor], a.ranks, order) for a in einsum.inputs]
    if einsum.iterative and einsum.map in STEPS:
        return _iterate(einsum, aligned, order.index(einsum.iterative[0]), carries)
    if einsum.map not in MAPS:
        raise HastenError(f"no meaning is known for the map operator {einsum.map!r}: add it to attention.MAPS")
    found = MAPS[einsum.map](*aligned)
    dims = tuple(range(len(out), len(order)))
    if not dims:
        return found
    if einsum.reduce not in REDUCTIONS:
        raise HastenError(
            f"no meaning is known for the reduce operator {einsum.reduce!r}: add it to attention.REDUCTIONS"
        )
    return REDUCTIONS[einsum.reduce](found, dims)


def _aligned(tensor: TorchTensor, ranks: tuple[str, ...], order: list[str]) -> TorchTensor:
    """``tensor`` with its dimensions in ``order``, size 1 where it lacks a rank."""
    present = [r for r in order if r in ranks]
    moved = tensor.permute([ranks.index(r) for r in present])
    for i, r in enumerate(order):
        if r not in ranks:
            moved = moved.unsqueeze(i)
    return moved


def _iterate(einsum: Einsum, operands: list[TorchTensor], axis: int, carries: dict[str, TorchTensor]) -> TorchTensor:
    """Steps along ``axis``, from where the tile before left off."""
    initial, step = STEPS[einsum.map]
    carry = carries.get(einsum.name)
    made = []
    for i in range(operands[0].shape[axis]):
        now = [x.narrow(axis, i, 1) for x in operands]
        if carry is None:
            carry = torch.full_like(now[0], initial)
        carry, output = step(carry, *now)
        made.append(output)
    assert carry is not None
    carries[einsum.name] = carry
    return torch.cat(made, axis)
