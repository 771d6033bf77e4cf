"""What is computed, as data: extended Einsums, cascades of them, and workloads.

An *extended Einsum* (FuseMax, arXiv 2406.10491, section III; EDGE notation) states one tensor
equation without saying how it is executed: the ranks that span its iteration space, which tensors it
reads and writes by which of those ranks, the operator that combines the inputs at a point (``map``)
and the operator that folds points onto one output element (``reduce``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple

from hasten import dtypes
from hasten.errors import HastenError
from hasten.workload.index import AffineIndex, distinct


class Role(StrEnum):
    """Where a tensor comes from, which decides what a cost model charges for it."""

    INPUT = "input"
    WEIGHT = "weight"
    STATE = "state"  # lives on from one call to the next: a KV cache, a recurrent state
    INTERMEDIATE = "intermediate"
    OUTPUT = "output"


class Op(StrEnum):
    """The kind of an Einsum: which machinery of a device executes it."""

    MATMUL = "matmul"
    CONV = "conv"
    ELEMENTWISE = "elementwise"
    REDUCE = "reduce"
    SCAN = "scan"
    GATHER = "gather"
    SCATTER = "scatter"
    COPY = "copy"
    UNKNOWN = "unknown"  # traced, counted in bytes, and listed: never dropped silently


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor of a cascade: shape, number format and role."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return dtypes.nbytes(self.elements, self.dtype)


class StridedView(NamedTuple):
    """Where a view's elements lie in its tensor's storage, in elements."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Access:
    """How one Einsum reads or writes one tensor.

    Args:
        tensor: its name.
        ranks: ranks of the Einsum that index the tensor; over the others it is broadcast.
        elements: distinct elements touched, where neither the ranks' sizes nor ``index`` give it (a gather
            touches only some rows); None means that they do.
        view: what was traced of the tensor's layout, for who makes loops of it; no part of what is equal.
        index: an index of each dimension, where a dimension is more than the rank of the same place:
            ``i-1``, ``2*i+k``, ``0``. See `Access.at`.
        outside: what is read where the index leaves the tensor; None means that it must not.

    Raises:
        HastenError: ``ranks`` are not those of ``index``.
    """

    tensor: str
    ranks: tuple[str, ...]
    elements: int | None = None
    view: StridedView | None = field(default=None, compare=False, repr=False)
    index: tuple[AffineIndex, ...] | None = None
    outside: float | None = None

    def __post_init__(self) -> None:
        if self.index is None:
            return
        if self.ranks != tuple(dict.fromkeys(r for i in self.index for r in i.ranks)):
            raise HastenError(f"ranks of an access of {self.tensor} are not those of its index: use Access.at")
        if self.outside is None and tuple(i.plain for i in self.index) == self.ranks:
            object.__setattr__(self, "index", None)  # one form only, so that equal accesses are equal

    @classmethod
    def at(
        cls, tensor: str, *index: str | AffineIndex, elements: int | None = None, outside: float | None = None
    ) -> Access:
        """An access by an index of each dimension.

        Raises:
            HastenError: an index that is no sum of ranks and whole numbers.

        >>> Access.at("A", "2*i+k", "j").ranks
        ('i', 'k', 'j')
        >>> Access.at("A", "i", "j") == Access("A", ("i", "j"))
        True
        """
        try:
            found = tuple(AffineIndex.of(i) if isinstance(i, str) else i for i in index)
        except ValueError as error:
            raise HastenError(f"an access of {tensor} has {error.args[0]}: give ranks and whole numbers") from None
        ranks = tuple(dict.fromkeys(r for i in found for r in i.ranks))
        return cls(tensor, ranks, elements, index=found, outside=outside)

    @property
    def indices(self) -> tuple[AffineIndex, ...]:
        """The index of each dimension."""
        return self.index if self.index is not None else tuple(AffineIndex(((rank, 1),)) for rank in self.ranks)


@dataclass(frozen=True, slots=True)
class Einsum:
    """One extended Einsum.

    Args:
        name: unique in its cascade.
        op: the kind, see `Op`.
        ranks: (rank name, size) of every rank of the iteration space, outermost first.
        inputs: the tensors read.
        output: the tensor written.
        map: operator at a point, e.g. ``mul``, ``add``, ``exp``, ``sub-exp``.
        reduce: operator over the ranks that the output lacks, e.g. ``sum``, ``max``; None without any.
        iterative: ranks along which a running value is carried (a scan, an online softmax).
        module: dotted path of the torch module it came from.
        kernel: Einsums that one launched operator computes share this number; an eager framework
            pays one launch for each distinct number, and keeps what lies between them on chip.
        source: name of the operator it was traced from, for people.
        constants: that operator's arguments that are no tensors, by name; no part of what is equal.
    """

    name: str
    op: Op
    ranks: tuple[tuple[str, int], ...]
    inputs: tuple[Access, ...]
    output: Access
    map: str = "mul"
    reduce: str | None = None
    iterative: tuple[str, ...] = ()
    module: str = ""
    kernel: int = -1
    source: str = ""
    constants: tuple[tuple[str, Any], ...] = field(default=(), compare=False, repr=False)

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.ranks)

    @property
    def points(self) -> int:
        """Size of the iteration space."""
        return math.prod(size for _, size in self.ranks)

    @property
    def reduced(self) -> tuple[str, ...]:
        """Ranks that are folded away: in the iteration space, not in the output."""
        return tuple(name for name, _ in self.ranks if name not in self.output.ranks)

    @property
    def flops(self) -> int:
        """Multiply-add FLOPs (2 a point) of a contraction; 0 for everything else.

        This is what ``torch.utils.flop_counter`` counts.
        """
        return 2 * self.points if self.op in (Op.MATMUL, Op.CONV) else 0

    @property
    def operations(self) -> int:
        """Scalar operations outside contractions: one a point, none for a plain copy or gather."""
        if self.op in (Op.MATMUL, Op.CONV, Op.GATHER, Op.SCATTER, Op.COPY):
            return 0
        return self.points

    def touched(self, access: Access, shape: tuple[int, ...] | None = None) -> int:
        """Distinct elements of ``access`` that this Einsum touches, those of a tensor of ``shape`` alone if given."""
        if access.elements is not None:
            return access.elements
        sizes = self.sizes
        if access.index is not None:
            return distinct(access.index, sizes, shape if access.outside is not None else None)
        return math.prod(sizes[rank] for rank in access.ranks)


@dataclass(frozen=True)
class Cascade:
    """An ordered graph of Einsums: each reads inputs of the cascade or outputs of earlier Einsums.

    Along an iterative rank it may also read what it or a later Einsum wrote a step before: ``S[i+1]`` from ``S[i]``.

    Raises:
        HastenError: an index leaves its tensor without a value to read there, has another number of
            dimensions, or writes an element twice.
    """

    einsums: tuple[Einsum, ...]
    tensors: Mapping[str, Tensor]
    unknown: tuple[str, ...] = ()  # operators the tracer does not know, each listed once
    # What the traced call returned, in order, as views of the cascade's tensors; no part of what is equal.
    results: tuple[Access, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        for einsum in self.einsums:
            for access in (einsum.output, *einsum.inputs):
                if access.index is not None:
                    check_index(einsum, access, self.tensors[access.tensor])

    def __iter__(self) -> Iterator[Einsum]:
        return iter(self.einsums)

    def __len__(self) -> int:
        return len(self.einsums)

    @property
    def flops(self) -> int:
        return sum(e.flops for e in self.einsums)

    @property
    def operations(self) -> int:
        return sum(e.operations for e in self.einsums)

    def access_bytes(self, einsum: Einsum, access: Access) -> int:
        """Bytes of the distinct elements that ``einsum`` touches through ``access``."""
        tensor = self.tensors[access.tensor]
        return dtypes.nbytes(einsum.touched(access, tensor.shape), tensor.dtype)

    def with_role(self, role: Role) -> list[Tensor]:
        return [t for t in self.tensors.values() if t.role is role]

    @cached_property
    def consumers(self) -> dict[str, list[int]]:
        """Tensor name -> indices of the Einsums that read it."""
        found: dict[str, list[int]] = {}
        for index, einsum in enumerate(self.einsums):
            for access in einsum.inputs:
                found.setdefault(access.tensor, []).append(index)
        return found

    @cached_property
    def producer(self) -> dict[str, int]:
        """Tensor name -> index of the Einsum that writes it last."""
        return {e.output.tensor: i for i, e in enumerate(self.einsums)}

    def canonical(self) -> Cascade:
        """The same cascade with intermediates, Einsums and launches renamed by order of appearance.

        Two cascades describe the same computation, step for step, when their canonical forms are
        equal. Weights, inputs and state keep their names: those are the model's own.
        """
        names: dict[str, str] = {}
        kernels: dict[int, int] = {}
        tensors: dict[str, Tensor] = {}

        def rename(access: Access) -> Access:
            known = self.tensors[access.tensor]
            name = access.tensor
            if known.role not in (Role.WEIGHT, Role.STATE, Role.INPUT):
                name = names.setdefault(name, f"%{len(names)}")
            if name not in tensors:
                tensors[name] = Tensor(name, known.shape, known.dtype, known.role)
            return access if name == access.tensor else replace(access, tensor=name)

        einsums = []
        for index, e in enumerate(self.einsums):
            # Without a number an Einsum is a launch of its own.
            key = e.kernel if e.kernel >= 0 else -1 - index
            einsums.append(
                Einsum(
                    f"e{index}",
                    e.op,
                    e.ranks,
                    tuple(rename(a) for a in e.inputs),
                    rename(e.output),
                    e.map,
                    e.reduce,
                    e.iterative,
                    e.module,
                    kernels.setdefault(key, len(kernels)),
                    e.source,
                )
            )
        return Cascade(tuple(einsums), dict(sorted(tensors.items())), tuple(sorted(self.unknown)))

    def groups(self) -> tuple[Group, ...]:
        """The cascade folded: one group for each run of a layer or module, identical siblings once.

        A layer is what the first number in a module path tells apart (``model.layers.7``). Siblings are
        folded when they are equal Einsum for Einsum, with their own weights and state in place of each
        other's; what depends on the Einsums alone is then ``repeats`` times what the first one gives.
        """
        blocks: list[tuple[str, list[int]]] = []
        for index, e in enumerate(self.einsums):
            layer = _layer(e.module)
            if blocks and blocks[-1][0] == layer:
                blocks[-1][1].append(index)
            else:
                blocks.append((layer, [index]))
        found: dict[object, tuple[str, list[int], list[int]]] = {}
        for layer, indices in blocks:
            parent, _, last = layer.rpartition(".")
            if not last.isdigit():
                found[layer, indices[0]] = (layer, indices, [indices[0]])
                continue
            key = (parent, self._signature(layer, last, indices))
            title = f"{parent}.*" if parent else "*"
            found.setdefault(key, (title, indices, []))[2].append(indices[0])
        return tuple(Group(title, tuple(first), tuple(starts)) for title, first, starts in found.values())

    def _signature(self, layer: str, number: str, indices: list[int]) -> object:
        """What makes two layers equal: everything but the names of their own tensors."""
        names: dict[str, object] = {}
        kernels: dict[int, int] = {}

        def named(tensor: str) -> object:
            if tensor not in names:
                known = self.tensors[tensor]
                own: object = len(names)
                if known.role is Role.WEIGHT and tensor.startswith(f"{layer}."):
                    own = f"*{tensor.removeprefix(layer)}"
                elif known.role is Role.STATE:
                    own = ".".join("*" if part == number else part for part in tensor.split("."))
                elif known.role is Role.WEIGHT:
                    own = tensor
                # The first layer reads the model's input where the next reads the layer before it.
                role = Role.INTERMEDIATE if known.role is Role.INPUT else known.role
                names[tensor] = (own, known.shape, known.dtype, role)
            return names[tensor]

        signature = []
        for index in indices:
            e = self.einsums[index]
            accesses = tuple((named(a.tensor), a.ranks, a.elements, a.index, a.outside) for a in (*e.inputs, e.output))
            key = e.kernel if e.kernel >= 0 else -1 - index
            kernel = kernels.setdefault(key, len(kernels))
            path = e.module.removeprefix(layer)
            signature.append((e.op, e.ranks, accesses, e.map, e.reduce, e.iterative, path, kernel, e.source))
        return tuple(signature)


def check_index(einsum: Einsum, access: Access, tensor: Tensor) -> None:
    """Whether an access by an index of each dimension stays within its tensor.

    Raises:
        HastenError: it does not, see `Cascade`.
    """
    where = f"{tensor.name}[{', '.join(map(str, access.indices))}]"
    if len(access.indices) != len(tensor.shape):
        raise HastenError(
            f"{where} has {len(access.indices)} dimensions where {tensor.name} has {len(tensor.shape)}: index each one"
        )
    sizes = einsum.sizes
    for rank in access.ranks:
        if rank not in sizes:
            raise HastenError(f"{where} is indexed by {rank}, which its Einsum lacks: give the rank a size")
    writes = access is einsum.output
    if access.outside is None or writes:
        for index, size in zip(access.indices, tensor.shape, strict=True):
            low, high = index.bounds(sizes)
            if low < 0 or high >= size:
                raise HastenError(
                    f"{where} runs from {low} to {high} in a dimension of {size}: "
                    + ("make the tensor larger" if writes else "make it larger, or say what is read outside")
                )
    if writes and distinct(access.indices, sizes) < math.prod(sizes[r] for r in access.ranks):
        raise HastenError(f"{where} writes elements twice: index what is read by the difference instead")


def _layer(path: str) -> str:
    """The path up to its first number: ``model.layers.3.mlp`` gives ``model.layers.3``."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[: i + 1])
    return path


@dataclass(frozen=True)
class Group:
    """A part of a cascade that occurs one or more times.

    Args:
        module: path of the module, ``*`` in place of the number where siblings were folded.
        einsums: places in the cascade of the first occurrence's Einsums.
        starts: place of the first Einsum of every occurrence.
    """

    module: str
    einsums: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def repeats(self) -> int:
        return len(self.starts)


@dataclass(frozen=True)
class Phase:
    """A cascade that runs ``repeats`` times: prefill once, a decode step once a new token."""

    name: str
    cascade: Cascade
    repeats: int = 1


@dataclass(frozen=True)
class Workload:
    """A cascade in its phases, with the state that outlives a call.

    Args:
        name: for people.
        phases: in order of execution.
        weights: bytes of every weight tensor, by name (tied weights once).
        state: bytes of every state tensor at its largest, by name.
        attributes: what the workload was made for (``batch``, ``prompt``, ``new_tokens``, ...); ``engine`` names what
            runs it as one program, where something does.
        notes: for people: what was assumed of the model, and what stands in for a part that cannot be traced.
    """

    name: str
    phases: tuple[Phase, ...]
    weights: Mapping[str, int] = field(default_factory=dict)
    state: Mapping[str, int] = field(default_factory=dict)
    attributes: Mapping[str, int | float | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """Multiply-add FLOPs of the whole run."""
        return sum(p.repeats * p.cascade.flops for p in self.phases)

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    @property
    def state_bytes(self) -> int:
        return sum(self.state.values())

    @property
    def unknown(self) -> tuple[str, ...]:
        return tuple(sorted({name for p in self.phases for name in p.cascade.unknown}))

    def phase(self, name: str) -> Phase:
        """The phase called ``name``.

        Raises:
            KeyError: no such phase.
        """
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise KeyError(name)

    def canonical(self) -> Workload:
        """The same workload in canonical form, for comparison with ``==``."""
        return replace(
            self,
            phases=tuple(replace(p, cascade=p.cascade.canonical()) for p in self.phases),
            weights=dict(sorted(self.weights.items())),
            state=dict(sorted(self.state.items())),
        )
