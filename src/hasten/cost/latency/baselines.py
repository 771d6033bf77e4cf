"""Predictors of latency on one device from a few measurements, for comparison with a meta-learned one.

Each takes as many measurements as the other. Where a predictor has a constant to choose, it is chosen by leaving out
one measurement at a time, which costs no further ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hasten.cost.latency.predictor import spearman

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


def from_scratch(
    network: nn.Module, codes: Tensor, seconds: Matrix, asked: Tensor, *, steps: int = 400, rate: float = 1e-3,
    decay: float = 1e-3, seed: int = 0,
) -> Matrix:  # fmt: skip
    """A network trained on the measured ones alone.

    With a `hasten.cost.latency.predictor.GraphNetwork` it is like BRP-NAS's predictor (arXiv 2007.08668): graph
    convolutions over the operations, read out at a node that hears all.

    Args:
        network: of codes and an empty embedding.
        codes, asked: (networks, ...).
        steps, rate, decay: of AdamW, 64 networks a step at most.
    """
    y = torch.tensor((seconds - seconds.mean()) / max(float(seconds.std()), 1e-30), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    none = torch.zeros(0)
    for _ in range(steps):
        chosen = torch.randperm(len(y), generator=generator)[:64]
        loss: Any = F.mse_loss(network(codes[chosen], none), y[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        made: Matrix = network(asked, none).numpy().astype(np.float64)
    return made * float(seconds.std()) + float(seconds.mean())
