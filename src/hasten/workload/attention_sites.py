"""Attention found inside a cascade, and the bytes that any program for it moves (`hasten.workload.attention_io`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from hasten import dtypes
from hasten.workload.attention_io import best_program
from hasten.workload.einsum import Cascade, Op


@dataclass(frozen=True)
class Site:
    """Attention found in a cascade.

    Args:
        einsums: places of the Einsums between and with its two products.
        heads: groups of heads that share keys and values.
        queries: of a group, all its heads'.
        keys: that they look at.
        channels: of queries and keys.
        values: channels of values.
        word: bytes of a number.
    """

    einsums: tuple[int, ...]
    heads: int
    queries: int
    keys: int
    channels: int
    values: int
    word: float

    def floor(self, capacity: float) -> float:
        """Bytes that any program moves with ``capacity`` bytes of fast memory (`attention_io.lower_bound`)."""
        m = max(1, int(capacity / self.word))
        d = math.sqrt(self.channels * self.values)
        scores = self.queries * self.keys
        once = self.queries * (self.channels + self.values) + self.keys * (self.channels + self.values)
        return self.heads * self.word * max(once, min(scores * d * d / m, scores * d / math.sqrt(m)))

    def fused(self, capacity: float) -> float:
        """Bytes that the best program known moves, never less than each operand once."""
        m = max(8, int(capacity / self.word))
        d = max(1, round(math.sqrt(self.channels * self.values)))
        once = (self.queries + self.keys) * (self.channels + self.values)
        return self.heads * self.word * max(once, best_program(self.queries, d, m, keys=self.keys)[1])


def sites(cascade: Cascade) -> list[Site]:
    """Where a cascade computes attention: a product, an exponential of what it gave less a maximum, a product."""
    source: dict[str, int] = {}
    found = []
    for index, einsum in enumerate(cascade.einsums):
        if einsum.op is Op.MATMUL:
            for access in einsum.inputs:
                chain = _back_to_product(cascade, source, access.tensor)
                if chain is None:
                    continue
                site = _site(cascade, chain, index)
                if site is not None:
                    found.append(site)
                break
        source[einsum.output.tensor] = index
    return found


def _back_to_product(cascade: Cascade, source: Mapping[str, int], tensor: str) -> list[int] | None:
    """Einsums from a product through an exponential to ``tensor``, in order; None when there is no such chain."""
    chain: list[int] = []
    exponential = False
    while tensor in source:
        index = source[tensor]
        einsum = cascade.einsums[index]
        chain.append(index)
        if einsum.op is Op.MATMUL:
            return chain[::-1] if exponential else None
        if einsum.op not in (Op.ELEMENTWISE, Op.COPY) or len(chain) > 12 or not einsum.inputs:
            return None
        exponential = exponential or einsum.map == "sub-exp"
        tensor = max(einsum.inputs, key=einsum.touched).tensor
    return None


def _site(cascade: Cascade, chain: list[int], last: int) -> Site | None:
    first, second = cascade.einsums[chain[0]], cascade.einsums[last]
    weights = next((a for a in second.inputs if cascade.producer.get(a.tensor) in chain), None)
    values = next((a for a in second.inputs if a is not weights), None)
    if weights is None or values is None or len(first.inputs) < 2:
        return None
    q, *parts = first.inputs  # keys may lie in two tensors
    channels = math.prod(first.sizes[r] for r in first.reduced)
    keys = math.prod(second.sizes[r] for r in second.reduced)
    held = sum(map(first.touched, parts))
    if held > first.touched(q) and keys * channels == 0:
        return None
    heads = max(1, held // max(1, keys * channels))
    queries = first.touched(first.output) // max(1, heads * keys)
    width = second.touched(values) // max(1, heads * keys)
    word = dtypes.nbytes(1000, cascade.tensors[q.tensor].dtype) / 1000
    if min(queries, keys, channels, width) < 1:
        return None
    return Site(tuple(range(chain[0], last + 1)), heads, queries, keys, channels, width, word)
