"""Affine index expressions: by which numbers an Einsum reads or writes one dimension of a tensor."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.errors import HastenError

_ENUMERATED = 1 << 22  # points of what has no formula
_SPAN = 1 << 27  # values of a dimension that are marked one by one
_PART = re.compile(
    r"""\s*(?P<sign>[+-]?)\s*(?:(?P<times>\d+)\s*\*\s*)?(?:(?P<rank>[A-Za-z_]\w*|"(?:[^"\\]|\\.)*")|(?P<number>\d+))\s*"""
)
_PLAIN_NAME = re.compile(r"[A-Za-z_]\w*\Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class AffineIndex:
    """The sum of ranks, each times a whole number, and of an offset: ``i``, ``i-1``, ``2*i+k``, ``0``.

    Args:
        terms: (rank, factor), each rank once, no factor 0.
        offset: what is added.

    Raises:
        HastenError: a rank twice, or a factor of 0.
    """

    terms: tuple[tuple[str, int], ...]
    offset: int = 0

    def __post_init__(self) -> None:
        if len(set(self.ranks)) < len(self.terms) or any(factor == 0 for _, factor in self.terms):
            raise HastenError(f"the index {self} names a rank twice or not at all: add its factors up")

    @classmethod
    def of(cls, text: str) -> AffineIndex:
        """From its text.

        Raises:
            ValueError: it is no sum of ranks and numbers; the second argument is where it stops being one.

        >>> str(AffineIndex.of("2*i + k - 1"))
        '2*i+k-1'
        """
        factors: dict[str, int] = {}
        offset = at = 0
        while at < len(text) or at == 0:
            found = _PART.match(text, at)
            if not found or (at > 0 and not found["sign"]) or (found["times"] and not found["rank"]):
                raise ValueError(f"no index: {text.strip()!r}", at)
            sign = -1 if found["sign"] == "-" else 1
            if rank := found["rank"]:
                name = json.loads(rank) if rank.startswith('"') else rank
                factors[name] = factors.get(name, 0) + sign * int(found["times"] or 1)
            else:
                offset += sign * int(found["number"])
            at = found.end()
        return cls(tuple((rank, factor) for rank, factor in factors.items() if factor), offset)

    @property
    def ranks(self) -> tuple[str, ...]:
        return tuple(rank for rank, _ in self.terms)

    @property
    def plain(self) -> str | None:
        """The rank, where the index is that rank and nothing else."""
        return self.terms[0][0] if len(self.terms) == 1 and self.terms[0][1] == 1 and not self.offset else None

    def factor(self, rank: str) -> int:
        return dict(self.terms).get(rank, 0)

    def bounds(self, sizes: Mapping[str, int], without: str = "") -> tuple[int, int]:
        """The least and the largest value, ``without`` what one rank adds."""
        ends = [factor * (sizes[rank] - 1) for rank, factor in self.terms if rank != without]
        return self.offset + sum(min(0, e) for e in ends), self.offset + sum(max(0, e) for e in ends)

    def __str__(self) -> str:
        parts = []
        for rank, factor in self.terms:
            name = rank if _PLAIN_NAME.match(rank) else json.dumps(rank)
            times = "" if abs(factor) == 1 else f"{abs(factor)}*"
            parts.append(f"{'-' if factor < 0 else '+'}{times}{name}")
        if self.offset or not parts:
            parts.append(f"{self.offset:+d}")
        return "".join(parts).removeprefix("+")


def distinct(index: Sequence[AffineIndex], sizes: Mapping[str, int], shape: Sequence[int] | None = None) -> int:
    """How many elements of a tensor an index of every dimension names, each counted once.

    Args:
        index: of every dimension.
        sizes: of the ranks; each runs from 0.
        shape: of the tensor, where what lies outside of it does not count.

    Raises:
        HastenError: too many to count where no formula holds.
    """
    dims = list(range(len(index)))
    if any(sizes[rank] < 1 for i in index for rank in i.ranks):
        return 0
    found = 1
    while dims:
        # Dimensions that share a rank depend on each other; others multiply.
        part = [dims.pop(0)]
        ranks = set(index[part[0]].ranks)
        while joined := [d for d in dims if ranks & set(index[d].ranks)]:
            part += joined
            dims = [d for d in dims if d not in joined]
            ranks.update(r for d in joined for r in index[d].ranks)
        within = [shape[d] for d in part] if shape is not None else None
        found *= _together([index[d] for d in part], sizes, within)
    return found


def _together(index: list[AffineIndex], sizes: Mapping[str, int], shape: list[int] | None) -> int:
    bounds = [i.bounds(sizes) for i in index]
    if shape is not None and all(low >= 0 and high < size for (low, high), size in zip(bounds, shape, strict=True)):
        shape = None
    if len(index) == 1:
        return _one_dimension(index[0], sizes, shape[0] if shape else None)
    ranks = list(dict.fromkeys(r for i in index for r in i.ranks))
    points = math.prod(sizes[r] for r in ranks)
    if shape is None:
        factors = np.array([[i.factor(r) for r in ranks] for i in index])
        if np.linalg.matrix_rank(factors) == len(ranks):  # no two points name the same element
            return points
    if points > _ENUMERATED:
        named = ", ".join(map(str, index))
        raise HastenError(f"the elements at [{named}] are too many to count: give the access its number of elements")
    grid = np.indices([sizes[r] for r in ranks]).reshape(len(ranks), -1)
    values = np.array([[i.factor(r) for r in ranks] for i in index]) @ grid + [[i.offset] for i in index]
    if shape is not None:
        values = values[:, ((values >= 0) & (values < np.array(shape)[:, None])).all(0)]
    return np.unique(values, axis=1).shape[1] if values.size else 0


def _one_dimension(index: AffineIndex, sizes: Mapping[str, int], size: int | None) -> int:
    """Distinct values of one index, of those in [0, size) where one is given."""
    low, high = index.bounds(sizes)
    steps = sorted((abs(factor), sizes[rank]) for rank, factor in index.terms if sizes[rank] > 1)
    if not steps:
        return 1 if size is None or 0 <= low < size else 0
    stride, length, apart = steps[0][0], 1, 1
    even, separate, reach = True, True, 0
    for factor, count in steps:
        separate &= factor > reach  # copies of what is there do not touch each other
        even &= factor % stride == 0 and factor <= stride * length
        reach += factor * (count - 1)
        length += factor // stride * (count - 1)
        apart *= count
    if even:  # every stride-th value from the least to the largest
        first = 0 if size is None else max(0, -(low // stride))
        last = length - 1 if size is None else min(length - 1, (size - 1 - low) // stride)
        return max(0, last - first + 1)
    if separate and size is None:
        return apart
    if high - low >= _SPAN:
        raise HastenError(f"the values of {index} are too many to count: give the access its number of elements")
    marked = 1  # a bit for each value above the least
    for factor, count in steps:
        made, copies = marked, 1
        while copies < count:
            more = min(copies, count - copies)
            made |= made << (factor * more)
            copies += more
        marked = made
    if size is not None:
        marked = (marked << low if low >= 0 else marked >> -low) & ((1 << size) - 1)
    return marked.bit_count()
