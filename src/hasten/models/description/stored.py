"""A workload whose weights are kept as a file keeps them: codes, with scales and zero points beside them."""

from __future__ import annotations

from dataclasses import replace

from hasten.dtypes import BITS
from hasten.models.loading.weight_format import KeptTensor, WeightFormat
from hasten.models.loading.weight_types import WeightTypes
from hasten.workload import Access, Cascade, Einsum, Op, Phase, Role, Tensor, Workload


def with_weights(workload: Workload, types: WeightTypes) -> Workload:
    """The workload of the same model with its weights in the formats of ``types``.

    A weight that is kept as codes becomes ``NAME.packed`` with ``NAME.scales`` and what else its format has, as
    `hasten.methods.WeightOnly` writes it: its bytes are theirs wherever it is read, and a product with it is computed
    in the activations' format, or in the one that activations are rounded to.

    Args:
        workload: described with all floating-point weights in ``types.activations``.
        types: of its weights, by their names in the workload.
    """
    kept: dict[str, tuple[WeightFormat, tuple[Tensor, ...]]] = {}
    for phase in workload.phases:
        for tensor in phase.cascade.with_role(Role.WEIGHT):
            if tensor.name not in kept and (tensor.dtype == types.activations or tensor.name in types.held):
                found = types.of(tensor.name, tensor.shape)
                kept[tensor.name] = (found, _tensors(tensor.name, found.pieces(tensor.shape)))
    kept = {name: known for name, known in kept.items() if not (known[0].plain and known[0].dtype == types.activations)}
    weights: dict[str, int] = {}
    for name, size in workload.weights.items():
        if name in kept:
            weights |= {tensor.name: tensor.nbytes for tensor in kept[name][1]}
        else:
            # Of what no phase reads as a weight (sinks are joined to scores), its share of the activations' format.
            held = types.held.get(name)
            weights[name] = size * BITS[held.dtype] // BITS[types.activations] if held and held.plain else size
    phases = tuple(_phase(phase, kept) for phase in workload.phases) if kept else workload.phases
    return replace(workload, phases=phases, weights=weights, notes=(*workload.notes, types.assumed))


def _tensors(name: str, pieces: tuple[KeptTensor, ...]) -> tuple[Tensor, ...]:
    base = name.removesuffix(".weight")
    return tuple(Tensor(f"{base}.{p.suffix}" if p.suffix else name, p.shape, p.dtype, Role.WEIGHT) for p in pieces)


def _phase(phase: Phase, kept: dict[str, tuple[WeightFormat, tuple[Tensor, ...]]]) -> Phase:
    cascade = phase.cascade
    tensors: dict[str, Tensor] = {}
    for name, tensor in cascade.tensors.items():
        tensors |= {t.name: t for t in kept[name][1]} if name in kept else {name: tensor}
    einsums = tuple(
        _reading(cascade, e, kept) if any(a.tensor in kept for a in e.inputs) else e for e in cascade.einsums
    )
    return replace(phase, cascade=replace(cascade, einsums=einsums, tensors=tensors))


def _reading(cascade: Cascade, e: Einsum, kept: dict[str, tuple[WeightFormat, tuple[Tensor, ...]]]) -> Einsum:
    inputs: list[Access] = []
    beside: list[Access] = []
    product, packed = "", False
    for access in e.inputs:
        if access.tensor not in kept:
            inputs.append(access)
            continue
        format, (codes, *rest) = kept[access.tensor]
        shape = cascade.tensors[access.tensor].shape
        touched = e.touched(access, shape)
        inputs.append(replace(access, tensor=codes.name))
        for tensor in rest:
            # As large a share as of the codes: of the experts, or of the rows, that are read.
            part = min(tensor.elements, -(-tensor.elements * touched // max(codes.elements, 1)))
            beside.append(Access(tensor.name, access.ranks, part))
        product = product or format.product
        packed = packed or not format.plain
    changed = replace(e, inputs=(*inputs, *beside))
    if e.op is not Op.MATMUL or not packed:
        return changed
    if product:
        changed = replace(changed, map=f"mul-{product}")
    # One matrix for all rows: what a packed kernel multiplies. Experts and other products keep their operator.
    whole = {"m", "n", "k"} == set(e.sizes) and len(cascade.tensors[e.inputs[1].tensor].shape) == 2
    return replace(changed, source="hasten::packed_linear") if whole else changed
