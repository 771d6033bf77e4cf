"""How long one eager operator takes, read from the curves a probe measured.

Each operator is looked up by the name torch gives it; what was not measured itself is charged as the
measured operator nearest to it. Without a curve the caller falls back on the roofline alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hasten.hardware import Device
from hasten.workload import Einsum, Op

# Operators that cost what another one costs, because they do the same work in the same loop.
_LIKE = {
    "sub": "add",
    "rsub": "add",
    "maximum": "add",
    "minimum": "add",
    "where": "add",
    "masked_fill": "add",
    "logical_and": "add",
    "bitwise_and": "add",
    "addcmul": "add",
    "lerp": "add",
    "copy": "clone",
    "contiguous": "clone",
    "reshape": "clone",
    "repeat": "clone",
    "stack": "cat",
    "fill": "zeros",
    "zero": "zeros",
    "ones": "zeros",
    "full": "zeros",
    "full_like": "zeros",
    "zeros_like": "zeros",
    "ones_like": "zeros",
    "new_zeros": "zeros",
    "new_ones": "zeros",
    "arange": "zeros",
    "clamp": "relu",
    "clamp_min": "relu",
    "abs": "neg",
    "hardtanh": "relu",
    "threshold": "relu",
    "leaky_relu": "relu",
    "hardsigmoid": "hardswish",
    "sqrt": "rsqrt",
    "reciprocal": "rsqrt",
    "sin": "cos",
    "log2": "log",
    "log1p": "log",
    "exp2": "exp",
    "expm1": "exp",
    "selective_scan": "exp",
    "erf": "gelu",
    "elu": "exp",
    "mish": "softplus",
    "rational": "gelu",
    "log_softmax": "softmax",
    "safe_softmax": "softmax",
    "amin": "amax",
    "max": "amax",
    "min": "amax",
    "any": "amax",
    "all": "amax",
    "argmin": "argmax",
    "topk": "argmax",
    "sort": "argmax",
    "var": "native_layer_norm",
    "var_mean": "native_layer_norm",
    "linalg_vector_norm": "mean",
    "norm": "mean",
    "prod": "sum",
    "cumprod": "cumsum",
    "logcumsumexp": "cumsum",
    "layer_norm": "native_layer_norm",
    "rms_norm": "native_layer_norm",
    "fused_rms_norm": "native_layer_norm",
    "native_group_norm": "native_layer_norm",
    "group_norm": "native_layer_norm",
    "index_select": "embedding",
    "index": "embedding",
    "gather": "embedding",
    "rnn_relu": "rnn_tanh",
}


def name(einsum: Einsum) -> str:
    """The operator's bare name: ``aten::_softmax`` is ``softmax``, ``aten::add_`` is ``add``."""
    return einsum.source.split("::")[-1].split(".")[0].strip("_")


def operator_seconds(group: Sequence[Einsum], device: Device, dtype: str, cold: bool = False) -> float | None:
    """Seconds of one eager launch of the operator that ``group`` describes, its launch included.

    Args:
        group: the Einsums of one operator.
        device: whose curves are read.
        dtype: number format of the computation.
        cold: whether the weights of a matrix product come from main memory.

    Returns:
        The time with all other operands in cache, or None where the device has no curve for it.
    """
    if not device.curves:
        return None
    first = group[0]
    contractions = [e for e in group if e.op in (Op.MATMUL, Op.CONV)]
    if "t" in first.sizes and len(contractions) == 2:
        s = contractions[1].sizes
        operator = name(first)
        operator = operator if (operator, "fp32") in device.curve_table else _LIKE.get(operator, "lstm")
        return _at(device, operator, "fp32", s["t"], s["b"], s["k"])
    if len(contractions) == 2:
        return _attention(contractions[0], contractions[1], device)
    if len(contractions) > 2:  # a kernel of several products, as a recurrence in chunks is
        parts = [_product(e, device, dtype, cold) for e in contractions]
        return None if any(p is None for p in parts) else sum(p for p in parts if p is not None)
    if contractions:
        e = contractions[0]
        return _convolution(e, device) if e.op is Op.CONV else _product(e, device, dtype, cold)
    return _rest(group, device)


def least_seconds(group: Sequence[Einsum], device: Device, dtype: str) -> float | None:
    """`operator_seconds` of the smallest operator of the kind: what it takes to come to it."""
    smallest = [replace(e, ranks=tuple((rank, 1) for rank, _ in e.ranks)) for e in group]
    return operator_seconds(smallest, device, dtype)


def _at(device: Device, operation: str, dtype: str, *sizes: float) -> float | None:
    curve = device.curve_table.get((operation, dtype)) or device.curve_table.get((operation, "fp32"))
    return None if curve is None else curve.at(*sizes)


def _product(einsum: Einsum, device: Device, dtype: str, cold: bool) -> float | None:
    sizes = einsum.sizes
    m, n, k = sizes.get("m", 1), sizes.get("n", 1), sizes.get("k", 1)
    if (batch := sizes.get("b", 1)) > 1:
        if all("b" in access.ranks for access in einsum.inputs[:2]):
            return _at(device, "bmm", dtype, batch, m, n, k)
        m *= batch  # one weight for the whole batch: its rows are rows
    if "n" not in sizes:  # a matrix times a vector: the matrix plays the weight
        m, n = 1, m
    hot = _at(device, "mm", dtype, m, n, k)
    if not cold or hot is None:
        return hot
    return max(hot, _at(device, "mm cold", dtype, m, n, k) or 0.0)


def step_attention_seconds(scores: Einsum, values: Einsum, device: Device, cache: str) -> float | None:
    """Seconds of attention within a compiled step, which reads keys and values as the cache has them.

    Args:
        scores, values: the two products of attention.
        device: whose curves are read.
        cache: number format of keys and values.

    Returns:
        None where the device has no curve for it.
    """
    s = scores.sizes
    heads = math.prod(v for r, v in s.items() if r not in ("p", "d", "m", "e", "r"))
    size = (s.get("e", 64) + values.sizes.get("f", 64)) / 2
    curve = device.curve_table.get(("step attention", "fp16" if cache == "bf16" else cache))
    rows = s.get("p", 1) * s.get("d", 1)
    return None if curve is None else curve.at(heads, s.get("r", 1), rows, s.get("m", 1), size, shrinks=True)


def _attention(scores: Einsum, values: Einsum, device: Device) -> float | None:
    s = scores.sizes
    heads = math.prod(v for r, v in s.items() if r not in ("p", "m", "e"))
    size = (s.get("e", 64) + values.sizes.get("f", 64)) / 2
    return _at(device, "attention", "fp32", heads, s.get("p", 1), s.get("m", 1), size)


def _convolution(einsum: Einsum, device: Device) -> float | None:
    sizes = einsum.sizes
    transposed = any(r.startswith("i") for r in sizes)
    places = math.prod(v for r, v in sizes.items() if r[0] in "io" and r[1:].isdigit()) * sizes["n"]
    taps = math.prod(v for r, v in sizes.items() if r[0] == "r" and r[1:].isdigit())
    groups, inputs, outputs = sizes["g"], sizes["c"], sizes["k"]
    over: tuple[int, ...]
    if groups > 1 and inputs <= 4 and not transposed:
        operation, nominal, over = "depthwise3x3", 9, (groups * outputs, places)
    elif taps == 1:
        operation, nominal, over = "conv1x1", 1, (inputs, outputs, places)
    else:
        operation, nominal, over = "conv3x3", 9, (inputs, outputs, places)
    floor = _at(device, operation, "fp32", *(1 for _ in over))
    seconds = _at(device, operation, "fp32", *over)
    if seconds is None or floor is None:
        return None
    each = max(seconds - floor, 0.0) * taps / nominal
    return floor + each * (1 if operation == "depthwise3x3" else groups)


def _rest(group: Sequence[Einsum], device: Device) -> float | None:
    first, last = group[0], group[-1]
    operator = name(first)
    table = device.curve_table
    if "batch_norm" in operator:
        operator = "native_batch_norm"
    like = operator if (operator, "fp32") in table else _LIKE.get(operator, "")
    if "pool" in operator:
        out = math.prod(first.sizes[r] for r in first.output.ranks)
        channels = first.ranks[1][1] if len(first.output.ranks) > 2 else 1
        seconds = _at(device, "max_pool2d", "fp32", channels, out / max(channels, 1))
        taps = first.points / max(out, 1)
        return None if seconds is None else seconds * max(taps / 4, 1.0)
    if (like, "fp32") not in table:
        like = _nearest(first)
    curve = table.get((like, "fp32"))
    if curve is None:
        return None
    if like == "native_batch_norm":
        channels = first.ranks[1][1] if len(first.ranks) > 1 else 1
        return curve.at(channels, first.points / max(channels, 1))
    if like == "embedding":
        columns = last.ranks[-1][1] if last.ranks else 1
        return curve.at(max(last.points / max(columns, 1), 1), columns)
    if curve.axes == ("elements",):
        return curve.at(max(1, last.points))
    columns = _folded(group)
    return curve.at(max(first.points / columns, 1), columns)


def _nearest(einsum: Einsum) -> str:
    """The measured operator that stands in for one that nobody listed."""
    match einsum.op:
        case Op.COPY | Op.SCATTER:
            return "clone" if einsum.inputs else "zeros"
        case Op.GATHER:
            return "embedding"
        case Op.REDUCE:
            return "mean"
        case Op.SCAN:
            return "cumsum"
        case _:
            return "add" if len(einsum.inputs) > 1 else "relu"


def _folded(group: Sequence[Einsum]) -> int:
    """Length of the ranks that an operator reduces or scans."""
    for einsum in group:
        ranks = einsum.reduced or einsum.iterative
        if ranks:
            return max(1, math.prod(einsum.sizes[r] for r in ranks))
    return max(1, group[0].ranks[-1][1]) if group[0].ranks else 1
