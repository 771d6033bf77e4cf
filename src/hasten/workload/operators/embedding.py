"""Rows of a table, alone or summed."""

from __future__ import annotations

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call, register
from hasten.workload.operators.patterns import moved, whole


@register("aten::embedding")
def _embedding(call: Call) -> None:
    moved(call, Op.GATHER, call["weight"], [call["indices"]])


@register("aten::_embedding_bag", "aten::_embedding_bag_forward_only")
def _embedding_bag(call: Call) -> None:
    weight, ids, output = call["weight"], call["indices"], call.outputs[0]
    ranks = (("s", ids.numel()), ("d", weight.shape[1]))
    inputs = [
        call.read(weight, ["s", "d"], min(ids.numel(), weight.shape[0]) * weight.shape[1]),
        whole(call, ids),
    ]
    call.emit(Op.REDUCE, ranks, inputs, output, ["d"], elements=output.numel(), map="gather", reduce="sum")
