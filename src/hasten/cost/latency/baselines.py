"""Predictors of latency on one device from a few measurements, for comparison with a meta-learned one.

Each takes as many measurements as the other. Where a predictor has a constant to choose, it is chosen by leaving out
one measurement at a time, which costs no further ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hasten.cost.latency.correlation import spearman

Matrix = NDArray[np.float64]
_RIDGES = tuple(10.0**e for e in np.arange(-4, 4.5, 0.5))


def ridge(measured: Matrix, seconds: Matrix, asked: Matrix) -> Matrix:
    """Ridge regression, its constant by leave-one-out error (in closed form).

    Args:
        measured, asked: features (networks, features).
        seconds: (measured,).

    Returns:
        Predictions (asked,).
    """
    return _ridge_with_error(measured, seconds, asked)[0]


def _ridge_with_error(measured: Matrix, seconds: Matrix, asked: Matrix) -> tuple[Matrix, float]:
    mean, spread = measured.mean(0), measured.std(0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    x, q = (measured - mean) / spread, (asked - mean) / spread
    y = seconds - seconds.mean()
    n = len(y)
    best, error = np.zeros(len(q)), np.inf
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    for constant in _RIDGES:
        shrunk = s**2 / (s**2 + constant)
        fitted = u @ (shrunk * (u.T @ y))
        leverage = (u**2 * shrunk).sum(1) + 1 / n
        left_out = float((((y - fitted) / np.maximum(1 - leverage, 1e-9)) ** 2).mean())
        if left_out < error:
            error = left_out
            best = q @ (vt.T @ ((s / (s**2 + constant)) * (u.T @ y)))
    return best + seconds.mean(), error


def layerwise_sum(measured: Sequence[Matrix], seconds: Matrix, asked: Sequence[Matrix]) -> Matrix:
    """Latency as a sum over layers, each kind of layer's share fitted to whole networks.

    Args:
        measured, asked: descriptions of the same networks, coarse and fine, each (networks, kinds of layers); the one
            with the least leave-one-out error is taken.
        seconds: (measured,).
    """
    return min((_ridge_with_error(m, seconds, a) for m, a in zip(measured, asked, strict=True)), key=lambda r: r[1])[0]


def flops_regression(measured: Matrix, seconds: Matrix, asked: Matrix) -> Matrix:
    """A line through operations and seconds: (networks,) each."""
    slope, start = np.polyfit(measured, seconds, 1)
    made: Matrix = slope * asked + start
    return made


def best_proxy(pool: Matrix, measured: Sequence[int], seconds: Matrix, asked: Sequence[int]) -> Matrix:
    """Latencies of the known device that ranks the measured networks most like this one (One Proxy Device,
    arXiv 2111.01203, without its adaptation).

    Args:
        pool: (devices, networks) of known devices, all networks measured there.
        measured, asked: indices of networks.
    """
    scores = [spearman(row[list(measured)], seconds) for row in pool]
    made: Matrix = pool[int(np.argmax(scores))][list(asked)]
    return made


def mean_device_ridge(
    pool: Matrix, codes: Matrix, measured: Sequence[int], seconds: Matrix, asked: Sequence[int]
) -> Matrix:
    """Ridge regression on a network's code and its mean over known devices, the mean unshrunk.

    Args:
        pool: as `best_proxy`.
        codes: (networks, features).
    """
    unit = (pool - pool.mean(1, keepdims=True)) / pool.std(1, keepdims=True)
    mean = unit.mean(0)
    slope, start = np.polyfit(mean[list(measured)], seconds, 1)
    line = slope * mean + start
    rest = ridge(codes[list(measured)], seconds - line[list(measured)], codes[list(asked)])
    made: Matrix = line[list(asked)] + rest
    return made
