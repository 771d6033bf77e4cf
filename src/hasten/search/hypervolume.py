"""How much a front has won: the volume between it and a reference point."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume that is at least as good as ``reference`` and no better than some point; smaller is better.

    Exact, by slices of the last objective: for a few hundred points of two or three objectives, or fewer of four.

    Args:
        points: (count, objectives); those that are not better than the reference everywhere add nothing.
        reference: (objectives,).
    """
    corner = np.asarray(reference, dtype=np.float64)
    inside = np.asarray(points, dtype=np.float64).reshape(-1, len(corner))
    return _volume(inside[np.all(inside < corner, axis=1)], corner)


def _volume(points: NDArray[np.float64], corner: NDArray[np.float64]) -> float:
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points[:, 0].min())
    if len(corner) == 2:
        ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
        lowest = np.minimum.accumulate(ordered[:, 1])
        widths = np.diff(np.append(ordered[:, 0], corner[0]))
        return float(np.sum(widths * (corner[1] - lowest)))
    # Between two neighbouring heights the points below count, with one objective less.
    ordered = points[np.argsort(points[:, -1], kind="stable")]
    heights = np.append(ordered[:, -1], corner[-1])
    total = 0.0
    for index, thickness in enumerate(np.diff(heights)):
        if thickness > 0:
            total += float(thickness) * _volume(ordered[: index + 1, :-1], corner[:-1])
    return total
