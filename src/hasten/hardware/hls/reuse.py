"""How often a dense layer's multipliers can be used: the reuse factors of hls4ml's engines (arXiv 2511.05615).

A layer of n inputs and m outputs whose multipliers are used r times each has n m / r of them.
"""

from __future__ import annotations

import math

from hasten.errors import HastenError


def valid_reuse(inputs: int, outputs: int) -> list[int]:
    """The reuse factors that an engine of a dense layer can have, in order.

    Raises:
        HastenError: a layer without inputs or outputs.
    """
    if inputs < 1 or outputs < 1:
        raise HastenError(
            f"a layer of {inputs} inputs and {outputs} outputs multiplies nothing: give at least 1 of each"
        )
    products = inputs * outputs
    small = [n for n in range(1, math.isqrt(products) + 1) if products % n == 0]
    found = []
    for reuse in [*small, *(products // n for n in reversed(small) if n * n < products)]:
        whole = reuse % inputs == 0 if reuse >= inputs else products // reuse % outputs == 0
        if whole:
            found.append(reuse)
    return found


def nearest_reuse(inputs: int, outputs: int, asked: int) -> int:
    """The valid reuse factor nearest to the one asked for; of two the smaller.

    Raises:
        HastenError: see `valid_reuse`.
    """
    return min(valid_reuse(inputs, outputs), key=lambda reuse: (abs(reuse - asked), reuse))
