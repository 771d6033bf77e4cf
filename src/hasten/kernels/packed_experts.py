"""Products of rows that stand in groups, each group with the packed weight of its own: a mixture's experts.

``packed`` (experts, out, ...) holds a packed weight (`hasten.kernels.packed_linear`) for each expert, ``scales`` and
``mins`` (experts, out, in / group) likewise. Rows of x are sorted by expert; ``ends`` (experts) says where each one's
end. No weight is copied: a group is multiplied with the rows of its expert where they stand, and experts without rows
are not read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.kernels import gate
from hasten.kernels.block_formats import BLOCK_FORMATS
from hasten.kernels.compiled import native
from hasten.kernels.packed_linear import columns_of, dequantize, in_four_bits, native_matrix, product_map
from hasten.workload.einsum import Op
from hasten.workload.operators import Call, register
from hasten.workload.routing import distinct_experts

torch.library.define(
    "hasten::packed_experts",
    "(Tensor x, Tensor packed, Tensor? scales, Tensor? mins, Tensor ends, int bits, int group, bool bf16=False, "
    "bool int8=False) -> Tensor",
)


def _check(x: Tensor, packed: Tensor, scales: Tensor | None, mins: Tensor | None, ends: Tensor, bits: int) -> int:
    """The columns of a weight.

    Raises:
        ValueError: parts that do not fit each other.
    """
    gate.dtypes("packed_experts", gate.FLOATS, x=x)
    gate.dtypes("packed_experts", (torch.int32, torch.int64), ends=ends)
    gate.sizes(
        "packed_experts", packed=(packed, "e n p"), scales=(scales, "e n g"), mins=(mins, "e n g"), ends=(ends, "e")
    )
    columns = columns_of(packed.flatten(0, 1), bits)
    gate.sizes("packed_experts", {"k": columns}, x=(x, "m k"))
    return columns


@torch.library.impl("hasten::packed_experts", ("cpu", "cuda", "mps"))
def _packed_experts(
    x: Tensor,
    packed: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    ends: Tensor,
    bits: int,
    group: int,
    bf16: bool = False,
    int8: bool = False,
) -> Tensor:
    _check(x, packed, scales, mins, ends, bits)
    y = x.new_empty(x.shape[0], packed.shape[1])
    begin = 0
    for number, end in enumerate(ends.tolist()):
        if not begin <= end <= x.shape[0]:
            raise ValueError(f"packed_experts: ends that do not rise to {x.shape[0]} rows")
        if end > begin:
            weight = (None if t is None else t[number] for t in (packed, scales, mins))
            y[begin:end] = torch.ops.hasten.packed_linear(x[begin:end], *weight, bits, group, bf16, int8)
        begin = end
    if begin != x.shape[0]:
        raise ValueError(f"packed_experts: ends that rise to {begin}, not to {x.shape[0]} rows")
    return y


@gate.register_fake("hasten::packed_experts")
def _(
    x: Tensor,
    packed: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    ends: Tensor,
    bits: int,
    group: int,
    bf16: bool = False,
    int8: bool = False,
) -> Tensor:
    return x.new_empty(x.shape[0], packed.shape[1])


@register("hasten::packed_experts")
def _(call: Call) -> None:
    """As a grouped product of plain weights: the experts are read that rows go to, and their scales."""
    x, packed, bits = call["x"], call["packed"], call["bits"]
    rows, k, (experts, n, stored) = x.shape[0], x.shape[1], packed.shape
    if in_four_bits(bits):
        call.recorder.describe(packed, (experts, n, k), "int4")
    width = stored if bits in BLOCK_FORMATS and not in_four_bits(bits) else k
    used = distinct_experts(experts, rows)
    codes = call.read(packed, ["k", "n"], round(used * n * width))
    scales = [
        call.read(t, ["k", "n"], round(used * n * t.shape[2])) for t in (call["scales"], call["mins"]) if t is not None
    ]
    product = product_map(bits, rows, bool(call["bf16"]), bool(call["int8"]))
    ranks = (("m", rows), ("n", n), ("k", k))
    inputs = [call.read(x, ["m", "k"]), codes, *scales]
    call.emit(Op.MATMUL, ranks, inputs, call.outputs[0], ["m", "n"], map=product, reduce="sum")


def _save_weight(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    _, packed, scales, mins, ends, bits, group, *_ = inputs
    ctx.save_for_backward(packed, scales, mins, ends)
    ctx.format = (bits, group)  # type: ignore[attr-defined]


def _input_gradient(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, scales, mins, ends = ctx.saved_tensors  # type: ignore[attr-defined]
    bits, group = ctx.format  # type: ignore[attr-defined]
    wide, begin = gate.wide(grad.dtype), 0
    made = grad.new_empty(grad.shape[0], columns_of(packed.flatten(0, 1), bits))
    borders = ends.tolist()
    traced = any(isinstance(end, torch.SymInt) for end in borders)
    expert = torch.searchsorted(ends, torch.arange(grad.shape[0], device=ends.device), right=True)
    for number, end in enumerate(borders):
        scale, low = (None if t is None else t[number] for t in (scales, mins))
        if traced:
            # Nobody knows how many rows are whose: each expert takes all of them, and only its own count.
            weight = dequantize(packed[number], scale, low, bits, group).to(wide)
            rows = torch.where((expert == number)[:, None], grad, 0).to(wide)
            made = made + (rows @ weight).to(grad.dtype) if number else (rows @ weight).to(grad.dtype)
        elif end > begin:
            weight = dequantize(packed[number], scale, low, bits, group).to(wide)
            made[begin:end] = (grad[begin:end].to(wide) @ weight).to(grad.dtype)
            begin = end
    return made, None, None, None, None, None, None, None, None


torch.library.register_autograd("hasten::packed_experts", _input_gradient, setup_context=_save_weight)


def native_stack(
    packed: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    bits: int,
    group: int,
    bias: Tensor | None = None,
    codes_in: bool = False,
) -> object:
    """What the compiled kernels call a stack of matrices: the tensors must outlive it.

    Each expert's matrix is contiguous; experts may stand further apart than one is long, as the gates do of weights
    that hold gate and up (``gate_up[:, :inner]``). Nothing is copied.

    Args:
        packed, scales, mins: (experts, out, ...), as in the table above.
        bits, group, codes_in: see `hasten.kernels.packed_linear.native_matrix`.
        bias: (experts, out) fp32, or None.

    Raises:
        ValueError: parts that do not fit each other, or matrices that are not contiguous.
    """
    module = native()
    assert module is not None
    gate.sizes(
        "native_stack", packed=(packed, "e n p"), scales=(scales, "e n g"), mins=(mins, "e n g"), bias=(bias, "e n")
    )
    if not len(packed):
        raise ValueError("native_stack: there are no experts")
    scale, low, added = (None if t is None else t[0] for t in (scales, mins, bias))
    first = native_matrix(packed[0], scale, low, bits, group, added, codes_in)
    if mins is not None and scales is not None and mins.stride(0) != scales.stride(0):
        raise ValueError("native_stack: scales and mins stand at different distances")
    steps = [0 if t is None else t.stride(0) for t in (scales, bias)]
    return module.matrix_stack(first, len(packed), packed.stride(0) * packed.element_size(), *steps)


def packed_experts(
    x: Tensor,
    packed: Tensor,
    scales: Tensor | None,
    mins: Tensor | None,
    ends: Tensor,
    bits: int,
    group: int,
    bf16: bool = False,
    int8: bool = False,
) -> Tensor:
    """Rows of x (rows, in), sorted by expert, each times the weight of its own: (rows, out), in x's dtype.

    Args:
        ends: (experts), whole numbers: expert e has the rows from ``ends[e - 1]`` on before ``ends[e]``; the last is
            the number of rows.
        bits, group, bf16, int8: see `hasten.kernels.packed_linear.packed_linear`.

    Raises:
        ValueError: shapes that do not fit, or ends that do not rise to the number of rows.
    """
    gate.no_tangents("packed_experts", x)
    return torch.ops.hasten.packed_experts(x, packed, scales, mins, ends, bits, group, bf16, int8)
