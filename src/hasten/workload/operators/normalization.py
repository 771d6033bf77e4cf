"""Softmax, and the normalizations by mean and variance."""

from __future__ import annotations

import math

from torch import Tensor as TorchTensor

from hasten.workload.einsum import Access, Op
from hasten.workload.operators.call import Call, Ranks, register
from hasten.workload.operators.patterns import axes, broadcast


@register("aten::_softmax", "aten::_safe_softmax", "aten::softmax")
def _softmax(call: Call) -> None:
    _soften(call, log=False)


@register("aten::_log_softmax", "aten::log_softmax")
def _log_softmax(call: Call) -> None:
    _soften(call, log=True)


def _soften(call: Call, log: bool) -> None:
    x, output = call["self"], call.outputs[0]
    ranks = axes(x.shape)
    names = [r for r, _ in ranks]
    along = call["dim"] % max(x.dim(), 1)
    kept = [r for i, r in enumerate(names) if i != along]
    row_shape = [n for i, n in enumerate(x.shape) if i != along]
    top, total = (call.temporary(row_shape, output.dtype) for _ in range(2))
    source = broadcast(call, x, x.shape)
    call.emit(Op.REDUCE, ranks, [source], top, kept, map="identity", reduce="max")
    if log:
        call.emit(Op.REDUCE, ranks, [source, call.read(top, kept)], total, kept, map="sub-exp", reduce="sum")
        inputs = [source, call.read(top, kept), call.read(total, kept)]
        call.emit(Op.ELEMENTWISE, ranks, inputs, output, names, map="sub-log")
        return
    powers = call.temporary(x.shape, output.dtype)
    call.emit(Op.ELEMENTWISE, ranks, [source, call.read(top, kept)], powers, names, map="sub-exp")
    call.emit(Op.REDUCE, ranks, [call.read(powers, names)], total, kept, map="identity", reduce="sum")
    call.emit(Op.ELEMENTWISE, ranks, [call.read(powers, names), call.read(total, kept)], output, names, map="div")


def _normalize(
    call: Call,
    x: TorchTensor,
    output: TorchTensor,
    ranks: Ranks,
    kept: list[str],
    affine: list[Access],
    centred: bool,
) -> None:
    """Mean, variance and scaling over the ranks that ``kept`` lacks; without a mean where not ``centred``."""
    names = [r for r, _ in ranks]
    sizes = dict(ranks)
    source = call.read(x, names)
    row_shape = [sizes[r] for r in kept]
    statistics: list[Access] = []
    if centred:
        mean = call.temporary(row_shape, x.dtype)
        call.emit(Op.REDUCE, ranks, [source], mean, kept, map="identity", reduce="sum")
        statistics.append(call.read(mean, kept))
    spread = call.temporary(row_shape, x.dtype)
    call.emit(
        Op.REDUCE,
        ranks,
        [source, *statistics],
        spread,
        kept,
        map="sub-square" if centred else "square",
        reduce="sum",
    )
    statistics.append(call.read(spread, kept))
    call.emit(Op.ELEMENTWISE, ranks, [source, *statistics, *affine], output, names, map="normalize")


@register("aten::native_layer_norm", "aten::layer_norm")
def _layer_norm(call: Call) -> None:
    x = call["input"]
    ranks = axes(x.shape)
    inner = len(call["normalized_shape"])
    names = [r for r, _ in ranks]
    affine = [call.read(t, names[-inner:]) for t in (call["weight"], call["bias"]) if t is not None]
    _normalize(call, x, call.outputs[0], ranks, names[:-inner], affine, centred=True)


@register("aten::_fused_rms_norm", "aten::rms_norm")
def _rms_norm(call: Call) -> None:
    x = call["input"]
    ranks = axes(x.shape)
    inner = len(call["normalized_shape"])
    names = [r for r, _ in ranks]
    affine = [call.read(t, names[-inner:]) for t in (call["weight"],) if t is not None]
    _normalize(call, x, call.outputs[0], ranks, names[:-inner], affine, centred=False)


@register("aten::native_group_norm", "aten::group_norm")
def _group_norm(call: Call) -> None:
    x = call.tensors[0]
    groups = call.arguments.get("group", call.arguments.get("num_groups"))
    batch, channels = x.shape[:2]
    inner = math.prod(x.shape[2:])
    ranks = (("n", batch), ("g", groups), ("c", channels // groups), ("s", inner))
    affine = [call.read(t, ["g", "c"]) for t in (call["weight"], call["bias"]) if t is not None]
    _normalize(call, x, call.outputs[0], ranks, ["n", "g"], affine, centred=True)


@register(
    "aten::native_batch_norm",
    "aten::_native_batch_norm_legit",
    "aten::_native_batch_norm_legit_no_training",
    "aten::cudnn_batch_norm",
    "aten::_batch_norm_with_update",
    "aten::_batch_norm_no_update",
)
def _batch_norm(call: Call) -> None:
    x = call["input"]
    ranks = axes(x.shape)
    names = [r for r, _ in ranks]
    affine = [call.read(t, ["d1"]) for t in (call["weight"], call["bias"]) if t is not None]
    training = call.arguments.get("training", call.name == "aten::_batch_norm_with_update")
    running = [call.arguments.get("running_mean"), call.arguments.get("running_var")]
    if training or running[0] is None:
        _normalize(call, x, call.outputs[0], ranks, ["d1"], affine, centred=True)
        return
    statistics = [call.read(t, ["d1"]) for t in running if t is not None]
    inputs = [call.read(x, names), *statistics, *affine]
    call.emit(Op.ELEMENTWISE, ranks, inputs, call.outputs[0], names, map="normalize")
