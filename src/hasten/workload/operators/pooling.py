"""Pooling and interpolation: windows of the input that an output is made from."""

from __future__ import annotations

import math

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call, Handler, register
from hasten.workload.operators.patterns import axes, moved, whole


def _pools(reduce: str) -> Handler:
    def handler(call: Call) -> None:
        x, output = call.tensors[0], call.outputs[0]
        size = call.arguments.get("kernel_size")
        if size is None:  # adaptive: windows cover the input once
            taps: list[tuple[str, int]] = []
            for i in range(1, len(call["output_size"]) + 1):
                taps.append((f"r{len(taps)}", -(-x.shape[-i] // max(1, output.shape[-i]))))
        else:
            sizes = list(size) * (max(1, _pool_dims(call.name)) if len(size) == 1 else 1)
            taps = [(f"r{i}", int(n)) for i, n in enumerate(sizes)]
        ranks = (*axes(output.shape), *taps)
        names = [r for r, _ in axes(output.shape)]
        window = [r for r, _ in taps]
        touched = min(x.numel(), math.prod(n for _, n in ranks))
        call.emit(
            Op.REDUCE,
            ranks,
            [call.read(x, [*names, *window], touched)],
            output,
            names,
            map="identity",
            reduce=reduce,
        )

    return handler


def _pool_dims(name: str) -> int:
    return next((n for n in (1, 2, 3) if f"{n}d" in name), 1)


register(
    "aten::max_pool2d_with_indices",
    "aten::max_pool3d_with_indices",
    "aten::max_pool1d_with_indices",
    "aten::adaptive_max_pool2d",
    "aten::adaptive_max_pool3d",
    "aten::adaptive_max_pool1d",
    "aten::max_pool1d",
    "aten::max_pool2d",
    "aten::max_pool3d",
    "aten::mkldnn_max_pool2d",
)(_pools("max"))


register(
    "aten::avg_pool1d",
    "aten::avg_pool2d",
    "aten::avg_pool3d",
    "aten::_adaptive_avg_pool2d",
    "aten::_adaptive_avg_pool3d",
    "aten::adaptive_avg_pool1d",
    "aten::adaptive_avg_pool2d",
    "aten::adaptive_avg_pool3d",
)(_pools("sum"))


_TAPS = {"nearest": 1, "linear1d": 2, "bilinear": 4, "trilinear": 8, "bicubic": 16}


@register(
    "aten::upsample_nearest1d",
    "aten::upsample_nearest2d",
    "aten::upsample_nearest3d",
    "aten::_upsample_nearest_exact1d",
    "aten::_upsample_nearest_exact2d",
    "aten::_upsample_nearest_exact3d",
    "aten::upsample_linear1d",
    "aten::upsample_bilinear2d",
    "aten::upsample_bicubic2d",
    "aten::upsample_trilinear3d",
    "aten::_upsample_bilinear2d_aa",
    "aten::_upsample_bicubic2d_aa",
    "aten::grid_sampler_2d",
    "aten::grid_sampler_3d",
)
def _interpolation(call: Call) -> None:
    x, *others = call.tensors
    output = call.outputs[0]
    taps = next((n for kind, n in _TAPS.items() if kind in call.name), 4)
    if taps == 1:
        moved(call, Op.COPY, x, others)
        return
    ranks = (*axes(output.shape), ("r", taps))
    names = [r for r, _ in axes(output.shape)]
    inputs = [
        call.read(x, [*names, "r"], min(x.numel(), output.numel() * taps)),
        *(whole(call, t) for t in others),
    ]
    call.emit(Op.REDUCE, ranks, inputs, output, names, map="mul", reduce="sum")
