"""Reductions along dimensions, scans along one, and selections."""

from __future__ import annotations

from torch import Tensor as TorchTensor

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call, Handler, register
from hasten.workload.operators.patterns import axes, broadcast, dims, elementwise, reduction


def _reduces(reduce: str, map: str = "identity") -> Handler:
    return lambda call: reduction(call, reduce, map)


for _reduce, _names in {
    "sum": ("sum", "mean", "nansum", "logsumexp", "count_nonzero", "trace"),
    "max": ("max", "amax", "argmax", "aminmax"),
    "min": ("min", "amin", "argmin"),
    "prod": ("prod",),
    "and": ("all",),
    "or": ("any",),
}.items():
    register(*(f"aten::{n}" for n in _names))(_reduces(_reduce))


register("aten::linalg_vector_norm", "aten::norm")(_reduces("sum", "power"))


@register("aten::max", "aten::min")
def _extreme(call: Call) -> None:
    if call.arguments.get("other") is not None:
        elementwise(call)
    else:
        reduction(call, call.name.split("::")[-1])


@register("aten::var", "aten::std", "aten::var_mean", "aten::std_mean")
def _variance(call: Call) -> None:
    x = call["self"]
    ranks = axes(x.shape)
    chosen = dims(call.arguments.get("dim"), x.dim())
    names = [r for r, _ in ranks]
    kept = [r for i, r in enumerate(names) if i not in chosen]
    row_shape = [n for i, n in enumerate(x.shape) if i not in chosen]
    mean: TorchTensor | str
    mean = call.outputs[1] if len(call.outputs) > 1 else call.temporary(row_shape, x.dtype)
    source = broadcast(call, x, x.shape)
    call.emit(Op.REDUCE, ranks, [source], mean, kept, map="identity", reduce="sum")
    inputs = [source, call.read(mean, kept)]
    call.emit(Op.REDUCE, ranks, inputs, call.outputs[0], kept, map="sub-square", reduce="sum")


@register(
    "aten::cumsum",
    "aten::cumprod",
    "aten::cummax",
    "aten::cummin",
    "aten::logcumsumexp",
    "aten::_cummax_helper",
    "aten::_cummin_helper",
)
def _cumulative(call: Call) -> None:
    x = call["self"]
    ranks = axes(x.shape)
    names = [r for r, _ in ranks]
    along = [names[call["dim"] % x.dim()]] if x.dim() else []
    kind = call.name.split("::")[-1].removeprefix("_").removeprefix("cum").removesuffix("_helper").rstrip("_")
    for output in call.outputs:
        call.emit(Op.SCAN, ranks, [broadcast(call, x, x.shape)], output, names, map=kind, iterative=along)


@register("aten::topk", "aten::sort", "aten::argsort", "aten::kthvalue", "aten::median", "aten::mode", "aten::histc")
def _order(call: Call) -> None:
    """Selections read all of the input; log-factors of a sort are the device's business."""
    x = call["self"]
    ranks = axes(x.shape)
    names = [r for r, _ in ranks]
    for output in call.outputs:
        call.emit(
            Op.REDUCE,
            ranks,
            [broadcast(call, x, x.shape)],
            output,
            names,
            elements=output.numel(),
            map="compare",
            reduce=call.name.split("::")[-1],
        )
