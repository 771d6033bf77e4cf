"""Convolutions, plain and transposed."""

from __future__ import annotations

from torch import Tensor as TorchTensor

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call, register
from hasten.workload.operators.patterns import axes


@register("aten::convolution", "aten::_convolution", "aten::mkldnn_convolution", "aten::convolution_overrideable")
def _convolution(call: Call) -> None:
    x, weight, bias = call["input"], call["weight"], call["bias"]
    output = call.outputs[0]
    groups = call["groups"]
    transposed = bool(call.arguments.get("transposed", False))
    spatial = x.shape[2:] if transposed else output.shape[2:]
    if transposed:
        channels = [("g", groups), ("c", weight.shape[0] // groups), ("k", weight.shape[1])]
    else:
        channels = [("g", groups), ("k", weight.shape[0] // groups), ("c", weight.shape[1])]
    places = [(f"{'i' if transposed else 'o'}{i}", n) for i, n in enumerate(spatial)]
    taps = [(f"r{i}", n) for i, n in enumerate(weight.shape[2:])]
    ranks = (("n", x.shape[0]), *channels, *places, *taps)
    where, window = [r for r, _ in places], [r for r, _ in taps]
    target: TorchTensor | str = output if bias is None else call.temporary(output.shape, output.dtype)
    inputs = [
        call.read(x, ["n", "g", "c", *where, *([] if transposed else window)], None if transposed else x.numel()),
        call.read(weight, ["g", *(("c", "k") if transposed else ("k", "c")), *window]),
    ]
    written = ["n", "g", "k", *where, *(window if transposed else [])]
    call.emit(Op.CONV, ranks, inputs, target, written, elements=output.numel() if transposed else None, reduce="sum")
    if bias is not None:
        assert isinstance(target, str)
        full = axes(output.shape)
        names = [r for r, _ in full]
        call.emit(
            Op.ELEMENTWISE,
            full,
            [call.read(target, names), call.read(bias, ["d1"])],
            output,
            names,
            map="add",
        )


@register("onednn::qconv_pointwise")
def _int8_convolution(call: Call) -> None:
    """Codes by codes: as a convolution, whose sums are then scaled, and the bias added."""
    x, weight, output = call["qx"], call["qw"], call.outputs[0]
    groups = call["groups"]
    channels = [("g", groups), ("k", weight.shape[0] // groups), ("c", weight.shape[1])]
    places = [(f"o{i}", n) for i, n in enumerate(output.shape[2:])]
    taps = [(f"r{i}", n) for i, n in enumerate(weight.shape[2:])]
    where, window = [r for r, _ in places], [r for r, _ in taps]
    sums = call.temporary(output.shape, output.dtype)
    inputs = [
        call.read(x, ["n", "g", "c", *where, *window], x.numel()),
        call.read(weight, ["g", "k", "c", *window]),
    ]
    ranks = (("n", x.shape[0]), *channels, *places, *taps)
    call.emit(Op.CONV, ranks, inputs, sums, ["n", "g", "k", *where], reduce="sum")
    _scaled(call, sums, call["w_scale"], call["bias"], "d1")


@register("onednn::qlinear_pointwise")
def _int8_linear(call: Call) -> None:
    """Rows of codes by codes: as a product, whose sums are then scaled, and the bias added."""
    x, weight, output = call["qx"], call["qw"], call.outputs[0]
    ranks = (("m", x.shape[0]), ("n", weight.shape[1]), ("k", x.shape[1]))
    sums = call.temporary(output.shape, output.dtype)
    inputs = [call.read(x, ["m", "k"]), call.read(weight, ["k", "n"])]
    call.emit(Op.MATMUL, ranks, inputs, sums, ["m", "n"], reduce="sum")
    _scaled(call, sums, call["w_scale"], call["bias"], "d1")


def _scaled(call: Call, sums: str, scales: TorchTensor, bias: TorchTensor | None, channel: str) -> None:
    output = call.outputs[0]
    full = axes(output.shape)
    names = [r for r, _ in full]
    added = [] if bias is None else [call.read(bias, [channel])]
    inputs = [call.read(sums, names), call.read(scales, [channel]), *added]
    call.emit(Op.ELEMENTWISE, full, inputs, output, names, map="mul" if bias is None else "mul-add")
