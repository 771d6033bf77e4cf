"""Every kind of operator is known, and counts what torch counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hasten.workload import Call, Cascade, Op, operators, register, trace, trace_cascade


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Any) -> Any:
        return self.function(*inputs)


def counted(module: nn.Module, *inputs: Any) -> int:
    # The fused CPU attention is not in the counter's table; the plain one is two products.
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module(*inputs)
    return int(counter.get_total_flops())


def of(function: Callable[..., Any], *inputs: Any) -> Cascade:
    return trace(Function(function), *inputs).phases[0].cascade


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    groups=st.integers(1, 3),
    inner=st.integers(1, 3),
    outer=st.integers(1, 3),
    size=st.integers(5, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dims=st.integers(1, 3),
    transposed=st.booleans(),
    bias=st.booleans(),
)
def test_convolutions(
    batch: int, groups: int, inner: int, outer: int, size: int, kernel: int, stride: int, padding: int,
    dims: int, transposed: bool, bias: bool,
) -> None:  # fmt: skip
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    padding = min(padding, kernel - 1)
    layer = kind(groups * inner, groups * outer, kernel, stride, padding, groups=groups, bias=bias)
    x = torch.randn(batch, groups * inner, *[size] * dims)
    work = trace(layer, x)
    assert work.flops == counted(layer, x) > 0
    cascade = work.phases[0].cascade
    conv = cascade.einsums[0]
    assert {conv.touched(a) for a in conv.inputs} == {x.numel(), layer.weight.numel()}
    assert conv.touched(conv.output) == layer(x).numel()
    assert len({e.kernel for e in cascade}) == 1
    assert cascade.unknown == ()


EQUATIONS = {
    "ij,jk->ik": [(3, 4), (4, 5)],
    "bij,bjk->bik": [(2, 3, 4), (2, 4, 5)],
    "bhqd,bhkd->bhqk": [(2, 3, 4, 5), (2, 3, 6, 5)],
    "i,j->ij": [(3,), (4,)],
    "ii->i": [(4, 4)],
    "bn,anm,bm->ba": [(2, 5), (3, 5, 4), (2, 4)],
    "abc->ca": [(2, 3, 4)],
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum_equations(equation: str) -> None:
    inputs = [torch.randn(s) for s in EQUATIONS[equation]]
    module = Function(lambda *x: torch.einsum(equation, *x))
    work = trace(module, *inputs)
    assert work.flops == counted(module, *inputs)
    assert work.unknown == ()


@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((6, 2, 3, 4), (2, 4, 5)), ((2, 3, 4), (4,))],
)
def test_matmul_broadcasts(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    module, inputs = Function(torch.matmul), (torch.randn(left), torch.randn(right))
    work = trace(module, *inputs)
    reference = counted(module, *inputs)
    if len(right) > 1:
        assert work.flops == reference
    else:  # the counter has no matrix-vector product
        assert work.flops == 2 * 2 * 3 * 4


@pytest.mark.parametrize("masked", ["no", "causal", "bool", "float"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention(masked: str, groups: int) -> None:
    q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, groups, 9, 8), torch.randn(2, groups, 9, 6)
    mask = {"bool": torch.ones(7, 9, dtype=torch.bool), "float": torch.zeros(2, 1, 7, 9)}.get(masked)

    def run(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        causal = masked == "causal"
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)

    module = Function(run)
    work = trace(module, q, k, v)
    assert work.flops == counted(module, q, k, v) == 2 * 2 * 4 * 7 * 9 * (8 + 6)
    cascade = work.phases[0].cascade
    assert len({e.kernel for e in cascade if "attention" in e.source}) == 1
    assert ("causal" in cascade.einsums[-1].source) == (masked == "causal")
    if mask is not None:
        (masking,) = [e for e in cascade if e.map == ("where" if masked == "bool" else "add")]
        assert masking.touched(masking.inputs[1]) == mask.numel()
    reads = {a.tensor: e.touched(a) for e in cascade for a in e.inputs}
    assert reads["input1"] == k.numel()
    assert reads["input2"] == v.numel()


def test_multihead_attention_and_the_encoder_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            expected = counted(layer, x)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    work = trace(layer, x)
    assert work.flops == expected > 0
    assert work.unknown == ()


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@settings(max_examples=8, deadline=None)
@given(
    layers=st.integers(1, 2),
    both=st.booleans(),
    bias=st.booleans(),
    first=st.booleans(),
    steps=st.integers(1, 4),
    batch=st.integers(1, 3),
)
def test_recurrent_layers(kind: str, layers: int, both: bool, bias: bool, first: bool, steps: int, batch: int) -> None:
    layer = getattr(nn, kind)(5, 6, layers, bias=bias, batch_first=first, bidirectional=both)
    shape = (batch, steps, 5) if first else (steps, batch, 5)
    work = trace(layer, torch.randn(shape))
    directions, gates = 1 + both, {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    widths = [5] + [6 * directions] * (layers - 1)
    expected = sum(2 * steps * batch * directions * gates * 6 * (w + 6) for w in widths)
    assert work.flops == expected
    cascade = work.phases[0].cascade
    assert sum(e.op is Op.SCAN for e in cascade) == layers * directions
    weights = {a.tensor for e in cascade for a in e.inputs} & set(work.weights)
    assert weights == set(work.weights)
    outputs = [t for t in cascade.tensors.values() if t.role == "output"]
    assert sum(t.elements for t in outputs) == steps * batch * 6 * directions + layers * directions * batch * 6 * (
        2 if kind == "LSTM" else 1
    )


def test_softmax_and_norms_are_small_cascades() -> None:
    x = torch.randn(3, 4, 8)
    assert [(e.map, e.reduce) for e in of(lambda x: x.softmax(-1), x)] == [
        ("identity", "max"),
        ("sub-exp", None),
        ("identity", "sum"),
        ("div", None),
    ]
    layer_norm = trace(nn.LayerNorm(8), x).phases[0].cascade
    assert [e.op for e in layer_norm] == [Op.REDUCE, Op.REDUCE, Op.ELEMENTWISE]
    assert layer_norm.einsums[0].reduced == ("d2",)
    group_norm = trace(nn.GroupNorm(2, 4), x).phases[0].cascade
    assert group_norm.einsums[0].reduced == ("c", "s")
    evaluated = trace(nn.BatchNorm1d(4).eval(), x).phases[0].cascade
    assert [e.map for e in evaluated] == ["normalize"]


SMALL: dict[str, tuple[Callable[..., Any], list[tuple[int, ...]], set[Op]]] = {
    "sum": (lambda x: x.sum(1), [(3, 4)], {Op.REDUCE}),
    "mean of all": (lambda x: x.mean(), [(3, 4)], {Op.REDUCE}),
    "max": (lambda x: x.max(1).values, [(3, 4)], {Op.REDUCE}),
    "argmax": (lambda x: x.argmax(-1), [(3, 4)], {Op.REDUCE}),
    "var": (lambda x: x.var(0), [(3, 4)], {Op.REDUCE}),
    "norm": (lambda x: torch.linalg.vector_norm(x, dim=1), [(3, 4)], {Op.REDUCE}),
    "cumsum": (lambda x: x.cumsum(1), [(3, 4)], {Op.SCAN}),
    "cat": (lambda x: torch.cat((x, x), 1), [(3, 4)], {Op.COPY}),
    "pad": (lambda x: F.pad(x, (1, 2)), [(3, 4)], {Op.COPY}),
    "flip": (lambda x: x.flip(0), [(3, 4)], {Op.COPY}),
    "cast": (lambda x: x.half(), [(3, 4)], {Op.ELEMENTWISE}),
    "where": (lambda x: torch.where(x > 0, x, 0.0), [(3, 4)], {Op.ELEMENTWISE, Op.COPY}),
    "masked_fill_": (lambda x: (x + 1).masked_fill_(x > 0, 0.0), [(3, 4)], {Op.ELEMENTWISE}),
    "as_strided_": (lambda x: (x * 2).as_strided_((2, 2), (4, 1)) + 1, [(3, 4)], {Op.ELEMENTWISE}),
    "topk": (lambda x: x.topk(2).values, [(3, 4)], {Op.REDUCE}),
    "sort": (lambda x: x.sort(-1).values, [(3, 4)], {Op.REDUCE}),
    "max_pool": (lambda x: F.max_pool2d(x, 2), [(1, 2, 4, 4)], {Op.REDUCE}),
    "avg_pool": (lambda x: F.avg_pool2d(x, 2), [(1, 2, 4, 4)], {Op.REDUCE}),
    "pool 1d": (lambda x: F.avg_pool1d(x, 2), [(1, 2, 4)], {Op.REDUCE}),
    "adaptive": (lambda x: F.adaptive_avg_pool2d(x, 2), [(1, 2, 6, 6)], {Op.REDUCE}),
    "upsample": (lambda x: F.interpolate(x, scale_factor=2), [(1, 2, 4, 4)], {Op.COPY}),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), [(1, 2, 4, 4)], {Op.REDUCE}),
    "fft": (torch.fft.rfft, [(3, 8)], {Op.REDUCE}),
    "glu": (F.glu, [(3, 4)], {Op.ELEMENTWISE}),
    "roll": (lambda x: x.roll(1, 0), [(3, 4)], {Op.COPY}),
    "broadcast": (lambda x, y: torch.relu(x)[:, None] + y, [(3, 4), (3, 4)], {Op.ELEMENTWISE}),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_operators_are_known(name: str) -> None:
    function, shapes, kinds = SMALL[name]
    cascade = of(function, *(torch.randn(s) for s in shapes))
    assert cascade.unknown == ()
    assert {e.op for e in cascade} == kinds
    read = {a.tensor for e in cascade for a in e.inputs}
    assert "input0" in read


def test_gathers_and_scatters_touch_only_their_rows() -> None:
    table, ids = nn.Embedding(100, 8), torch.zeros(2, 3, dtype=torch.int64)
    (gather,) = trace(table, ids).phases[0].cascade.einsums
    assert gather.touched(gather.inputs[0]) == 2 * 3 * 8

    def write(cache: torch.Tensor, new: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(0, places, new)
        return cache[:4].sum()

    cache, places = torch.zeros(50, 8), torch.arange(2)
    traced = trace_cascade(write, (cache, torch.ones(2, 8), places), state={"cache": cache})
    scatter, total = traced.cascade.einsums
    assert scatter.op is Op.SCATTER
    assert (scatter.output.tensor, scatter.touched(scatter.output)) == ("cache", 2 * 8)
    assert total.touched(total.inputs[0]) == 4 * 8
    assert traced.state == {"cache": 50 * 8 * 4}
    assert cache.sum() == 0  # nothing was computed


def test_writes_in_place_make_new_values_and_parts_stay_where_they_are() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y.mul_(2)
        y[:, :2] = 0
        return y.exp()

    cascade = of(run, torch.randn(3, 4))
    add, double, fill, exp = cascade.einsums
    assert double.inputs[0].tensor == add.output.tensor != double.output.tensor
    assert fill.output.tensor == double.output.tensor
    assert fill.touched(fill.output) == 6
    assert exp.inputs[0].tensor == fill.output.tensor


def test_users_register_their_own_operators() -> None:
    @torch.library.custom_op("hasten_test::swish_sum", mutates_args=())
    def swish_sum(x: torch.Tensor) -> torch.Tensor:
        return (x * x.sigmoid()).sum(-1)

    @swish_sum.register_fake
    def _(x: torch.Tensor) -> torch.Tensor:
        return x.new_empty(x.shape[:-1])

    assert of(swish_sum, torch.randn(3, 4)).unknown == ("hasten_test::swish_sum",)

    @register("hasten_test::swish_sum")
    def _(call: Call) -> None:
        ranks = operators.axes(call["x"].shape)
        call.emit(
            Op.REDUCE, ranks, [call.read(call["x"], ["d0", "d1"])], call.outputs[0], ["d0"], map="swish",
            reduce="sum",
        )  # fmt: skip

    try:
        cascade = of(swish_sum, torch.randn(3, 4))
        assert cascade.unknown == ()
        assert cascade.einsums[0].reduced == ("d1",)
    finally:
        del operators.TABLE["hasten_test::swish_sum"]


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_packed_linear_is_one_matmul_with_its_logical_shape(bits: int) -> None:
    from hasten.nn import PackedLinear

    layer = PackedLinear(64, 24, bits=bits, group=32)
    work = trace(layer, torch.randn(2, 3, 64))
    (matmul,) = work.phases[0].cascade.einsums
    assert work.flops == 2 * 6 * 24 * 64
    assert matmul.sizes == {"m": 6, "n": 24, "k": 64}
    packed = work.phases[0].cascade.tensors["packed"]
    assert (packed.shape, packed.dtype) == ((24, 64), {16: "bf16", 8: "int8", 4: "int4"}[bits])
    scales = {16: 0, 8: 1, 4: 2}[bits] * 24 * 2 * 2
    assert work.weight_bytes == 24 * 64 * bits // 8 + scales
