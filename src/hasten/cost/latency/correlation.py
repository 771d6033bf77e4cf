"""How alike two orders of the same things are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def spearman(a: Sequence[float] | NDArray[Any] | Tensor, b: Sequence[float] | NDArray[Any] | Tensor) -> float:
    """Rank correlation, equal values sharing their mean rank; 0 where either is constant.

    >>> spearman([1, 2, 3], [10, 20, 15])
    0.5
    """
    x, y = _ranks(np.asarray(a, dtype=np.float64)), _ranks(np.asarray(b, dtype=np.float64))
    x, y = x - x.mean(), y - y.mean()
    norm = math.sqrt(float((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    made: NDArray[np.float64] = (last - (counts - 1) / 2)[where]
    return made


def kendall(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau-b of two orders of the same things: 1 for equal, -1 for reversed; 0 where one has no order."""
    pairs = [
        ((one[i] > one[j]) - (one[i] < one[j]), (other[i] > other[j]) - (other[i] < other[j]))
        for i in range(len(one))
        for j in range(i)
    ]
    apart = sum(a != 0 for a, _ in pairs) * sum(b != 0 for _, b in pairs)
    return sum(a * b for a, b in pairs) / math.sqrt(apart) if apart else 0.0
