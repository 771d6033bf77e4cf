"""Seconds of operators over grids of their sizes, as curves."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hasten.hardware.curve import Curve
from hasten.hardware.device import packed_key
from hasten.hardware.machine import MIB, caches, cold_bytes, memory_size
from hasten.hardware.memory_rates import blocks_by_bits
from hasten.hardware.step_curves import step_curves
from hasten.hardware.timing import filled, measured_curve, seconds
from hasten.kernels import gate
from hasten.kernels.compiled import native
from hasten.kernels.packed_linear import fast_bf16, multiply, native_matrix
from hasten.kernels.tiles import takes_tiles, tile_shapes

_GROUP = 32
# Number format of a weight -> what it is kept in, its bits, weights in one of these.
_STORED = {
    "fp32": (torch.float32, 32, 1),
    "bf16": (torch.bfloat16, 16, 1),
    "int8": (torch.int8, 8, 1),
    "int4": (torch.uint8, 4, 2),
}
_ELEMENTS = (1, 1024, 8192, 32768, 65536, 262144, 1 << 20, 1 << 21)


def _curve(
    operation: str,
    axes: Mapping[str, Sequence[int]],
    make: Callable[..., Callable[[], object]],
    dtype: str = "fp32",
    budget: float = 0.003,
) -> Curve:
    """Times ``make(*sizes)()`` at every point of the grid."""
    return measured_curve(operation, axes, lambda *sizes: seconds(make(*sizes), budget), dtype)


def _elementwise() -> list[Curve]:
    def unary(function: Callable[[Any], object]) -> Callable[[int], Callable[[], object]]:
        def make(count: int) -> Callable[[], object]:
            x = filled(count)
            return lambda: function(x)

        return make

    def binary(function: Callable[[Any, Any], object]) -> Callable[[int], Callable[[], object]]:
        def make(count: int) -> Callable[[], object]:
            x, y = filled(count), filled(count)
            return lambda: function(x, y)

        return make

    functional = torch.nn.functional
    ones: dict[str, Callable[[Any], object]] = {
        "relu": torch.relu,
        "exp": torch.exp,
        "log": torch.log,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "silu": functional.silu,
        "gelu": functional.gelu,
        "hardswish": functional.hardswish,
        "rsqrt": torch.rsqrt,
        "cos": torch.cos,
        "pow": lambda x: x.pow(2),
        "neg": torch.neg,
        "softplus": functional.softplus,
    }
    twos: dict[str, Callable[[Any, Any], object]] = {"add": torch.add, "mul": torch.mul, "div": torch.div}
    axes = {"elements": _ELEMENTS}
    found = [_curve(name, axes, unary(f)) for name, f in ones.items()]
    found += [_curve(name, axes, binary(f)) for name, f in twos.items()]
    return found


def _rowwise() -> list[Curve]:
    def over(function: Callable[[Any], object]) -> Callable[[int, int], Callable[[], object]]:
        def make(rows: int, columns: int) -> Callable[[], object]:
            x = filled(rows, columns)
            return lambda: function(x)

        return make

    def layer_norm(rows: int, columns: int) -> Callable[[], object]:
        x, w = filled(rows, columns), filled(columns)
        return lambda: torch.layer_norm(x, (columns,), w, w)

    axes = {"rows": (1, 32, 1024), "columns": (32, 512, 4096)}
    rows: dict[str, Callable[[Any], object]] = {
        "softmax": lambda x: torch.softmax(x, -1),
        "mean": lambda x: x.mean(-1, keepdim=True),
        "sum": lambda x: x.sum(-1),
        "amax": lambda x: x.amax(-1),
        "argmax": lambda x: x.argmax(-1),
        "cumsum": lambda x: x.cumsum(-1),
    }
    found = [_curve(name, axes, over(f)) for name, f in rows.items()]
    found.append(_curve("native_layer_norm", axes, layer_norm))
    channels = {"channels": (32, 512), "pixels": (49, 784, 12544)}

    def batch_norm(count: int, pixels: int) -> Callable[[], object]:
        x, w = filled(1, count, pixels, 1), filled(count)
        return lambda: torch.nn.functional.batch_norm(x, w, w, w, w)

    def max_pool(count: int, pixels: int) -> Callable[[], object]:
        side = math.isqrt(pixels)
        x = filled(1, count, 2 * side, 2 * side)
        return lambda: torch.nn.functional.max_pool2d(x, 2)

    found.append(_curve("native_batch_norm", channels, batch_norm))
    found.append(_curve("max_pool2d", channels, max_pool))
    return found


def _copies() -> list[Curve]:
    def transposed(count: int) -> Callable[[], object]:
        # What attention does to its heads: rows of 64 elements change places.
        x = filled(max(count // 512, 1), 8, 64).transpose(0, 1)
        return x.contiguous if count >= 512 else filled(count).clone

    def cat(count: int) -> Callable[[], object]:
        x, y = filled(max(count // 2, 1)), filled(max(count // 2, 1))
        return lambda: torch.cat((x, y))

    def fill(count: int) -> Callable[[], object]:
        return lambda: torch.zeros(count)

    def embedding(rows: int, columns: int) -> Callable[[], object]:
        table, ids = filled(4096, columns), torch.randint(4096, (rows,))
        return lambda: torch.embedding(table, ids)

    def narrow(count: int) -> Callable[[], object]:
        x = filled(count)
        return lambda: x.to(torch.bfloat16)

    axes = {"elements": _ELEMENTS}
    return [
        _curve("clone", axes, transposed),
        _curve("cat", axes, cat),
        _curve("zeros", axes, fill),
        _curve("_to_copy", axes, narrow),
        _curve("embedding", {"rows": (1, 32, 512, 4096), "columns": (64, 512, 2048)}, embedding),
    ]


def _product(dtype: Any) -> Callable[[int, int, int], Callable[[], object]]:
    """x (1, m, k) times a weight stored (n, k), as a linear layer multiplies."""

    def make(m: int, n: int, k: int) -> Callable[[], object]:
        x, w = filled(1, m, k).to(dtype), filled(n, k).to(dtype)
        return lambda: torch.nn.functional.linear(x, w)

    return make


def _products() -> list[Curve]:
    axes = {"m": (1, 4, 16, 64, 256), "n": (16, 64, 256, 1024, 4096), "k": (16, 64, 256, 1024, 4096)}
    return [_curve("mm", axes, _product(torch.float32))]


def _cold_products() -> list[Curve]:
    """The same with weights that no cache holds, as in a model larger than the caches: the processor waits
    for them, and how long depends on how the product reads them."""
    found = []
    cached = sum(size for _, size, _ in caches())
    size = int(min(max(4 * cached, 96 * MIB), 256 * MIB, memory_size() // 8))
    axes = {"m": (1, 4, 16, 64, 256), "n": (128, 512, 2048), "k": (128, 512, 2048)}
    for dtype, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        pool = torch.ones(size // kind.itemsize, dtype=kind)

        def make(m: int, n: int, k: int, pool: Any = pool, kind: Any = kind) -> Callable[[], object]:
            count = len(pool) // (n * k)
            weights = pool[: count * n * k].view(count, n, k).unbind()
            x, turn = torch.ones(1, m, k, dtype=kind), itertools.cycle(weights)
            return lambda: torch.nn.functional.linear(x, next(turn))

        found.append(_curve("mm cold", axes, make, dtype))
    return found


def _narrow_products() -> list[Curve]:
    axes = {"m": (1, 16, 256), "n": (64, 512, 4096), "k": (64, 512, 4096)}
    found = [_curve("mm", axes, _product(torch.bfloat16), "bf16")]
    try:
        x, w = torch.ones(64, 512, dtype=torch.int8), torch.ones(512, 512, dtype=torch.int8)
        torch._int_mm(x, w)
    except (RuntimeError, AttributeError):
        return found  # this build has no int8 product

    def int8(m: int, n: int, k: int) -> Callable[[], object]:
        x, w = torch.ones(m, k, dtype=torch.int8), torch.ones(n, k, dtype=torch.int8).t()
        return lambda: torch._int_mm(x, w)

    few = {"m": (32, 256), "n": (512, 2048), "k": (512, 2048)}
    found.append(_curve("mm", few, int8, "int8"))
    return found


def _packed_products() -> list[Curve]:
    """Products with packed weights from main memory as torch's operators, by what is stored and what rows are rounded
    to.

    ``packed``, ``packed bf16`` and ``packed int8`` are of many rows, however a kernel unpacks what it multiplies;
    ``packed launch`` is what calling the operator costs. Where nothing is compiled ``few packed`` is of few rows,
    without that cost, as `_step_products` has it elsewhere.
    """
    few = {"m": (1, 4, 16), "n": (512, 2048, 16384), "k": (512, 2048)}
    many = {"m": (24, 384), "n": (128, 512, 2048), "k": (512, 2048)}
    # What rows are rounded to where it pays here; other products are priced as unpacking and multiplying.
    wide = "bf16" if fast_bf16() else ""
    compiled = native() is not None
    matrices = _matrices()
    turns = itertools.count()

    def product(m: int, n: int, k: int, name: str, rounded: str) -> Callable[[], object]:
        kind, bits, each = _STORED[name]
        shape: tuple[int, ...] = (n, k // each)
        numbers: tuple[int, ...] = (n, k // _GROUP)
        if rounded == "int8" and compiled:  # as a compiled step has them
            shape, numbers = tile_shapes(n, k, bits)
        weights, x = [w.view(shape) for w in matrices(n, k // each, kind)], filled(1, m, k)
        if bits == 32:
            return lambda: torch.ops.hasten.plain_linear(x, weights[next(turns) % len(weights)])
        scales = [s.view(numbers) for s in matrices(n, k // _GROUP, torch.float16)] if bits < 16 else [None]

        def call() -> object:
            turn = next(turns)
            own = scales[turn % len(scales)]
            mins = scales[(turn + len(scales) // 2) % len(scales)] if bits == 4 else None
            weight = weights[turn % len(weights)]
            return torch.ops.hasten.packed_linear(
                x, weight, own, mins, bits, _GROUP, rounded != "", rounded == "int8"
            )  # fmt: skip

        return call

    launch = seconds(product(1, 32, 32, "int4", ""))
    found = [measured_curve("packed launch", {"m": (1,)}, lambda _: launch)]
    for name, (_, bits, _) in _STORED.items():
        if bits == 32 and not hasattr(torch.ops.hasten, "plain_linear"):
            continue
        for rounded in () if compiled else ("", "int8") if bits < 16 else ("",):
            made = functools.partial(product, name=name, rounded=rounded)
            found.append(_without(_curve(f"few packed {rounded}".rstrip(), few, made, name), launch))
        for rounded in {32: (), 16: (wide,)}.get(bits, (wide, "int8")):
            made = functools.partial(product, name=name, rounded=rounded)
            found.append(_curve(f"packed {rounded}".rstrip(), many, made, name))
    return found


def _without(curve: Curve, launch: float) -> Curve:
    """A curve whose times no longer have the launch in them, which some were little more than."""
    return curve.model_copy(update={"seconds": tuple(max(t - launch, 0.2 * t) for t in curve.seconds)})


def _matrices() -> Callable[..., list[torch.Tensor]]:
    """Makes matrices (rows, columns) of a type that lie apart in one memory larger than any cache.

    Each call of what is timed takes the next one. It takes a few dozen of them at most unless all are asked for: to
    make views of thousands takes longer than most calls. Packed weights lie in huge pages where they are large, as
    those of a model do.
    """

    @functools.cache
    def pool(huge: bool) -> torch.Tensor:
        # One pattern that is an ordinary number in every format.
        made = torch.full((192 * MIB,), 0x3C, dtype=torch.uint8)
        return gate.in_huge_pages(made) if huge else made

    def matrices(rows: int, columns: int, kind: torch.dtype, most: int = 256) -> list[torch.Tensor]:
        size = rows * columns * kind.itemsize
        of = pool(size >= gate.LARGE and kind is not torch.float32)
        count = max(1, len(of) // size)
        every = of[: count * size].view(kind).view(count, rows, columns)
        return list(every[:: max(1, count // most)].unbind())

    return matrices


def _compiled_blocks() -> dict[float, tuple[int, int]]:
    """`blocks_by_bits` where products of them are compiled for this processor."""
    module = native()
    return {} if module is None or module.isa() == "generic" else blocks_by_bits()


def _step_products() -> list[Curve]:
    """Products as a compiled step makes them, without what calling one alone costs, by what is stored and what rows are
    rounded to.

    ``few packed`` and ``few packed int8`` of few rows, ``prompt`` and ``prompt int8`` of many, of weights in blocks by
    their bits. torch's operators take other ways of many rows; within a step a piece of a prompt goes through the same
    kernels as single tokens. Small matrices read memory slower than large ones.
    """
    module = native()
    if module is None:
        return []
    matrices = _matrices()
    turns = itertools.count()
    few: dict[str, tuple[int, ...]] = {"m": (1, 4, 16), "n": (128, 512, 2048, 16384), "k": (512, 2048)}
    # Of 24 rows a kernel wastes a part that it does not of more; beyond 128 each row takes the same.
    many: dict[str, tuple[int, ...]] = {"m": (24, 128), "n": (128, 512, 2048), "k": (512, 2048)}

    @functools.cache
    def weights_of(
        n: int, k: int, cold: bool, kind: Any, bits: int, at_once: int, nbytes: int, int8: bool
    ) -> list[Any]:
        """One, or as many as no cache holds; ``nbytes`` elements of ``kind`` hold ``at_once`` weights."""
        columns = k // at_once * nbytes
        most = max(1, cold_bytes() // (n * columns * kind.itemsize)) if cold else 1
        weights = matrices(n, columns, kind, most)
        scales: list[Any] = matrices(n, k // _GROUP, torch.float16, most) if bits in (8, 4) else [None]
        if int8 and takes_tiles(bits):
            shape, numbers = tile_shapes(n, k, bits)
            weights, scales = [w.view(shape) for w in weights], [s if s is None else s.view(numbers) for s in scales]
        mins = scales[len(scales) // 2 :] if bits == 4 else [None]
        return [
            native_matrix(w, scales[i % len(scales)], mins[i % len(mins)], bits, _GROUP, None, int8)
            for i, w in enumerate(weights)
        ]

    def product(m: int, n: int, k: int, cold: bool = True, **form: Any) -> Callable[[], object]:
        weights, x, y = weights_of(n, k, cold, **form), filled(m, k), torch.empty(m, n)
        return lambda: multiply(weights[next(turns) % len(weights)], x, y)

    every: list[tuple[str, str, dict[str, Any]]] = []
    for name, (kind, bits, each) in _STORED.items():
        for int8 in (False, True) if bits < 16 else (False,):
            form: dict[str, Any] = {"kind": kind, "bits": bits, "at_once": each, "nbytes": 1, "int8": int8}
            every.append(("int8" if int8 else "", name, form))
    for width, (nbytes, number) in _compiled_blocks().items():
        form = {"kind": torch.uint8, "bits": number, "at_once": 256, "nbytes": nbytes, "int8": True}
        every.append((packed_key(width, "int8"), "uint8", form))
    found = []
    for key, name, form in every:
        make: Callable[..., Callable[[], object]] = functools.partial(product, **form)
        launch = seconds(make(1, 32, 256, cold=False))
        # In blocks there are many formats, which differ in what a block takes.
        sizes = few["n"] if name != "uint8" else (few["n"][0], few["n"][-1])
        # Where no dot products of bytes are compiled, torch multiplies the rows of prompts.
        for operation, axes in (
            ("few packed", {**few, "n": sizes}),
            *((("prompt", many),) if module.isa() != "generic" else ()),
        ):
            found.append(_without(_curve(f"{operation} {key}".rstrip(), axes, make, name), launch))
    return found


def _batched() -> list[Curve]:
    def make(batch: int, m: int, n: int, k: int) -> Callable[[], object]:
        x, y = filled(batch, m, k), filled(batch, k, n)
        return lambda: torch.bmm(x, y)

    axes = {"batch": (4, 32), "m": (1, 32, 256), "n": (16, 64, 512), "k": (16, 64, 512)}
    return [_curve("bmm", axes, make)]


def _attention() -> list[Curve]:
    def make(heads: int, queries: int, keys: int, size: int) -> Callable[[], object]:
        q = filled(1, heads, queries, size)
        k, v = filled(1, heads, keys, size), filled(1, heads, keys, size)
        return lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)

    axes = {"heads": (4, 16), "queries": (1, 16, 64, 256), "keys": (64, 256, 1024), "size": (32, 64, 128)}
    return [_curve("attention", axes, make)]


def _convolutions() -> list[Curve]:
    def dense(taps: int) -> Callable[[int, int, int], Callable[[], object]]:
        def make(inputs: int, outputs: int, pixels: int) -> Callable[[], object]:
            side = math.isqrt(pixels)
            x, w = filled(1, inputs, side, side), filled(outputs, inputs, taps, taps)
            return lambda: torch.conv2d(x, w, padding=taps // 2)

        return make

    def depthwise(channels: int, pixels: int) -> Callable[[], object]:
        side = math.isqrt(pixels)
        x, w = filled(1, channels, side, side), filled(channels, 1, 3, 3)
        return lambda: torch.conv2d(x, w, padding=1, groups=channels)

    pixels = (16, 144, 1024, 6400)
    dense_axes = {"inputs": (3, 24, 96, 384), "outputs": (16, 64, 256, 768), "pixels": pixels}
    return [
        _curve("conv1x1", dense_axes, dense(1)),
        _curve("conv3x3", dense_axes, dense(3)),
        _curve("depthwise3x3", {"channels": (16, 64, 256, 1024), "pixels": pixels}, depthwise),
    ]


def _recurrent() -> list[Curve]:
    def layer(kind: Callable[..., Any]) -> Callable[[int, int, int], Callable[[], object]]:
        def make(steps: int, batch: int, size: int) -> Callable[[], object]:
            module, x = kind(size, size).eval(), filled(steps, batch, size)
            return lambda: module(x)

        return make

    axes = {"steps": (4, 48), "batch": (1, 8, 32), "size": (64, 256, 640)}
    kinds = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn_tanh": torch.nn.RNN}
    return [_curve(name, axes, layer(kind)) for name, kind in kinds.items()]


STEPS: tuple[tuple[str, Callable[[], list[Curve]]], ...] = (
    ("matrix products", _products),
    ("matrix products from main memory", _cold_products),
    ("convolutions", _convolutions),
    ("attention", _attention),
    ("element-wise functions", _elementwise),
    ("reductions and norms", _rowwise),
    ("copies and gathers", _copies),
    ("batched products", _batched),
    ("recurrent layers", _recurrent),
    ("matrix products of narrow formats", _narrow_products),
    ("products of packed weights", _packed_products),
    ("products within a step", _step_products),
    ("attention within a step", step_curves),
)
"""What the probe times, by name, in its order."""
