"""Attention as cascades of Einsums, in 3, 2 and 1 passes over the keys, and an interpreter that runs them.

The cascades are those of FuseMax (arXiv 2406.10491, section V). Ranks: p queries, m keys (m1 tiles of m0),
e channels of queries and keys, f channels of values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor as TorchTensor

from hasten.workload.einsum import Access, Cascade, Einsum, Op, Role, Tensor

_PASSES = "three-pass, two-pass, local-max, one-pass"


def attention(kind: str, *, p: int, m: int, e: int, f: int, m0: int = 0, dtype: str = "fp32") -> Cascade:
    """A cascade that computes softmax(Q K^T) V.

    Args:
        kind: ``three-pass`` (stable softmax), ``two-pass`` (the division deferred), ``local-max`` (two passes, a
            maximum for each tile of keys), ``one-pass`` (running maximum and sum).
        p, m, e, f: sizes.
        m0: keys a tile, for the last two; divides m.

    Raises:
        ValueError: an unknown kind, or a tile that does not divide m.
    """
    builders = {"three-pass": _three, "two-pass": _two, "local-max": _local, "one-pass": _one}
    if kind not in builders:
        raise ValueError(f"attention is one of {_PASSES}, not {kind!r}")
    m0 = m0 or m
    if m % m0:
        raise ValueError(f"tiles of {m0} keys do not divide {m}: pad the keys")
    write = _Writer({"p": p, "m": m, "m1": m // m0, "m0": m0, "e": e, "f": f}, dtype)
    write.given("Q", "e p")
    builders[kind](write)
    return Cascade(tuple(write.einsums), write.tensors)


@dataclass
class _Writer:
    sizes: dict[str, int]
    dtype: str
    einsums: list[Einsum] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def _tensor(self, name: str, ranks: tuple[str, ...], role: Role) -> None:
        known = self.tensors.get(name)
        if known is None:
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
        names |= dict.fromkeys(iterative.split())
        contraction = map == "mul" and reduce == "sum"
        op = Op.MATMUL if contraction else Op.REDUCE if reduce else Op.ELEMENTWISE
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
    write.given("K", "e m")
    write.given("V", "f m")
    write("QK:m p", "Q:e p", "K:e m", reduce="sum")
    write("GM:p", "QK:m p", map="identity", reduce="max")
    write("SN:m p", "QK:m p", "GM:p", map="sub-exp")
    write("SD:p", "SN:m p", map="identity", reduce="sum")


def _three(write: _Writer) -> None:
    _scores(write)
    write("A:m p", "SN:m p", "SD:p", map="div")
    write("AV:f p", "A:m p", "V:f m", reduce="sum", role=Role.OUTPUT)


def _two(write: _Writer) -> None:
    _scores(write)
    write("SNV:f p", "SN:m p", "V:f m", reduce="sum")
    write("AV:f p", "SNV:f p", "SD:p", map="div", role=Role.OUTPUT)


def _local(write: _Writer) -> None:
    write.given("K", "e m1 m0")
    write.given("V", "f m1 m0")
    write("QK:m1 m0 p", "Q:e p", "K:e m1 m0", reduce="sum")
    write("LM:m1 p", "QK:m1 m0 p", map="identity", reduce="max")
    write("SLN:m1 m0 p", "QK:m1 m0 p", "LM:m1 p", map="sub-exp")
    write("SLD:m1 p", "SLN:m1 m0 p", map="identity", reduce="sum")
    write("GM:p", "LM:m1 p", map="identity", reduce="max")
    write("PM:m1 p", "LM:m1 p", "GM:p", map="sub-exp")
    write("SD:p", "SLD:m1 p", "PM:m1 p", map="times", reduce="sum")
    write("SN:m1 m0 p", "SLN:m1 m0 p", "PM:m1 p", map="mul")
    write("SNV:f p", "SN:m1 m0 p", "V:f m1 m0", reduce="sum")
    write("AV:f p", "SNV:f p", "SD:p", map="div", role=Role.OUTPUT)


def _one(write: _Writer) -> None:
    write.given("K", "e m1 m0")
    write.given("V", "f m1 m0")
    write("QK:m1 m0 p", "Q:e p", "K:e m1 m0", reduce="sum")
    write("LM:m1 p", "QK:m1 m0 p", map="identity", reduce="max")
    write("RM:m1 p", "LM:m1 p", map="running-max", iterative="m1")
    write("SLN:m1 m0 p", "QK:m1 m0 p", "RM:m1 p", map="sub-exp")
    write("SLD:m1 p", "SLN:m1 m0 p", map="identity", reduce="sum")
    write("SLNV:m1 f p", "SLN:m1 m0 p", "V:f m1 m0", reduce="sum")
    write("PRM:m1 p", "RM:m1 p", map="previous-sub-exp", iterative="m1")
    write("RD:m1 p", "SLD:m1 p", "PRM:m1 p", map="running-sum", iterative="m1")
    write("RNV:m1 f p", "SLNV:m1 f p", "PRM:m1 p", map="running-sum", iterative="m1")
    write("AV:f p", "RNV:m1 f p", "RD:m1 p", map="last-div", reduce="last", iterative="m1", role=Role.OUTPUT)


# -- running a cascade -------------------------------------------------------------------------------

_MAPS: dict[str, Callable[..., TorchTensor]] = {
    "identity": lambda x: x,
    "mul": torch.mul,
    "times": torch.mul,
    "add": torch.add,
    "div": torch.div,
    # Where a row is masked throughout, both are -inf: nothing is seen, and no NaN arises.
    "sub-exp": lambda x, y: torch.exp(torch.where(torch.isneginf(x), x, x - y)),
}


@dataclass
class Run:
    """What running a cascade gave.

    Args:
        outputs: tensors of role OUTPUT by name.
        visits: input or intermediate -> elements read of it, summed over Einsums.
        operations: map operator -> points it was applied at.
    """

    outputs: dict[str, TorchTensor]
    visits: dict[str, int]
    operations: dict[str, int]


def execute(cascade: Cascade, inputs: Mapping[str, TorchTensor]) -> Run:
    """Runs a cascade in torch, Einsum by Einsum, as written.

    Args:
        cascade: its ranks have one name throughout.
        inputs: a tensor for each of role INPUT, of the shape the cascade gives.

    Raises:
        ValueError: an input is missing or of another shape, or an operator has no meaning here.
    """
    values: dict[str, TorchTensor] = {}
    for name, tensor in cascade.tensors.items():
        if tensor.role is Role.INPUT:
            given = inputs.get(name)
            if given is None or tuple(given.shape) != tensor.shape:
                raise ValueError(f"{name} must be given with shape {tensor.shape}")
            values[name] = given
    run = Run({}, {}, {})
    for einsum in cascade.einsums:
        for access in einsum.inputs:
            run.visits[access.tensor] = run.visits.get(access.tensor, 0) + values[access.tensor].numel()
        run.operations[einsum.map] = run.operations.get(einsum.map, 0) + einsum.points
        values[einsum.output.tensor] = _run_one(einsum, values)
    run.outputs = {n: values[n] for n, t in cascade.tensors.items() if t.role is Role.OUTPUT}
    return run


def _run_one(einsum: Einsum, values: Mapping[str, TorchTensor]) -> TorchTensor:
    out = einsum.output.ranks
    if einsum.map == "mul" and einsum.reduce == "sum":
        letters = {name: chr(ord("a") + i) for i, (name, _) in enumerate(einsum.ranks)}
        terms = ",".join("".join(letters[r] for r in a.ranks) for a in einsum.inputs)
        return torch.einsum(f"{terms}->{''.join(letters[r] for r in out)}", *(values[a.tensor] for a in einsum.inputs))
    if einsum.iterative:
        return _run_iterative(einsum, values)
    order = [*out, *(n for n, _ in einsum.ranks if n not in out)]
    operands = [_aligned(values[a.tensor], a.ranks, order) for a in einsum.inputs]
    if einsum.map not in _MAPS:
        raise ValueError(f"no meaning is known for the map operator {einsum.map!r}")
    found = _MAPS[einsum.map](*operands)
    dims = tuple(range(len(out), len(order)))
    if not dims:
        return found
    if einsum.reduce == "max":
        return torch.amax(found, dims)
    if einsum.reduce == "sum":
        return torch.sum(found, dims)
    raise ValueError(f"no meaning is known for the reduce operator {einsum.reduce!r}")


def _aligned(tensor: TorchTensor, ranks: tuple[str, ...], order: list[str]) -> TorchTensor:
    """``tensor`` with its dimensions in ``order``, size 1 where it lacks a rank."""
    present = [r for r in order if r in ranks]
    moved = tensor.permute([ranks.index(r) for r in present])
    for i, r in enumerate(order):
        if r not in ranks:
            moved = moved.unsqueeze(i)
    return moved


def _run_iterative(einsum: Einsum, values: Mapping[str, TorchTensor]) -> TorchTensor:
    """Running values along the first rank of each operand; before the first tile they are -inf and 0."""
    first, *rest = (values[a.tensor] for a in einsum.inputs)
    if einsum.map == "running-max":
        return torch.cummax(first, 0).values
    if einsum.map == "previous-sub-exp":
        before = torch.cat((torch.full_like(first[:1], -torch.inf), first[:-1]))
        return _MAPS["sub-exp"](before, first)
    if einsum.map == "running-sum":
        correction = rest[0] if rest[0].ndim == first.ndim else rest[0].unsqueeze(1)
        total, kept = torch.zeros_like(first[0]), []
        for tile, factor in zip(first, correction, strict=True):
            total = factor * total + tile
            kept.append(total)
        return torch.stack(kept)
    if einsum.map == "last-div":
        return first[-1] / rest[0][-1]
    raise ValueError(f"no meaning is known for the map operator {einsum.map!r}")
