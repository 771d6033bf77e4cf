"""What each operator computes, as Einsums: a table keyed by the operator's name.

A handler receives one `Call` and emits the Einsums that it stands for. Everything a handler emits shares
one launch (``Einsum.kernel``). Users add their own operators with `register`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor as TorchTensor

from hasten.workload.einsum import Access, Op

if TYPE_CHECKING:
    from hasten.workload.tracing import Recorder

Ranks = tuple[tuple[str, int], ...]


class Call:
    """One operator call while it is traced.

    Args:
        recorder: where Einsums go.
        name: the operator's name, e.g. ``aten::mm``.
        arguments: by their names in the operator's schema, defaults filled in.
        outputs: the tensors it returned, in order; for an operator that only writes into an argument, that
            argument.
    """

    def __init__(
        self, recorder: Recorder, name: str, arguments: Mapping[str, Any], outputs: Sequence[TorchTensor]
    ) -> None:
        self.recorder = recorder
        self.name = name
        self.arguments = arguments
        self.outputs = tuple(outputs)
        self.kernel = recorder.next_kernel()

    def __getitem__(self, argument: str) -> Any:
        return self.arguments[argument]

    @property
    def tensors(self) -> list[TorchTensor]:
        """Every tensor among the arguments, lists flattened, in order."""
        found: list[TorchTensor] = []
        for value in self.arguments.values():
            if isinstance(value, TorchTensor):
                found.append(value)
            elif isinstance(value, list | tuple):
                found.extend(v for v in value if isinstance(v, TorchTensor))
        return found

    def read(self, tensor: TorchTensor | str, ranks: Sequence[str], elements: int | None = None) -> Access:
        """Reading ``tensor`` (or a named temporary) by ``ranks``."""
        return Access(self.recorder.name_of(tensor), tuple(ranks), elements)

    def temporary(self, shape: Sequence[int], dtype: torch.dtype) -> str:
        """The name of a new intermediate that has no tensor of its own in the traced program."""
        return self.recorder.temporary(tuple(shape), dtype)

    def emit(
        self,
        op: Op,
        ranks: Sequence[tuple[str, int]],
        inputs: Sequence[Access],
        output: TorchTensor | str,
        output_ranks: Sequence[str],
        *,
        elements: int | None = None,
        map: str = "mul",
        reduce: str | None = None,
        iterative: Sequence[str] = (),
        kernel: int | None = None,
    ) -> None:
        """Adds one Einsum to the cascade.

        Args:
            output: a torch tensor, or a name from `temporary`.
            output_ranks: the ranks that index it.
            elements: elements written, where the ranks do not give it.
            kernel: launch number, where one call stands for several launches.
        """
        self.recorder.emit(
            op,
            tuple(ranks),
            tuple(inputs),
            output,
            tuple(output_ranks),
            elements=elements,
            map=map,
            reduce=reduce,
            iterative=tuple(iterative),
            kernel=self.kernel if kernel is None else kernel,
            source=self.name,
        )


Handler = Callable[[Call], None]
# Up to so many rows a packed product is in fp32, weights unpacked in registers, whatever is asked for more.
PACKED_FEW_ROWS = 16
TABLE: dict[str, Handler] = {}


def register(*names: str) -> Callable[[Handler], Handler]:
    """Makes a handler known for operators called ``names`` (``"namespace::operator"``, without overload).

    >>> @register("mylib::swish")
    ... def _(call):
    ...     elementwise(call, "swish")
    """

    def add(handler: Handler) -> Handler:
        for name in names:
            TABLE[name] = handler
        return handler

    return add


# --- the common shapes of an operator -------------------------------------------------------------------


def axes(shape: Sequence[int]) -> Ranks:
    """Ranks d0, d1, ... of a tensor's dimensions."""
    return tuple((f"d{i}", int(n)) for i, n in enumerate(shape))


def broadcast(call: Call, tensor: TorchTensor, shape: Sequence[int]) -> Access:
    """How a tensor is read where it is broadcast to ``shape``."""
    offset = len(shape) - tensor.dim()
    strides = tensor.stride()
    ranks = [
        f"d{offset + i}"
        for i, n in enumerate(tensor.shape)
        if not ((n == 1 and shape[offset + i] != 1) or (strides[i] == 0 and n > 1))
    ]
    return call.read(tensor, ranks)


def distinct(tensor: TorchTensor) -> int:
    """Distinct elements of a tensor: a dimension that is only expanded does not count."""
    return math.prod(n for n, stride in zip(tensor.shape, tensor.stride()) if stride != 0 or n <= 1)


def whole(call: Call, tensor: TorchTensor, ranks: Sequence[tuple[str, int]] = ()) -> Access:
    """Reading all of a tensor once, whatever the iteration space."""
    return call.read(tensor, [name for name, _ in ranks], distinct(tensor))


def elementwise(
    call: Call, map: str | None = None, inputs: Sequence[TorchTensor] | None = None, op: Op = Op.ELEMENTWISE
) -> None:
    """One Einsum an output: each point of the output reads its point of every input."""
    name = map or call.name.split("::")[-1].rstrip("_")
    for output in call.outputs:
        ranks = axes(output.shape)
        read = [t for t in (call.tensors if inputs is None else inputs) if _broadcasts(t.shape, output.shape)]
        call.emit(
            op,
            ranks,
            [broadcast(call, t, output.shape) for t in read],
            output,
            [r for r, _ in ranks],
            map=name,
        )


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    pairs = zip(reversed(shape), reversed(target))
    return len(shape) <= len(target) and all(a in (1, b) for a, b in pairs)


def dims(dim: Any, ndim: int) -> list[int]:
    """Dimensions that a reduction's ``dim`` argument names, sorted; all of them for None or ()."""
    if dim is None or (isinstance(dim, list | tuple) and not dim):
        return list(range(ndim))
    chosen = dim if isinstance(dim, list | tuple) else [dim]
    return sorted({d % max(ndim, 1) for d in chosen})


def reduction(call: Call, reduce: str, map: str = "identity") -> None:
    """Folds the dimensions in ``dim`` (all, without that argument) of the first tensor."""
    source = call.tensors[0]
    chosen = dims(call.arguments.get("dim"), source.dim())
    ranks = axes(source.shape)
    kept = [name for i, (name, _) in enumerate(ranks) if i not in chosen]
    for output in call.outputs:
        call.emit(Op.REDUCE, ranks, [broadcast(call, source, source.shape)], output, kept, map=map, reduce=reduce)


def moved(
    call: Call,
    op: Op,
    source: TorchTensor,
    others: Sequence[TorchTensor] = (),
    map: str = "copy",
    elements: int | None = None,
) -> None:
    """Every element of the output comes from somewhere in ``source``, at places that ``others`` give.

    Args:
        elements: elements of ``source`` touched; by default as many as the output has, at most all.
    """
    output = call.outputs[0]
    ranks = axes(output.shape)
    names = [r for r, _ in ranks]
    touched = min(output.numel(), distinct(source)) if elements is None else elements
    inputs = [call.read(source, names, touched), *(whole(call, t) for t in others)]
    call.emit(op, ranks, inputs, output, names, map=map)


def unknown(call: Call) -> None:
    """An operator nobody described: bytes in, bytes out, and its name on the cascade's list."""
    call.recorder.note_unknown(call.name)
    inputs = [whole(call, t) for t in call.tensors]
    for output in call.outputs:
        ranks = axes(output.shape)
        call.emit(Op.UNKNOWN, ranks, inputs, output, [r for r, _ in ranks], map="unknown")


# --- contractions ---------------------------------------------------------------------------------------


def _bias(call: Call, product: str, bias: TorchTensor, output: TorchTensor, ranks: Ranks) -> None:
    """Adds ``bias`` to a contraction's result within the same launch."""
    names = [r for r, _ in ranks]
    added = bias.expand(output.shape) if _broadcasts(bias.shape, output.shape) else bias
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

    At most one group a row is read, so a mixture of experts reads its active experts only.
    """
    a, b = call.tensors[:2]
    offsets = call.arguments.get("offs")
    output = call.outputs[0]
    others = [whole(call, t) for t in call.tensors[2:]]
    if a.dim() == 2 and b.dim() == 3:
        s, k, n = a.shape[0], a.shape[1], b.shape[2]
        used = min(b.shape[0], s) * k * n
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


# --- attention ------------------------------------------------------------------------------------------


def attention(
    call: Call,
    query: TorchTensor,
    key: TorchTensor,
    value: TorchTensor,
    mask: TorchTensor | None,
    output: TorchTensor,
) -> None:
    """QK, max, exp, sum, AV, divide (FuseMax, arXiv 2406.10491, section IV, division deferred), one launch.

    Query (B, H, P, E), key (B, G, M, E), value (B, G, M, F) with H a multiple of G. A causal or masked
    attention counts all M positions, as ``torch.utils.flop_counter`` does.
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

    scores = call.temporary((*shape, m), dtype)
    call.emit(
        Op.MATMUL,
        (*head_ranks, ("p", p), ("m", m), ("e", e)),
        [call.read(query, [*own, "p", "e"]), call.read(key, [*shared, "m", "e"])],
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


# --- softmax and norms ----------------------------------------------------------------------------------


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


@register("aten::glu")
def _glu(call: Call) -> None:
    moved(call, Op.ELEMENTWISE, call["self"], map="glu", elements=call["self"].numel())


# --- reductions and scans -------------------------------------------------------------------------------


def _reduces(reduce: str, map: str = "identity") -> Handler:
    return lambda call: reduction(call, reduce, map)


@register("aten::floor_divide", "aten::trunc_divide", "aten::one_hot", "aten::heaviside", "aten::dropout")
def _untagged(call: Call) -> None:
    """Element-wise, though torch does not tag it so."""
    elementwise(call)


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


# --- moving data ----------------------------------------------------------------------------------------


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
    if _broadcasts(source.shape, output.shape):
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


def _fills(map: str) -> Handler:
    def handler(call: Call) -> None:
        for output in call.outputs:
            ranks = axes(output.shape)
            call.emit(Op.COPY, ranks, [], output, [r for r, _ in ranks], map=map)

    return handler


register(
    "aten::zeros",
    "aten::ones",
    "aten::full",
    "aten::zeros_like",
    "aten::ones_like",
    "aten::full_like",
    "aten::new_zeros",
    "aten::new_ones",
    "aten::new_full",
    "aten::scalar_tensor",
    "aten::fill_",
    "aten::zero_",
    "aten::fill",
    "aten::zero",
    "aten::eye",
    "aten::_efficientzerotensor",
)(_fills("fill"))
register("aten::arange", "aten::linspace", "aten::logspace", "aten::tril_indices", "aten::triu_indices")(_fills("iota"))
register(
    "aten::rand",
    "aten::randn",
    "aten::randint",
    "aten::rand_like",
    "aten::randn_like",
    "aten::normal_",
    "aten::uniform_",
    "aten::bernoulli_",
    "aten::randperm",
    "aten::exponential_",
    "aten::randint_like",
    "aten::normal",
)(_fills("random"))


@register(
    "aten::empty",
    "aten::empty_strided",
    "aten::empty_like",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::lift_fresh",
    "aten::lift",
    "aten::set_",
    "aten::resize_",
    "aten::as_strided_",
    "aten::sym_size",
    "aten::is_same_size",
    "aten::empty_permuted",
    "aten::_assert_async",
    "aten::_assert_tensor_metadata",
    "aten::_local_scalar_dense",
    "profiler::_record_function_enter_new",
    "profiler::_record_function_exit",
    "aten::_assert_scalar",
    "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
    "aten::record_stream",
)
def _nothing(call: Call) -> None:
    """Reserves or checks, computes nothing."""


# --- pooling, interpolation, transforms -------------------------------------------------------------------


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


@register("aten::_fft_r2c", "aten::_fft_c2c", "aten::_fft_c2r")
def _fft(call: Call) -> None:
    """A fast transform: log2(n) butterflies an element along the transformed dimensions."""
    x, output = call["self"], call.outputs[0]
    larger = x if x.numel() >= output.numel() else output
    points = math.prod(larger.shape[d] for d in call["dim"])
    stages = max(1, math.ceil(math.log2(max(2, points))))
    ranks = (*axes(larger.shape), ("stage", stages))
    names = [r for r, _ in axes(larger.shape)]
    call.emit(
        Op.REDUCE,
        ranks,
        [call.read(x, names, x.numel())],
        output,
        names,
        elements=output.numel(),
        map="butterfly",
        reduce="sum",
    )


# --- recurrent layers ---------------------------------------------------------------------------------------

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def recurrent(
    call: Call,
    kind: str,
    layers: int,
    directions: int,
    x: TorchTensor,
    weights: Sequence[TorchTensor],
    biased: bool,
    steps_first: bool,
    hidden: Sequence[TorchTensor],
) -> None:
    """Per layer and direction: the input projection of all steps, then the recurrence along t.

    Outputs of the call: the sequence, then the last hidden state(s).
    """
    output, *last = call.outputs
    batched = x.dim() == 3
    steps = x.shape[0] if steps_first or not batched else x.shape[1]
    batch = (x.shape[1] if steps_first else x.shape[0]) if batched else 1
    each = len(weights) // (layers * directions)
    gates = _GATES[kind]
    source: list[tuple[TorchTensor | str, int]] = [(x, x.shape[-1])]
    tn = ["t", "b", "n"]
    for layer in range(layers):
        produced: list[tuple[TorchTensor | str, int]] = []
        for direction in range(directions):
            index = (layer * directions + direction) * each
            w_in, w_rec, *rest = weights[index : index + each]
            size, width = w_rec.shape[1], w_rec.shape[0]
            kernel = call.kernel if not index else call.recorder.next_kernel()
            dtype = x.dtype
            projected = call.temporary((steps, batch, width), dtype)
            # Several sources (the directions of the layer below) are parts of one contraction rank.
            k = w_in.shape[1]
            inputs = [call.read(s, ["t", "b", "k"], None if len(source) == 1 else steps * batch * n) for s, n in source]
            call.emit(
                Op.MATMUL,
                (("t", steps), ("b", batch), ("n", width), ("k", k)),
                [*inputs, call.read(w_in, ["n", "k"])],
                projected,
                tn,
                reduce="sum",
                kernel=kernel,
            )
            final = layer == layers - 1
            state: TorchTensor | str = call.temporary((steps, batch, size), dtype)
            carried = call.temporary((steps, batch, width), dtype)
            call.emit(
                Op.MATMUL,
                (("t", steps), ("b", batch), ("n", width), ("k", size)),
                [call.read(hidden[0], ["b", "k"], batch * size), call.read(w_rec, ["n", "k"])],
                carried,
                tn,
                reduce="sum",
                iterative=["t"],
                kernel=kernel,
            )
            biases = [call.read(b, ["g", "n"]) for b in rest[:2]] if biased else []
            cells = [call.read(h, ["b", "n"], batch * size) for h in hidden[1:]]
            target = output if final and directions == 1 else state
            inside = [call.read(projected, ["t", "b", "g", "n"]), call.read(carried, ["t", "b", "g", "n"])]
            call.emit(
                Op.SCAN,
                (("t", steps), ("b", batch), ("g", gates), ("n", size)),
                [*inside, *biases, *cells],
                target,
                tn,
                map=f"{kind}-gates",
                reduce="gate",
                iterative=["t"],
                kernel=kernel,
            )
            produced.append((target, size))
        source = produced
    if directions > 1:
        joined = [call.read(s, tn, steps * batch * n) for s, n in source]
        width = sum(n for _, n in source)
        call.emit(Op.COPY, (("t", steps), ("b", batch), ("n", width)), joined, output, tn, map="copy")
    for tensor in last:
        ranks = axes(tensor.shape)
        names = [r for r, _ in ranks]
        call.emit(Op.COPY, ranks, [call.read(output, names, tensor.numel())], tensor, names, map="copy")


# --- hasten's own operators --------------------------------------------------------------------------------


@register("hasten::packed_linear")
def _packed_linear(call: Call) -> None:
    x, packed = call["x"], call["packed"]
    output = call.outputs[0]
    k, n = x.shape[-1], packed.shape[0]
    if call["bits"] == 4:
        call.recorder.describe(packed, (n, k), "int4")
    rows = int(x.numel() // max(k, 1))
    ranks = (("m", rows), ("n", n), ("k", k))
    scales = [call.read(t, ["n", "k"], t.numel()) for t in (call["scales"], call["mins"]) if t is not None]
    inputs = [call.read(x, ["m", "k"]), call.read(packed, ["k", "n"]), *scales]
    product = "mul-bf16" if call["bf16"] and rows > PACKED_FEW_ROWS else "mul"
    call.emit(Op.MATMUL, ranks, inputs, output, ["m", "n"], map=product, reduce="sum")


@register("hasten::sparse_linear")
def _sparse_linear(call: Call) -> None:
    x, packed, output = call["x"], call["packed"], call.outputs[0]
    k, n = x.shape[-1], packed.shape[0]
    ranks = (("m", int(x.numel() // max(k, 1))), ("n", n), ("k", k))
    parts = [call.read(t, ["k", "n"], t.numel()) for t in (packed, call["scales"], call["zeros"])]
    call.emit(Op.MATMUL, ranks, [call.read(x, ["m", "k"]), *parts], output, ["m", "n"], map="mul", reduce="sum")


@register("hasten::packed_embedding")
def _packed_embedding(call: Call) -> None:
    ids, packed, output = call["ids"], call["packed"], call.outputs[0]
    width = output.shape[-1]
    if call["bits"] == 4:
        call.recorder.describe(packed, (packed.shape[0], width), "int4")
    ranks = axes(output.shape)
    names = [r for r, _ in ranks]
    rows = min(ids.numel(), packed.shape[0])
    scales = [call.read(t, names, rows * t.shape[1]) for t in (call["scales"], call["mins"]) if t is not None]
    inputs = [call.read(packed, names, rows * width), *scales, whole(call, ids)]
    call.emit(Op.GATHER, ranks, inputs, output, names, map="copy" if call["bits"] == 16 else "dequantize")


def _cache_parts(call: Call, dim: int) -> list[TorchTensor]:
    """Codes, scales and mins of a cache, its int4 codes described by their logical shape."""
    codes = call["codes"]
    if call["bits"] == 4:
        call.recorder.describe(codes, (*codes.shape[:-1], 2 * codes.shape[-1]), "int4")
    return [codes, *(t for t in (call["scales"], call["mins"]) if t is not None)]


@register("hasten::kv_append")
def _kv_append(call: Call) -> None:
    new, recent = call["new"], call["recent"]
    ranks = (("b", new.shape[0]), ("h", new.shape[1]), ("t", new.shape[2]), ("e", new.shape[3]))
    names = [r for r, _ in ranks]
    codes, *scales = _cache_parts(call, new.shape[3])
    source = call.read(new, names)
    if recent is None:
        written = min(new.numel(), codes.numel())
        call.emit(Op.COPY, ranks, [source], codes, names, elements=written, map="copy")
        return
    written = min(new.numel(), call.recorder.elements_of(codes))
    group = 32
    call.emit(Op.ELEMENTWISE, ranks, [source], codes, names, elements=written, map="quantize")
    for part in scales:
        elements = min(-(-new.numel() // group), part.numel())
        call.emit(Op.ELEMENTWISE, ranks, [source], part, names, elements=elements, map="quantize-scale")
    call.emit(Op.COPY, ranks, [source], recent, names, elements=min(new.numel(), recent.numel()), map="copy")


@register("hasten::kv_read")
def _kv_read(call: Call) -> None:
    output, recent = call.outputs[0], call["recent"]
    ranks = tuple(zip("bhte", output.shape))
    names = [r for r, _ in ranks]
    parts = _cache_parts(call, output.shape[-1])
    if recent is None:
        inputs = [call.read(parts[0], names, min(output.numel(), parts[0].numel()))]
        copied = parts[0].dtype == output.dtype
        call.emit(
            Op.COPY if copied else Op.ELEMENTWISE,
            ranks,
            inputs,
            output,
            names,
            map="copy" if copied else "cast",
        )
        return
    batch, heads, length, dim = output.shape
    fresh = min(length, call["length"] - 32 * call["quantized"])
    coded = length - max(fresh, 0)
    rows = batch * heads
    inputs = []
    if coded:
        inputs.append(call.read(parts[0], names, rows * coded * dim))
        inputs += [call.read(t, names, min(t.numel(), rows * -(-coded * dim // 32))) for t in parts[1:]]
    if fresh > 0:
        inputs.append(call.read(recent, names, min(recent.numel(), rows * fresh * dim)))
    call.emit(Op.ELEMENTWISE, ranks, inputs, output, names, map="dequantize")


@register("hasten::selective_scan")
def _selective_scan(call: Call) -> None:
    """Two Einsums over (batch, time, channel, state) in one launch; the running state is all that stays.

    Only when a gradient is wanted are the states at the chunks' borders written too.
    """
    x, rates = call["x"], call["A"]
    y, last, borders = call.outputs
    batch, length, channels = x.shape
    ranks = (("b", batch), ("t", length), ("c", channels), ("n", rates.shape[1]))
    btc, btn, cn, bcn = ["b", "t", "c"], ["b", "t", "n"], ["c", "n"], ["b", "c", "n"]
    state = [call.read(call["initial"], bcn)] if call["initial"] is not None else []
    vectors = [call.read(t, ["c"]) for t in (call["delta_bias"],) if t is not None]
    driven = [call.read(x, btc), call.read(call["delta"], btc), call.read(rates, cn), call.read(call["B"], btn)]
    call.emit(Op.SCAN, ranks, [*driven, *vectors, *state], last, bcn, map="exp-decay", iterative=["t"])
    gates = [call.read(t, btc) for t in (call["z"],) if t is not None]
    skips = [call.read(t, ["c"]) for t in (call["D"],) if t is not None]
    read = [call.read(last, bcn), call.read(call["C"], btn), *skips, *gates]
    call.emit(Op.REDUCE, ranks, read, y, btc, map="mul", reduce="sum")
    if call["keep"]:
        kept = axes(borders.shape)
        names = [r for r, _ in kept]
        call.emit(Op.COPY, kept, [call.read(last, names, last.numel())], borders, names, map="copy")


@register("hasten::rational")
def _rational(call: Call) -> None:
    elementwise(call, "rational", [call["x"]])


@register("hasten::associative_scan")
def _associative_scan(call: Call) -> None:
    a, b = call["a"], call["b"]
    h, last = call.outputs
    ranks = (("b", b.shape[0]), ("t", b.shape[1]), ("n", b.shape[2]))
    names = [r for r, _ in ranks]
    state = [call.read(call["initial"], ["b", "n"])] if call["initial"] is not None else []
    flags = [call.read(call["resets"], ["b", "t"])] if call["resets"] is not None else []
    inputs = [call.read(a, ["n"] if a.dim() == 1 else names), call.read(b, names), *flags, *state]
    call.emit(Op.SCAN, ranks, inputs, h, names, map="decay-add", iterative=["t"])
    call.emit(Op.COPY, (ranks[0], ranks[2]), [call.read(h, ["b", "n"], last.numel())], last, ["b", "n"], map="copy")


@register("hasten::ternary_linear")
def _ternary_linear(call: Call) -> None:
    """A contraction whose products are selections: 2 bits a weight are read, and additions done."""
    x, packed, output = call["x"], call["packed"], call.outputs[0]
    k, n = x.shape[-1], packed.shape[0]
    ranks = (("m", int(x.numel() // max(k, 1))), ("n", n), ("k", k))
    inputs = [call.read(x, ["m", "k"]), call.read(packed, ["k", "n"], packed.numel())]
    call.emit(Op.MATMUL, ranks, inputs, output, ["m", "n"], map="select", reduce="sum")


@register("hasten::expert_ffn")
def _expert_ffn(call: Call) -> None:
    """Both products over every expert: which of them are in use only real tokens tell."""
    x, scores, up, down = call["x"], call["scores"], call["up"], call["down"]
    m, k = x.shape
    ranks = (("m", m), ("n", up.shape[0]), ("k", k))
    inner = call.temporary((m, up.shape[0]), x.dtype)
    call.emit(Op.MATMUL, ranks, [call.read(x, ["m", "k"]), call.read(up, ["n", "k"])], inner, ["m", "n"], reduce="sum")
    scored = [call.read(inner, ["m", "n"]), call.read(scores, ["m", "n"], scores.numel())]
    active = call.temporary((m, up.shape[0]), x.dtype)
    call.emit(Op.ELEMENTWISE, ranks[:2], scored, active, ["m", "n"], map="silu")
    swapped = (("m", m), ("n", k), ("k", up.shape[0]))
    inputs = [call.read(active, ["m", "k"]), call.read(down, ["k", "n"])]
    call.emit(Op.MATMUL, swapped, inputs, call.outputs[0], ["m", "n"], reduce="sum")
