"""The recorder: collects Einsums and tensors while a program runs on fake tensors.

Tracing hands it to every operator's handler (`hasten.workload.operators`), so it knows neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor as TorchTensor

from hasten import dtypes
from hasten.errors import HastenError
from hasten.workload.einsum import Access, Cascade, Einsum, Op, Role, StridedView, Tensor


@dataclass
class _Known:
    """A traced storage: which tensor of the cascade it is now."""

    name: str
    role: Role


class TraceTooLongError(HastenError):
    """A program goes on for more operators than a trace is worth: a loop over tokens."""


class Recorder:
    """Collects Einsums and tensors while a program runs on fake tensors."""

    def __init__(self) -> None:
        self.einsums: list[Einsum] = []
        self.tensors: dict[str, Tensor] = {}
        self.unknown: dict[str, None] = {}
        self.path = ""
        self._storages: dict[int, _Known] = {}
        self._keep: list[Any] = []  # storages stay alive, so that their identities stay unique
        self._outputs: set[str] = set()
        self._counter = 0
        self._kernels = 0
        self._repeated = 0
        self.most: int | None = None  # operators before a trace is given up

    # --- names

    def next_kernel(self) -> int:
        self._kernels += 1
        if self.most is not None and self._kernels - self._repeated > self.most:
            raise TraceTooLongError(
                f"more than {self.most:,} operators in one call (in module {self.path!r}): a loop over tokens that no "
                "kernel stands in for: give a shorter prompt"
            )
        return self._kernels - 1

    def bind(self, tensor: TorchTensor, name: str, role: Role, shape: Sequence[int] | None = None) -> None:
        """Declares that ``tensor``'s storage is the tensor ``name``; the first declaration holds."""
        storage = tensor.untyped_storage()
        if storage._cdata in self._storages:
            return
        self._keep.append(storage)
        self._storages[storage._cdata] = _Known(name, role)
        size = tuple(int(n) for n in (tensor.shape if shape is None else shape))
        self.tensors[name] = Tensor(name, size, _dtype(tensor.dtype), role)

    def describe(self, tensor: TorchTensor, shape: Sequence[int], dtype: str) -> None:
        """Corrects a packed tensor's shape and dtype to what its bytes mean."""
        name = self.name_of(tensor)
        self.tensors[name] = Tensor(name, tuple(int(n) for n in shape), dtype, self.tensors[name].role)

    def elements_of(self, tensor: TorchTensor) -> int:
        return self.tensors[self.name_of(tensor)].elements

    def name_of(self, tensor: TorchTensor | str) -> str:
        """The cascade's name of a tensor, or of the tensor that it is a view of."""
        if isinstance(tensor, str):
            return tensor
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            elements = storage.nbytes() // max(tensor.element_size(), 1)
            shape = tuple(tensor.shape) if elements == tensor.numel() else (int(elements),)
            self.bind(tensor, self._new_name(), Role.INTERMEDIATE, shape)
        return self._storages[storage._cdata].name

    def same_storage(self, a: TorchTensor, b: TorchTensor) -> bool:
        return a.untyped_storage()._cdata == b.untyped_storage()._cdata

    def known(self, tensor: TorchTensor) -> bool:
        return tensor.untyped_storage()._cdata in self._storages

    def temporary(self, shape: Sequence[int], dtype: torch.dtype) -> str:
        name = self._new_name()
        self.tensors[name] = Tensor(name, tuple(int(n) for n in shape), _dtype(dtype), Role.INTERMEDIATE)
        return name

    def _new_name(self) -> str:
        self._counter += 1
        return f"t{self._counter - 1}"

    def _written(self, tensor: TorchTensor) -> str:
        """The name under which ``tensor`` is written.

        Writing all of an intermediate again makes a new value, so it gets a new name; a weight, a state or
        a part of something keeps its own.
        """
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        full = tensor.numel() * tensor.element_size() >= storage.nbytes()
        if known is None:
            return self.name_of(tensor)
        again = known.name in self._outputs or known.role is Role.INPUT
        if full and again and known.role in (Role.INTERMEDIATE, Role.INPUT):
            del self._storages[storage._cdata]
            return self.name_of(tensor)
        return known.name

    # --- Einsums

    def emit(
        self,
        op: Op,
        ranks: tuple[tuple[str, int], ...],
        inputs: tuple[Access, ...],
        output: TorchTensor | str,
        output_ranks: tuple[str, ...],
        *,
        elements: int | None,
        map: str,
        reduce: str | None,
        iterative: tuple[str, ...],
        kernel: int,
        source: str,
        constants: tuple[tuple[str, Any], ...] = (),
    ) -> None:
        """Adds an Einsum; sizes become plain ints and redundant element counts are dropped."""
        ranks = tuple((name, int(size)) for name, size in ranks)
        sizes = dict(ranks)
        name = output if isinstance(output, str) else self._written(output)

        self._outputs.add(name)

        def plain(access: Access) -> Access:
            if access.index is not None:
                return access
            product = math.prod(sizes[r] for r in access.ranks)
            if access.elements is None or int(access.elements) == product:
                return Access(access.tensor, access.ranks, None, access.view)
            return Access(access.tensor, access.ranks, int(access.elements), access.view)

        self.einsums.append(
            Einsum(
                name=f"e{len(self.einsums)}",
                op=op,
                ranks=ranks,
                inputs=tuple(plain(a) for a in inputs),
                output=plain(Access(name, output_ranks, elements, view_of(output))),
                map=map,
                reduce=reduce,
                iterative=iterative,
                module=self.path,
                kernel=kernel,
                source=source,
                constants=constants,
            )
        )

    def repeat(self, einsums: Sequence[Einsum], names: dict[str, str], path: Callable[[str], str]) -> None:
        """Adds Einsums once more, as new launches.

        Args:
            names: old tensor name -> new one; intermediates that ``einsums`` write are added to it.
            path: old module path -> new one.
        """
        kernels: dict[int, int] = {}

        def renamed(access: Access) -> Access:
            return replace(access, tensor=names.get(access.tensor, access.tensor))

        for e in einsums:
            inputs = tuple(renamed(a) for a in e.inputs)
            target = e.output.tensor
            if target not in names and self.tensors[target].role is Role.INTERMEDIATE:
                names[target] = self._new_name()
                known = self.tensors[target]
                self.tensors[names[target]] = Tensor(names[target], known.shape, known.dtype, known.role)
            if e.kernel not in kernels:
                self._repeated += 1
                kernels[e.kernel] = self.next_kernel()
            output = renamed(e.output)
            self._outputs.add(output.tensor)
            self.einsums.append(
                Einsum(
                    f"e{len(self.einsums)}",
                    e.op,
                    e.ranks,
                    inputs,
                    output,
                    e.map,
                    e.reduce,
                    e.iterative,
                    path(e.module),
                    kernels[e.kernel],
                    e.source,
                    e.constants,
                )
            )

    def bind_to(self, tensor: TorchTensor, name: str) -> None:
        """Declares that ``tensor``'s storage is the known tensor ``name``."""
        storage = tensor.untyped_storage()
        self._keep.append(storage)
        self._storages[storage._cdata] = _Known(name, self.tensors[name].role)

    def forget(self) -> None:
        """Drops the Einsums so far: what was run only prepared the call that is described."""
        self.einsums.clear()
        self.unknown.clear()
        self._outputs.clear()
        lasting = (Role.WEIGHT, Role.STATE)
        self._storages = {key: known for key, known in self._storages.items() if known.role in lasting}

    def note_unknown(self, name: str) -> None:
        self.unknown[name] = None

    def cascade(self, results: Sequence[TorchTensor]) -> Cascade:
        for tensor in results:
            if not self.known(tensor):
                continue
            name = self.name_of(tensor)
            if self.tensors[name].role is Role.INTERMEDIATE:
                t = self.tensors[name]
                self.tensors[name] = Tensor(name, t.shape, t.dtype, Role.OUTPUT)
        used = {a.tensor for e in self.einsums for a in (*e.inputs, e.output)}
        tensors = {name: t for name, t in self.tensors.items() if name in used}
        returned = tuple(Access(self.name_of(t), (), None, view_of(t)) for t in results if self.known(t))
        return Cascade(tuple(self.einsums), tensors, tuple(sorted(self.unknown)), returned)


def view_of(tensor: TorchTensor | str) -> StridedView | None:
    """How a traced tensor lies in its storage; None for one that has only a name."""
    if isinstance(tensor, str) or tensor.layout is not torch.strided:
        return None
    return StridedView(tuple(map(int, tensor.shape)), tuple(map(int, tensor.stride())), int(tensor.storage_offset()))


def _dtype(dtype: torch.dtype) -> str:
    try:
        return dtypes.name_of(dtype)
    except KeyError:
        raise HastenError(f"no name for numbers of type {dtype}: convert the model to another dtype") from None
