"""Batch normalization folded into the convolution or linear layer before it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from hasten.cost.preserving import fold_norms, norms_to_fold
from hasten.methods.editing import Draft, edit
from hasten.methods.network_method import NetworkMethod
from hasten.runtime.network import Network
from hasten.workload.einsum import Access, Einsum, Op, Phase, Role, Tensor, Workload


@dataclass(frozen=True)
class FoldNormalization(NetworkMethod):
    """Multiplies batch normalization's scale into the weights before it, and its shift into their bias.

    Answers differ by rounding alone. Which layers follow each other is seen in a call with the example inputs: where
    something else reads what the layer makes, nothing is folded.
    """

    name: ClassVar[str] = "fold-normalization"
    kind: ClassVar[str] = "normalization"
    order: ClassVar[int] = 20
    source: ClassVar[str] = "batch normalization at inference is an affine map, arXiv 1502.03167, section 3.1"

    @property
    def title(self) -> str:
        return "normalization folded"

    def why_not_network(self, network: Network) -> str | None:
        if norms_to_fold(network.module, network.inputs.args, network.inputs.kwargs):
            return None
        return "no convolution or linear layer is followed by a batch normalization alone"

    def change(self, network: Network) -> None:
        network.module = fold_norms(network.module, network.inputs.args, network.inputs.kwargs)

    def why_not_described(self, workload: Workload) -> str | None:
        if (why := super().why_not_described(workload)) is not None:
            return why
        draft = Draft(workload.phases[0].cascade)
        return None if _foldable(draft) else "no convolution or linear layer is followed by a batch normalization"

    def rewrite(self, workload: Workload) -> Workload:
        weights = dict(workload.weights)

        def change(phase: Phase, draft: Draft) -> None:
            for norm, product, shift in _foldable(draft):
                _fold(draft, norm, product, shift, weights)

        return replace(edit(workload, change), weights=weights)

    @classmethod
    def variants(cls, model: Any) -> Sequence[Self]:
        return [cls()] if isinstance(model, Network) else []


def _is_norm(e: Einsum) -> bool:
    """A batch normalization by running statistics: an affine map of its input."""
    return e.op is Op.ELEMENTWISE and e.map == "normalize" and "batch_norm" in e.source


def _foldable(draft: Draft) -> list[tuple[Einsum, Einsum, Einsum | None]]:
    """Normalizations, the product that each follows, and what adds the product's bias where it has one."""
    made = {e.output.tensor: e for e in draft.einsums}
    read: dict[str, int] = {}
    for e in draft.einsums:
        for a in e.inputs:
            read[a.tensor] = read.get(a.tensor, 0) + 1
    found = []
    for e in draft.einsums:
        given = e.inputs[0].tensor if _is_norm(e) else ""
        before = made.get(given)
        if before is None or read[given] > 1 or draft.tensors[given].role is not Role.INTERMEDIATE:
            continue
        shift = None
        added = before.op is Op.ELEMENTWISE and before.map == "add"
        if added and before.source in ("aten::convolution", "aten::addmm"):
            shift, before = before, made.get(before.inputs[0].tensor)
        if before is not None and before.op in (Op.CONV, Op.MATMUL) and _weight(draft, before):
            found.append((e, before, shift))
    return found


def _weight(draft: Draft, product: Einsum) -> str:
    """The weight of a layer; "" where it multiplies two results."""
    names = [a.tensor for a in product.inputs if draft.tensors[a.tensor].role is Role.WEIGHT]
    return next((n for n in names if n.endswith(".weight") or n == "weight"), "")


def _fold(draft: Draft, norm: Einsum, product: Einsum, shift: Einsum | None, weights: dict[str, int]) -> None:
    for a in norm.inputs[1:]:
        weights.pop(a.tensor, None)
    layer = re.sub(r"running_mean$", "", norm.inputs[1].tensor)
    weights.pop(f"{layer}num_batches_tracked", None)
    at = next(i for i, e in enumerate(draft.einsums) if e is norm)
    if shift is not None:
        draft.einsums[at] = replace(shift, output=replace(norm.output))
        draft.einsums.remove(shift)
        return
    weight = _weight(draft, product)
    bias = f"{weight.removesuffix('weight')}bias"
    told = draft.tensors[weight]
    channels = draft.tensors[norm.inputs[1].tensor].shape[0]
    draft.tensors[bias] = Tensor(bias, (channels,), told.dtype, Role.WEIGHT)
    weights[bias] = draft.tensors[bias].nbytes
    draft.einsums[at] = replace(
        norm, inputs=(norm.inputs[0], Access(bias, norm.inputs[1].ranks)), map="add", module=product.module,
        kernel=product.kernel, source=product.source,
    )  # fmt: skip
