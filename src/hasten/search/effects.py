"""How much of a measure each parameter explains by itself, and pairs of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def explained(points: npt.NDArray[Any], sizes: Sequence[int], y: npt.NDArray[Any], pairs: bool) -> float:
    """Share of the variance of ``y`` that a sum of effects explains, by least squares, on the last fifth of the points.

    Args:
        points: (points, parameters) indices of values.
        sizes: number of values of each parameter.
        y: (points,) what was measured.
        pairs: whether each pair of parameters has an effect too, beside each parameter.
    """
    columns = [np.eye(n)[points[:, i]][:, 1:] for i, n in enumerate(sizes)]
    x = list(columns)
    if pairs:
        both = itertools.combinations(columns, 2)
        x += [(a[:, :, None] * b[:, None, :]).reshape(len(y), -1) for a, b in both]
    matrix = np.concatenate([np.ones((len(y), 1)), *x], 1)
    train = len(y) * 4 // 5
    gram = matrix[:train].T @ matrix[:train] + 1e-3 * np.eye(matrix.shape[1])
    weights = np.linalg.solve(gram, matrix[:train].T @ y[:train])
    left = y[train:] - matrix[train:] @ weights
    return float(1 - left.var() / y[train:].var())
