"""A described model's parts, whatever they are called: its stack of layers, its products by weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from hasten.methods.editing import Draft
from hasten.workload.einsum import Access, Einsum, Op, Role, Tensor, Workload

_HEADS = ("lm_head", "embed_out", "output")


@dataclass(frozen=True)
class Stack:
    """The layers that a model's tokens go through.

    Args:
        path: of the list that they are in.
        count: how many there are.
    """

    path: str
    count: int

    def number(self, name: str) -> int | None:
        """The layer that a module or a weight of this name belongs to; None outside the stack."""
        found = re.match(rf"{re.escape(self.path)}\.(\d+)(?:\.|$)", name)
        return int(found[1]) if found else None

    def rest(self, name: str) -> str:
        """What of a name within a layer follows the layer's own."""
        return name.removeprefix(f"{self.path}.").partition(".")[2]


def stack_of(workload: Workload) -> Stack | None:
    """The list of layers that does most of the work of the last phase, which is the step where there is one."""
    found: dict[str, tuple[int, set[int]]] = {}
    for e in workload.phases[-1].cascade.einsums:
        inside = re.match(r"((?:[^.]+\.)*?[^.\d][^.]*)\.(\d+)(?:\.|$)", e.module)
        if inside:
            work, numbers = found.get(inside[1], (0, set()))
            found[inside[1]] = (work + e.flops, numbers | {int(inside[2])})
    if not found:
        return None
    path = max(found, key=lambda p: (found[p][0], len(found[p][1])))
    return Stack(path, 1 + max(found[path][1]))


@dataclass(frozen=True)
class WeightProduct:
    """A product by a weight.

    Args:
        weight: the matrix, or the matrices of several experts.
        access: how much of it is read.
        columns: that one row of it has: the channels that come in.
        beside: names of what is kept with it, such as scales.
    """

    weight: Tensor
    access: Access
    columns: int
    beside: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The name of what has the weight."""
        return re.sub(r"\.(weight|packed)$", "", self.weight.name)

    @property
    def rows(self) -> int:
        """Of all its matrices together."""
        return self.weight.elements // self.columns


def product_of(draft: Draft, e: Einsum) -> WeightProduct | None:
    """The weight that ``e`` multiplies by, or None: it has none, or a kernel of hasten's has pruned it already."""
    if e.op is not Op.MATMUL or e.source.startswith("hasten::sparse"):
        return None
    weights = [(draft.tensors[a.tensor], a) for a in e.inputs if draft.tensors[a.tensor].role is Role.WEIGHT]
    weights = [(t, a) for t, a in weights if len(t.shape) > 1 and set(a.ranks) & set(e.reduced)]
    if not weights:
        return None
    weight, access = max(weights, key=lambda pair: pair[0].elements)
    incoming = 1
    for rank in e.reduced:
        incoming *= e.sizes[rank]
    columns = incoming if incoming in weight.shape[-2:] else weight.shape[-1]
    base = re.sub(r"\.(weight|packed)$", "", weight.name)
    others = [draft.tensors[a.tensor] for a in e.inputs if a.tensor != weight.name]
    own = [t.name for t in others if t.role is Role.WEIGHT and t.name.startswith(f"{base}.")]
    beside = tuple(name for name in own if not name.endswith("bias"))
    return WeightProduct(weight, access, columns, beside)


def is_head(e: Einsum) -> bool:
    """Whether a product makes the logits."""
    return e.module.rpartition(".")[2] in _HEADS


def is_router(name: str) -> bool:
    """Whether a part of a mixture, by its own name, chooses among its experts or weighs what is beside them."""
    return name in ("gate", "router", "shared_expert_gate")


def products(workload: Workload, wanted: Callable[[Einsum], bool] = lambda e: True) -> list[WeightProduct]:
    """Every weight that is multiplied by, once."""
    found: dict[str, WeightProduct] = {}
    for phase in workload.phases:
        draft = Draft(phase.cascade)
        for e in phase.cascade.einsums:
            if wanted(e) and (product := product_of(draft, e)) is not None:
                found.setdefault(product.weight.name, product)
    return list(found.values())
