"""Reading and writing at indexed places."""

from __future__ import annotations

from torch import Tensor as TorchTensor

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call, Handler, register
from hasten.workload.operators.patterns import axes, broadcast, distinct, moved, whole


@register(
    "aten::gather",
    "aten::index_select",
    "aten::index",
    "aten::take",
    "aten::_unsafe_index",
    "aten::take_along_dim",
)
def _gather(call: Call) -> None:
    source, *others = call.tensors
    moved(call, Op.GATHER, source, others)


def _scatters(reduce: str | None) -> Handler:
    def handler(call: Call) -> None:
        """Writes ``source`` at indexed places of the first tensor; a functional form copies that first."""
        base, *others = call.tensors
        source = call.arguments.get("src", call.arguments.get("source", call.arguments.get("values")))
        value = call.arguments.get("value")
        if isinstance(value, TorchTensor):
            source = value
        index = next((t for t in others if not t.dtype.is_floating_point and t is not source), None)
        output = call.outputs[0]
        moving = source if isinstance(source, TorchTensor) else index
        count = moving.numel() if moving is not None else output.numel()
        if isinstance(source, TorchTensor) and source.numel() == 1 and index is not None:
            count = index.numel()
        if call.name.endswith("index_fill") and index is not None:
            count = index.numel() * output.numel() // max(1, output.shape[call["dim"]])
        ranks = (("s", count),)
        if not call.recorder.same_storage(base, output):
            full = axes(output.shape)
            names = [r for r, _ in full]
            call.emit(Op.COPY, full, [broadcast(call, base, output.shape)], output, names, map="copy")
        inputs = [call.read(source, ["s"], distinct(source))] if isinstance(source, TorchTensor) else []
        inputs += [whole(call, t) for t in others if t is not source]
        if reduce is not None:
            inputs.append(call.read(output, ["s"], min(count, output.numel())))
        written = min(count, output.numel())
        call.emit(Op.SCATTER, ranks, inputs, output, ["s"], elements=written, map="copy", reduce=reduce)

    return handler


register(
    "aten::scatter",
    "aten::scatter_",
    "aten::index_copy",
    "aten::index_copy_",
    "aten::index_put",
    "aten::index_put_",
    "aten::index_fill",
    "aten::index_fill_",
    "aten::_index_put_impl_",
    "aten::put_",
    "aten::masked_scatter",
    "aten::masked_scatter_",
    "aten::_unsafe_index_put",
)(_scatters(None))


register(
    "aten::scatter_add",
    "aten::scatter_add_",
    "aten::index_add",
    "aten::index_add_",
    "aten::scatter_reduce",
    "aten::scatter_reduce_",
    "aten::index_reduce",
    "aten::index_reduce_",
)(_scatters("sum"))


@register(
    "aten::masked_select",
    "aten::nonzero",
    "aten::nonzero_static",
    "aten::bincount",
    "aten::searchsorted",
    "aten::bucketize",
)
def _search(call: Call) -> None:
    output = call.outputs[0]
    ranks = axes(call.tensors[0].shape)
    inputs = [whole(call, t, ranks if i == 0 else ()) for i, t in enumerate(call.tensors)]
    call.emit(Op.GATHER, ranks, inputs, output, [r for r, _ in ranks], elements=output.numel(), map="select")
