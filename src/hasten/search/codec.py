"""A point of a space as numbers: one index a parameter, or one coordinate in [-1, 1], and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hasten.errors import HastenError
from hasten.search.parameter import Params, Value
from hasten.search.space import Space


def bins(sizes: Sequence[int], coordinates: Sequence[float], rounded: bool = False) -> tuple[int, ...]:
    """Indices of coordinates in [-1, 1]: equal intervals, one a value; beyond the ends, the last.

    Args:
        sizes: values of each parameter.
        coordinates: one each.
        rounded: to -1, 0 or 1 first, as ArchGym's public code does, so that at most three values can be had.

    Raises:
        HastenError: a coordinate that is not a number, or too few or many.
    """
    if len(coordinates) != len(sizes) or any(math.isnan(c) for c in coordinates):
        raise HastenError(f"a point has {len(sizes)} coordinates, each a number: check what chose it")
    if rounded:
        coordinates = [round(min(1.0, max(-1.0, float(c)))) for c in coordinates]
    return tuple(
        min(n - 1, max(0, math.floor((min(1.0, max(-1.0, float(c))) + 1) / 2 * n)))
        for c, n in zip(coordinates, sizes, strict=True)
    )


class Codec:
    """Indices of a space's parameters, in its order; those that do not exist at a point are left out, or 0.

    Args:
        space: what is coded.
        bins: values of a continuous parameter, spread evenly (its logarithm's, where it is logarithmic).
    """

    def __init__(self, space: Space, bins: int = 32) -> None:
        self.space = space
        self.values: list[list[Value]] = []
        for p in space:
            if p.size != math.inf:
                self.values.append(list(p.values()))
            elif p.log:
                grid = np.exp(np.linspace(math.log(p.low), math.log(p.high), bins)).clip(p.low, p.high)
                self.values.append([float(v) for v in grid])
            else:
                self.values.append([float(v) for v in np.linspace(p.low, p.high, bins)])

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many values each parameter has."""
        return tuple(map(len, self.values))

    def decode(self, indices: Sequence[int]) -> Params:
        """The point that indices name."""
        params: Params = {}
        for parameter, values, index in zip(self.space, self.values, indices, strict=True):
            if self.space.active(parameter, params):
                params[parameter.name] = values[int(index)]
        return params

    def encode(self, params: Mapping[str, Any]) -> tuple[int, ...]:
        """Indices of a point; of a continuous value those of the nearest bin.

        Raises:
            HastenError: a value that its parameter does not have.
        """
        found = []
        for parameter, values in zip(self.space, self.values, strict=True):
            value = params.get(parameter.name)
            if parameter.name not in params:
                found.append(0)
            elif parameter.size == math.inf:
                found.append(int(np.argmin([abs(float(v) - value) for v in values])))  # type: ignore[arg-type, operator]
            else:
                at = [i for i, v in enumerate(values) if type(v) is type(value) and v == value]
                if not at:
                    raise HastenError(f"{parameter.name} = {value!r} is not among its {len(values)} values")
                found.append(at[0])
        return tuple(found)

    def bin(self, coordinates: Sequence[float], rounded: bool = False) -> tuple[int, ...]:
        """Indices of coordinates (`bins`)."""
        return bins(self.sizes, coordinates, rounded)

    def center(self, indices: Sequence[int]) -> list[float]:
        """Coordinates in the middle of the intervals of indices."""
        return [(2 * i + 1) / n - 1 for i, n in zip(indices, self.sizes, strict=True)]
