"""A layer's mapping on an array, and the array itself: tiles, order of loops, what is spread and what stays."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from hasten.cost.chips.dataflow import ConvShape
from hasten.cost.chips.loop_nest import (
    BufferedArray,
    LoopMapping,
    Nest,
    Operand,
    buffer_bytes,
    convolution,
    mapping_cost,
)
from hasten.errors import HastenError
from hasten.search.parameter import Params, categorical, ordinal
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Space


def product_nest(rows: int, columns: int, inner: int) -> Nest:
    """The loops of C (rows, columns) = A (rows, inner) B (inner, columns)."""
    left, right, out = (
        Operand(name, tuple(((r, 1),) for r in ranks)) for name, ranks in (("A", "mk"), ("B", "kn"), ("C", "mn"))
    )
    return Nest((("m", rows), ("n", columns), ("k", inner)), (left, right), out)


LAYERS = {
    "alexnet-conv2": convolution(ConvShape(256, 48, 5, 5, 27, 27)),
    "resnet-conv3": convolution(ConvShape(128, 128, 3, 3, 28, 28)),
    "mobilenet-pointwise": convolution(ConvShape(256, 128, 1, 1, 28, 28)),
    "smollm2-up": product_nest(512, 1536, 576),
}
"""Layers by name."""

CHIP = BufferedArray(16, 16, 128 * 1024, 16.0)
"""The array that is mapped to where it is not searched."""


def space(nest: Nest, chip: bool = True) -> Space:
    """What may be chosen for a nest: tiles of powers of two, any order of the loops, and with ``chip`` the array."""
    tiled = [(rank, size) for rank, size in nest.sizes if rank not in ("r", "s")]
    ranks = [rank for rank, _ in tiled]
    sides = (8, 12, 16, 24, 32)
    array = [
        ordinal("array_rows", sides),
        ordinal("array_columns", sides),
        ordinal("buffer", [2**i * 1024 for i in range(4, 10)]),
    ]
    return Space(
        [
            *(array if chip else ()),
            *(
                ordinal(f"tile_{r}", [*(2**i for i in range((size - 1).bit_length()) if 2**i < size), size])
                for r, size in tiled
            ),
            categorical("order", [" ".join(p) for p in itertools.permutations(ranks)]),
            categorical("spread_rows", ranks),
            categorical("spread_columns", ranks),
            categorical("stays", [o.name for o in nest.operands]),
        ]
    )


def problem(layer: str | Nest = "resnet-conv3", *, chip: BufferedArray | None = None) -> Problem:
    """Least time and energy of a layer, and least area where the array is searched too.

    Args:
        layer: one of `LAYERS`, or a nest of one's own (`hasten.cost.chips.loop_nest`).
        chip: the array; searched when None.

    Raises:
        HastenError: an unknown layer.
    """
    if isinstance(layer, str) and layer not in LAYERS:
        raise HastenError(f"there is no layer {layer!r}: choose one of {', '.join(LAYERS)}, or give a nest")
    name, nest = (layer, LAYERS[layer]) if isinstance(layer, str) else ("nest", layer)

    def evaluate(params: Params) -> Mapping[str, Any]:
        array, mapping = of(params, chip)
        try:
            cost = mapping_cost(nest, array, mapping)
        except HastenError as error:
            # Steps: a tile is halved until all fit, a rank leaves a side.
            halvings = max(0.0, math.log2(buffer_bytes(nest, mapping) / array.buffer))
            raise Infeasible(str(error), halvings + (mapping.rows == mapping.columns)) from None
        found = {"time": cost.latency, "energy": cost.energy, "area": array.area * 1e6}
        return {**found, "traffic": cost.bytes["memory"], "utilization": cost.utilization}

    objectives = [Objective("time", unit="s"), Objective("energy", unit="J"), Objective("area", unit="mm^2")]
    return Problem(
        f"mapper-{name}",
        space(nest, chip is None),
        tuple(objectives if chip is None else objectives[:2]),
        evaluate,
        identity={"nest": repr(nest), "chip": repr(chip)},
        units={"traffic": "B"},
    )


def of(params: Mapping[str, Any], chip: BufferedArray | None = None) -> tuple[BufferedArray, LoopMapping]:
    """The array and the mapping that a point stands for."""
    array = chip or BufferedArray(int(params["array_rows"]), int(params["array_columns"]), int(params["buffer"]))
    return array, LoopMapping(
        tile={k.removeprefix("tile_"): int(v) for k, v in params.items() if k.startswith("tile_")},
        order=tuple(str(params["order"]).split()),
        rows=str(params["spread_rows"]),
        columns=str(params["spread_columns"]),
        stays=str(params["stays"]),
    )
