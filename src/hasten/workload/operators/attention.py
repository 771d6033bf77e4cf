"""Scaled dot-product attention, however a device fuses it."""

from __future__ import annotations

import torch
from torch import Tensor as TorchTensor

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call, Ranks, register


def attention(
    call: Call,
    query: TorchTensor,
    key: TorchTensor,
    value: TorchTensor,
    mask: TorchTensor | None,
    output: TorchTensor,
    beside: TorchTensor | None = None,
) -> None:
    """QK, max, exp, sum, AV, divide (FuseMax, arXiv 2406.10491, section IV, division deferred), one launch.

    Query (B, H, P, E), key (B, G, M, E), value (B, G, M, F) with H a multiple of G. A causal or masked
    attention counts all M positions, as ``torch.utils.flop_counter`` does. Where keys lie in two tensors, as the
    latents and the turned channels of latent attention do, ``beside`` (B, G, M, E less those of ``key``) is the other.
    """
    *batch, heads, p, e = query.shape if query.dim() > 3 else (*query.shape[:-2], 1, *query.shape[-2:])
    groups = key.shape[-3] if key.dim() > 3 else 1
    m, f = key.shape[-2], value.shape[-1]
    lead: Ranks = tuple((f"b{i}" if i else "b", n) for i, n in enumerate(batch))
    per = heads // max(groups, 1)
    shared = [*(r for r, _ in lead), "h"]
    own = [*shared, "r"] if per > 1 else shared
    head_ranks: Ranks = (*lead, ("h", groups), *((("r", per),) if per > 1 else ()))
    shape = (*batch, heads, p)
    dtype = query.dtype

    keys = [call.read(key, [*shared, "m", "e"], None if beside is None else key.numel())]
    if beside is not None:
        keys.append(call.read(beside, [*shared, "m", "e"], beside.numel()))
    scores = call.temporary((*shape, m), dtype)
    call.emit(
        Op.MATMUL,
        (*head_ranks, ("p", p), ("m", m), ("e", e)),
        [call.read(query, [*own, "p", "e"]), *keys],
        scores,
        [*own, "p", "m"],
        reduce="sum",
    )
    square: Ranks = (*head_ranks, ("p", p), ("m", m))
    fibre, row = [*own, "p", "m"], [*own, "p"]
    if mask is not None:
        masked = call.temporary((*shape, m), dtype)
        sides = [*((r,) for r, _ in lead), tuple(own[len(lead) :]), ("p",), ("m",)][-mask.dim() :]
        used = [r for side, n, s in zip(sides, mask.shape, mask.stride()) if n != 1 and s != 0 for r in side]
        call.emit(
            Op.ELEMENTWISE,
            square,
            [call.read(scores, fibre), call.read(mask, used)],
            masked,
            fibre,
            map="where" if mask.dtype is torch.bool else "add",
        )
        scores = masked
    top = call.temporary(shape, dtype)
    call.emit(Op.REDUCE, square, [call.read(scores, fibre)], top, row, map="identity", reduce="max")
    weights = call.temporary((*shape, m), dtype)
    call.emit(Op.ELEMENTWISE, square, [call.read(scores, fibre), call.read(top, row)], weights, fibre, map="sub-exp")
    total = call.temporary(shape, dtype)
    call.emit(Op.REDUCE, square, [call.read(weights, fibre)], total, row, map="identity", reduce="sum")
    mixed = call.temporary((*shape, f), dtype)
    result = [*own, "p", "f"]
    call.emit(
        Op.MATMUL,
        (*head_ranks, ("p", p), ("f", f), ("m", m)),
        [call.read(weights, fibre), call.read(value, [*shared, "m", "f"])],
        mixed,
        result,
        reduce="sum",
    )
    call.emit(
        Op.ELEMENTWISE,
        (*head_ranks, ("p", p), ("f", f)),
        [call.read(mixed, result), call.read(total, row)],
        output,
        result,
        map="div",
    )


@register(
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "aten::scaled_dot_product_attention",
)
def _attention(call: Call) -> None:
    mask = call.arguments.get("attn_mask", call.arguments.get("attn_bias"))
    attention(call, call["query"], call["key"], call["value"], mask, call.outputs[0])
