"""How often a dense layer's multipliers can be used: the reuse factors of hls4ml's engines (arXiv 2511.05615).

A layer of n inputs and m outputs whose multipliers are used r times each has n m / r of them.
"""

from __future__ import annotations


def valid_reuse(inputs: int, outputs: int) -> list[int]:
    """The reuse factors that an engine of a dense layer can have, in order."""
    products = inputs * outputs
    found = []
    for reuse in range(1, products + 1):
        if products % reuse:
            continue
        whole = reuse % inputs == 0 if reuse >= inputs else products // reuse % outputs == 0
        if whole:
            found.append(reuse)
    return found


def nearest_reuse(inputs: int, outputs: int, asked: int) -> int:
    """The valid reuse factor nearest to the one asked for; of two the smaller."""
    return min(valid_reuse(inputs, outputs), key=lambda reuse: (abs(reuse - asked), reuse))
