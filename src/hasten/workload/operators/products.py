"""Matrix products, and what a bias adds to one."""

from __future__ import annotations

from torch import Tensor as TorchTensor

from hasten.workload.einsum import Access, Op
from hasten.workload.operators.call import Call, Ranks, register
from hasten.workload.operators.patterns import broadcasts, whole
from hasten.workload.routing import distinct_experts


def _bias(call: Call, product: str, bias: TorchTensor, output: TorchTensor, ranks: Ranks) -> None:
    """Adds ``bias`` to a contraction's result within the same launch."""
    names = [r for r, _ in ranks]
    added = bias.expand(output.shape) if broadcasts(bias.shape, output.shape) else bias
    used = [n for n, s in zip(names, added.stride()) if s != 0] if added is not bias else names
    call.emit(Op.ELEMENTWISE, ranks, [call.read(product, names), call.read(bias, used)], output, names, map="add")


def _product(call: Call, a: TorchTensor, b: TorchTensor, bias: TorchTensor | None) -> None:
    output = call.outputs[0]
    batch: Ranks = (("b", a.shape[0]),) if a.dim() == 3 else ()
    lead = ["b"] if batch else []
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    ranks = (*batch, ("m", m), ("n", n), ("k", k))

    def read(tensor: TorchTensor, names: list[str]) -> Access:
        # Expanded dimensions are read once, whatever the program's view says.
        kept = [r for r, s, size in zip(names, tensor.stride(), tensor.shape) if s != 0 or size == 1]
        return call.read(tensor, kept)

    target: TorchTensor | str = output if bias is None else call.temporary(output.shape, output.dtype)
    call.emit(
        Op.MATMUL,
        ranks,
        [read(a, [*lead, "m", "k"]), read(b, [*lead, "k", "n"])],
        target,
        [*lead, "m", "n"],
        reduce="sum",
    )
    if bias is not None:
        assert isinstance(target, str)
        _bias(call, target, bias, output, (*batch, ("m", m), ("n", n)))


@register("aten::mm", "aten::bmm")
def _mm(call: Call) -> None:
    _product(call, call["self"], call["mat2"], None)


@register("aten::addmm", "aten::_addmm_activation")
def _addmm(call: Call) -> None:
    _product(call, call["mat1"], call["mat2"], call["self"] if call["beta"] != 0 else None)


@register("aten::baddbmm")
def _baddbmm(call: Call) -> None:
    _product(call, call["batch1"], call["batch2"], call["self"] if call["beta"] != 0 else None)


@register("aten::addmv")
def _addmv(call: Call) -> None:
    m, k = call["mat"].shape
    output = call.outputs[0]
    product = call.temporary(output.shape, output.dtype)
    inputs = [call.read(call["mat"], ["m", "k"]), call.read(call["vec"], ["k"])]
    call.emit(Op.MATMUL, (("m", m), ("k", k)), inputs, product, ["m"], reduce="sum")
    _bias(call, product, call["self"], output, (("m", m),))


@register("aten::mv")
def _mv(call: Call) -> None:
    m, k = call["self"].shape
    inputs = [call.read(call["self"], ["m", "k"]), call.read(call["vec"], ["k"])]
    call.emit(Op.MATMUL, (("m", m), ("k", k)), inputs, call.outputs[0], ["m"], reduce="sum")


@register("aten::dot", "aten::vdot")
def _dot(call: Call) -> None:
    (k,) = call["self"].shape
    inputs = [call.read(t, ["k"]) for t in call.tensors[:2]]
    call.emit(Op.MATMUL, (("k", k),), inputs, call.outputs[0], [], reduce="sum")


@register("aten::_int_mm", "aten::_scaled_mm")
def _other_mm(call: Call) -> None:
    a, b = call["self"], call["mat2"]
    ranks = (("m", a.shape[0]), ("n", b.shape[1]), ("k", a.shape[1]))
    scales = [whole(call, t) for t in call.tensors[2:]]
    inputs = [call.read(a, ["m", "k"]), call.read(b, ["k", "n"]), *scales]
    call.emit(Op.MATMUL, ranks, inputs, call.outputs[0], ["m", "n"], reduce="sum")


@register("aten::_grouped_mm", "transformers::grouped_mm_fallback")
def _grouped_mm(call: Call) -> None:
    """Rows sorted by group, each multiplied with its group's matrix: as many points as one plain matmul.

    Of the groups those are read that a row goes to, so a mixture of experts reads its active experts only.
    """
    a, b = call.tensors[:2]
    offsets = call.arguments.get("offs")
    output = call.outputs[0]
    others = [whole(call, t) for t in call.tensors[2:]]
    if a.dim() == 2 and b.dim() == 3:
        s, k, n = a.shape[0], a.shape[1], b.shape[2]
        used = round(distinct_experts(b.shape[0], s) * k * n)
        inputs = [call.read(a, ["m", "k"]), call.read(b, ["k", "n"], used), *others]
        call.emit(Op.MATMUL, (("m", s), ("n", n), ("k", k)), inputs, output, ["m", "n"], reduce="sum")
    elif a.dim() == 2 and b.dim() == 2 and offsets is not None:
        m, k, n = a.shape[0], a.shape[1], b.shape[1]
        inputs = [call.read(a, ["m", "k"]), call.read(b, ["k", "n"]), *others]
        groups = output.shape[0]
        call.emit(
            Op.MATMUL,
            (("m", m), ("n", n), ("k", k)),
            inputs,
            output,
            ["m", "n"],
            elements=groups * m * n,
            reduce="sum",
        )
    else:
        _product(call, a, b, None)
