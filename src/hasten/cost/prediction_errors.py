"""How far predictions are from the truth: the four figures of wa-hls4ml's benchmark (arXiv 2511.05615, equation 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hasten.errors import HastenError


@dataclass(frozen=True)
class PredictionErrors:
    """Errors of one target.

    Args:
        r2: share of the variance that is explained; NaN where the truth is constant.
        rmse: root of the mean squared error, in the target's unit.
        smape: mean of 200 |p - t| / (|t| + |p| + 1), in percent: 0 to 200.
        relative: 100 (t - p) / (t + 1) in percent: its first quartile, median and third.
        within: 75th percentile of its size.
    """

    r2: float
    rmse: float
    smape: float
    relative: tuple[float, float, float]
    within: float


def prediction_errors(predicted: ArrayLike, truth: ArrayLike) -> PredictionErrors:
    """Errors of predictions (count,) against the truth (count,), neither below 0.

    Raises:
        HastenError: no values, or another number of them.

    >>> prediction_errors([1, 2, 4], [1, 2, 3]).within
    12.5
    """
    p, t = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    if p.shape != t.shape or p.ndim != 1 or not len(p):
        raise HastenError("errors are of at least one prediction, with as many true values")
    variance = float(((t - t.mean()) ** 2).sum())
    relative = 100 * (t - p) / (t + 1)
    low, middle, high = (float(q) for q in np.percentile(relative, (25, 50, 75)))
    return PredictionErrors(
        r2=1 - float(((t - p) ** 2).sum()) / variance if variance else float("nan"),
        rmse=float(np.sqrt(((t - p) ** 2).mean())),
        smape=float((200 * np.abs(p - t) / (np.abs(t) + np.abs(p) + 1)).mean()),
        relative=(low, middle, high),
        within=float(np.percentile(np.abs(relative), 75)),
    )
