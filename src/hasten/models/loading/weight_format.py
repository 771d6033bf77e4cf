"""How one matrix of weights is kept: its codes, and what is kept beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from hasten import dtypes


class KeptTensor(NamedTuple):
    """A tensor that is kept in a weight's stead: what its name ends with, its shape, its number format."""

    suffix: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return dtypes.nbytes(math.prod(self.shape), self.dtype)


@dataclass(frozen=True)
class WeightFormat:
    """A number format of weights, with the scales and zero points of its groups.

    A matrix (..., out, in) is divided into groups of ``rows`` x ``columns``; 0 stands for all of them.

    Args:
        dtype: of the codes, or of the numbers themselves where nothing else is given.
        rows, columns: of a group.
        scales: number format of a group's scales; "" for none.
        count: how many of them a group has.
        zeros: number format of a group's zero point; "" for none.
        shared: groups whose scales have one fp32 scale of their own; 0 for none.
        order: number format of what is kept for each input column (the group it is in); "" for none.
        single: fp32 numbers for the whole matrix.
        product: number format of the products with it, where activations are rounded too; "" where the codes are
            unpacked to the activations' format.

    >>> WeightFormat("int4", columns=128, scales="fp16").nbytes((256, 128))
    16896
    """

    dtype: str
    rows: int = 1
    columns: int = 0
    scales: str = ""
    count: int = 1
    zeros: str = ""
    shared: int = 0
    order: str = ""
    single: int = 0
    product: str = ""

    @property
    def plain(self) -> bool:
        """Whether the numbers stand for themselves."""
        return not (self.scales or self.zeros or self.order or self.single or self.product)

    def pieces(self, shape: tuple[int, ...]) -> tuple[KeptTensor, ...]:
        """What is kept of a weight of ``shape``: the codes first."""
        found = [KeptTensor("" if self.plain else "packed", shape, self.dtype)]
        if self.plain:
            return tuple(found)
        matrices, out = math.prod(shape[:-2]), shape[-2] if len(shape) > 1 else 1
        groups = (matrices * -(-out // (self.rows or out)), -(-shape[-1] // (self.columns or shape[-1])))
        if self.scales:
            found.append(KeptTensor("scales", (groups[0], groups[1] * self.count), self.scales))
        if self.zeros:
            found.append(KeptTensor("zeros", groups, self.zeros))
        if self.shared:
            found.append(KeptTensor("scales_of_scales", (-(-math.prod(groups) // self.shared),), "fp32"))
        if self.order:
            found.append(KeptTensor("order", (matrices * shape[-1],), self.order))
        if self.single:
            found.append(KeptTensor("scale", (matrices * self.single,), "fp32"))
        return tuple(found)

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a weight of ``shape``, scales and zero points included."""
        return sum(piece.nbytes for piece in self.pieces(shape))
