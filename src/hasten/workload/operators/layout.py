"""Elements in another order, shape or number format: copies."""

from __future__ import annotations

from hasten.workload.einsum import Op
from hasten.workload.operators.call import Call, register
from hasten.workload.operators.patterns import axes, broadcast, broadcasts, distinct, elementwise, moved, whole


@register("aten::slice_scatter", "aten::select_scatter", "aten::diagonal_scatter", "aten::as_strided_scatter")
def _view_scatter(call: Call) -> None:
    output = call.outputs[0]
    ranks = axes(output.shape)
    inputs = [broadcast(call, call["self"], output.shape), whole(call, call["src"], ranks)]
    call.emit(Op.COPY, ranks, inputs, output, [r for r, _ in ranks], map="copy")


@register("aten::cat", "aten::stack", "aten::_cat", "aten::concatenate")
def _cat(call: Call) -> None:
    output = call.outputs[0]
    ranks = axes(output.shape)
    names = [r for r, _ in ranks]
    inputs = [call.read(t, names, distinct(t)) for t in call["tensors"] if t.numel()]
    call.emit(Op.COPY, ranks, inputs, output, names, map="copy")


@register(
    "aten::clone",
    "aten::copy",
    "aten::copy_",
    "aten::contiguous",
    "aten::lift_fresh_copy",
    "aten::_to_copy",
    "aten::to",
    "aten::view_copy",
    "aten::_reshape_copy",
    "aten::expand_copy",
    "aten::permute_copy",
    "aten::transpose_copy",
    "aten::slice_copy",
    "aten::select_copy",
    "aten::squeeze_copy",
    "aten::unsqueeze_copy",
    "aten::detach_copy",
)
def _copy(call: Call) -> None:
    output = call.outputs[0]
    source = call.arguments.get("src", call.tensors[0])
    op, map = (Op.COPY, "copy") if source.dtype == output.dtype else (Op.ELEMENTWISE, "cast")
    if broadcasts(source.shape, output.shape):
        elementwise(call, map, [source], op)
    else:
        moved(call, op, source, map=map)


@register(
    "aten::repeat",
    "aten::roll",
    "aten::flip",
    "aten::rot90",
    "aten::constant_pad_nd",
    "aten::reflection_pad1d",
    "aten::reflection_pad2d",
    "aten::reflection_pad3d",
    "aten::replication_pad1d",
    "aten::replication_pad2d",
    "aten::replication_pad3d",
    "aten::pad",
    "aten::tril",
    "aten::triu",
    "aten::im2col",
    "aten::col2im",
    "aten::pixel_shuffle",
    "aten::pixel_unshuffle",
    "aten::channel_shuffle",
    "aten::repeat_interleave",
    "aten::unfold_copy",
    "aten::diag_embed",
)
def _rearranged(call: Call) -> None:
    source, *others = call.tensors
    moved(call, Op.COPY, source, others)
