"""Linear layers with 2:4 sparse weights of 2 bits, eight bits for four weights, multiplied by int8 activations.

Of every four inputs two weights stay: a byte holds their codes (bits 0-1 and 2-3) and their places (bits 4-5 and 6-7).
Per group of inputs there are a scale (fp16) and a zero point of two bits: weight = scale * (code - zero). A row of x
has one scale (arXiv 2505.03745, section 3). Sums are of whole numbers: y = s_x s_w (sum q_x q_w - z_w sum q_x over kept
inputs).
"""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.kernels import gate
from hasten.kernels.compiled import native
from hasten.kernels.groups import check_range, half_scales
from hasten.workload.einsum import Op
from hasten.workload.operators import Call, register

GROUP = 64
# The compiled kernel has sums for so many rows of x; beyond, the weight is unpacked once and multiplied in fp32.
FEW_ROWS = 16
# Up to so many rows plain torch multiplies whole numbers.
_REFERENCE_ROWS = 64


def pack(weight: Tensor, scales: Tensor, zeros: Tensor, group: int = GROUP) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes (out, in / 4), scales (out, in / group) fp16, zeros four to a byte (out, in / group / 4 rounded up).

    Args:
        weight: (out, in), at most two of every four not kept at zero; values scale * (code - zero).
        scales, zeros: (out, in / group).
        group: inputs that share a scale.

    Raises:
        ValueError: more than two of four are not zero, or a width that does not divide.
        HastenError: a weight or a scale is not finite, or beyond what fp16 holds.
    """
    for numbers in (weight, scales):
        check_range(numbers, 2)
    out, columns = weight.shape
    if columns % group or group % 4:
        raise ValueError(f"groups of {group} do not divide {columns} columns")
    fours = weight.reshape(out, -1, 4)
    if int((fours != 0).sum(-1).max()) > 2:
        raise ValueError("more than two of four weights are not zero: prune 2:4 first")
    # The two kept places, rising; where fewer are not zero, any others fill up with the code that means zero.
    order = (fours != 0).int().argsort(dim=-1, descending=True, stable=True)[..., :2].sort(-1).values
    kept = fours.gather(2, order).reshape(out, -1, group // 4 * 2)
    scales = half_scales(scales)
    scale = scales.float()[..., None]
    codes = (
        (torch.round(kept / scale.clamp(min=1e-12)) + zeros[..., None])
        .clamp(0, 3)
        .reshape(*order.shape)
        .to(torch.uint8)
    )
    order = order.to(torch.uint8)
    packed = codes[..., 0] | codes[..., 1] << 2 | order[..., 0] << 4 | order[..., 1] << 6
    padded = torch.nn.functional.pad(zeros.to(torch.uint8), (0, -zeros.shape[1] % 4)).reshape(out, -1, 4)
    small = padded[..., 0] | padded[..., 1] << 2 | padded[..., 2] << 4 | padded[..., 3] << 6
    return packed, scales, small


def unpack_codes(packed: Tensor) -> tuple[Tensor, Tensor]:
    """(codes, kept), (out, in) both: 0 to 3 where kept, else 0; 1 where kept."""
    out = packed.shape[0]
    codes, kept = packed.new_zeros(2, out, packed.shape[1], 4)
    for i in range(2):
        place = (packed >> (4 + 2 * i) & 3).long()[..., None]
        codes.scatter_(2, place, (packed >> 2 * i & 3)[..., None])
        kept.scatter_(2, place, torch.ones_like(packed)[..., None])
    return codes.flatten(1), kept.flatten(1)


def unpack_zeros(zeros: Tensor, groups: int) -> Tensor:
    """Zero points (out, groups)."""
    return torch.stack([zeros >> 2 * i & 3 for i in range(4)], -1).flatten(1)[:, :groups]


def dequantize(packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The weight (out, in) in fp32."""
    codes, kept = unpack_codes(packed)
    groups = scales.shape[1]
    zero = unpack_zeros(zeros, groups).repeat_interleave(codes.shape[1] // groups, 1)
    scale = scales.float().repeat_interleave(codes.shape[1] // groups, 1)
    return scale * (codes.float() - zero.float()) * kept


def encode(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (rows, in) and scales (rows): symmetric, one scale a row."""
    scale = x.abs().amax(-1) / 127
    return torch.round(x / torch.where(scale == 0, 1, scale)[:, None]).to(torch.int8), scale


def reference(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The product by whole numbers, in plain torch: x (rows, in) to (rows, out), in fp32 (fp64 for fp64)."""
    wide = gate.wide(x.dtype)
    codes, scale = encode(x.to(wide))
    weight, kept = unpack_codes(packed)
    groups = scales.shape[1]
    size = weight.shape[1] // groups
    rows, out = codes.shape[0], weight.shape[0]
    xs = codes.reshape(rows, groups, size).double()
    products = torch.einsum("rgi,ogi->rog", xs, weight.reshape(out, groups, size).double())
    sums = torch.einsum("rgi,ogi->rog", xs, kept.reshape(out, groups, size).double())
    total = scales.to(wide)[None] * (products - unpack_zeros(zeros, groups).double()[None] * sums).to(wide)
    return scale[:, None] * total.sum(-1)


def sparse_linear(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """``x @ W.T`` with W packed and x rounded to int8: (..., in) to (..., out), in x's dtype.

    Shape:
        packed (out, in / 4) uint8, scales (out, in / group) fp16, zeros (out, in / group / 4) uint8, as `pack` gives.
    """
    gate.no_tangents("sparse_linear", x)
    return torch.ops.hasten.sparse_linear(x, packed, scales, zeros)


torch.library.define("hasten::sparse_linear", "(Tensor x, Tensor packed, Tensor scales, Tensor zeros) -> Tensor")


def _check(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> None:
    name = "sparse_linear"
    gate.dtypes(name, gate.FLOATS, x=x, scales=scales)
    gate.dtypes(name, (torch.uint8,), packed=packed, zeros=zeros)
    found = gate.sizes(name, packed=(packed, "n q"), scales=(scales, "n g"), zeros=(zeros, "n z"), x=(x, "... k"))
    columns = 4 * found["q"]
    if found["k"] != columns or not columns:
        raise ValueError(f"{name}: x is {tuple(x.shape)}, the weight has {columns} columns")
    if not found["g"] or columns % found["g"] or columns // found["g"] % 4 or found["z"] != -(-found["g"] // 4):
        raise ValueError(
            f"{name}: scales {tuple(scales.shape)}, zeros {tuple(zeros.shape)} are not of groups of {columns} columns"
        )


@torch.library.impl("hasten::sparse_linear", ("cpu", "cuda", "mps"))
def _sparse_linear(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    _check(x, packed, scales, zeros)
    columns, out = packed.shape[1] * 4, packed.shape[0]
    wide = gate.wide(x.dtype)
    flat = x.reshape(x.numel() // columns, columns).to(wide).contiguous()
    rows, module = flat.shape[0], native() if x.device.type == "cpu" and wide is torch.float32 else None
    compiled = module is not None and columns // scales.shape[1] == GROUP
    if not compiled and rows <= _REFERENCE_ROWS:
        y = reference(flat, packed, scales, zeros)
    elif compiled and rows <= FEW_ROWS:
        assert module is not None
        codes, scale = encode(flat)
        y = gate.buffer(rows, out)
        packed, scales, zeros, scale = (t.contiguous() for t in (packed, scales.half(), zeros, scale))
        groups, fp32 = columns // GROUP, torch.float32
        module.sparse_linear(
            gate.address(packed, torch.uint8, out, columns // 4), gate.address(scales, torch.float16, out, groups),
            gate.address(zeros, torch.uint8, out, -(-groups // 4)), out, columns, zeros.shape[1],
            gate.address(codes, torch.int8, rows, columns), gate.address(scale, fp32, rows), rows,
            gate.address(y, fp32, rows, out), torch.get_num_threads(),
        )  # fmt: skip
    else:
        codes, scale = encode(flat)
        y = (codes.to(wide) * scale[:, None]) @ dequantize(packed, scales, zeros).to(wide).t()
    return y.to(x.dtype).reshape(*x.shape[:-1], out)


@gate.register_fake("hasten::sparse_linear")
def _(x: Tensor, packed: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], packed.shape[0])


@register("hasten::sparse_linear")
def _(call: Call) -> None:
    x, packed, output = call["x"], call["packed"], call.outputs[0]
    k, n = x.shape[-1], packed.shape[0]
    ranks = (("m", int(x.numel() // max(k, 1))), ("n", n), ("k", k))
    parts = [call.read(t, ["k", "n"], t.numel()) for t in (packed, call["scales"], call["zeros"])]
    call.emit(Op.MATMUL, ranks, [call.read(x, ["m", "k"]), *parts], output, ["m", "n"], map="mul", reduce="sum")


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _gradient(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight = dequantize(*ctx.saved_tensors)  # type: ignore[attr-defined]
    wide = gate.wide(grad.dtype)
    return (grad.to(wide) @ weight.to(wide)).to(grad.dtype), None, None, None


torch.library.register_autograd("hasten::sparse_linear", _gradient, setup_context=_keep)
