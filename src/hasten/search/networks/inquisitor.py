"""What a generator of networks is taught by: how networks respond to real inputs, and a model from that to scores.

In generative synthesis (arXiv 1809.05989) an inquisitor probes what a generator makes and says what to change; its
inner details are not published. Here it measures the responses of every layer, fits an ensemble of linear models to
genes, responses and the scores of networks that were tried, ranks new ones, and gives each gene's value its share of a
score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.search.agents.agent import Indices

Array = np.ndarray[Any, np.dtype[np.float64]]
_BEYOND = 30.0
_DEPTHS = 4  # places along a network at which its layers' responses are looked at


def probe_responses(network: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """How a network's layers respond to real images, before any training: 3 numbers at each of 4 depths, and 2 more.

    At each depth the logarithm of the outputs' deviation, their mean over it, and the logarithm of the gradient's norm
    by the weights, of convolutions and linear layers; then how much logits of different images differ, and the loss.

    Args:
        network: whose gradients are left as they were, none.
        images: (batch, channels, height, width).
        labels: (batch,).
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    seen: dict[int, tuple[float, float]] = {}

    def keep(module: nn.Module, given: Any, made: Tensor) -> None:
        spread = float(made.detach().std())
        seen[id(module)] = (spread, float(made.detach().mean()) / (spread + 1e-6))

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    was = network.training
    logits = network.train()(images)
    for hook in hooks:
        hook.remove()
    loss = F.cross_entropy(logits, labels)
    called = [layer for layer in layers if id(layer) in seen]
    gradients = torch.autograd.grad(loss, [layer.weight for layer in called], allow_unused=True)
    network.train(was)
    rows = np.array(
        [
            [
                np.log(seen[id(layer)][0] + 1e-6),
                seen[id(layer)][1],
                np.log((0.0 if g is None else float(g.norm())) + 1e-9),
            ]
            for layer, g in zip(called, gradients, strict=True)
        ]
    )
    at = np.linspace(0, len(rows) - 1, _DEPTHS)
    found = [float(np.interp(p, np.arange(len(rows)), rows[:, i])) for p in at for i in range(3)]
    told = [*found, float(np.log(float(logits.detach().std(0).mean()) + 1e-6)), float(loss.detach())]
    # What explodes, or a layer of one number, which has no deviation: a figure beyond all others.
    return [float(v) for v in np.clip(np.nan_to_num(told, nan=_BEYOND, posinf=_BEYOND), -_BEYOND, _BEYOND)]


class Inquisitor:
    """An ensemble of ridge regressions from genes and responses to scores.

    Args:
        sizes: values of each gene.
        members: of the ensemble, each fitted to networks drawn with replacement.
        strength: of the ridge.
        seed: of the draws.
    """

    def __init__(self, sizes: Sequence[int], members: int = 16, strength: float = 1.0, seed: int = 0) -> None:
        if not sizes or members < 1 or strength <= 0:
            raise HastenError("an inquisitor has genes, one member or more, and a ridge above 0")
        self.sizes, self.members, self.strength = tuple(sizes), members, strength
        self.rng = np.random.default_rng(seed)
        self.weights: Array | None = None
        self._mean = self._scale = np.zeros(0)
        self._base = 0.0

    def _rows(self, points: Sequence[Indices], responses: Sequence[Sequence[float]]) -> Array:
        hot = np.zeros((len(points), sum(self.sizes)))
        starts = np.cumsum([0, *self.sizes[:-1]])
        for i, point in enumerate(points):
            hot[i, starts + np.array(point)] = 1
        return np.hstack([hot, np.array([list(r) for r in responses], dtype=float).reshape(len(points), -1)])

    def fit(
        self, points: Sequence[Indices], responses: Sequence[Sequence[float]], scores: Sequence[float]
    ) -> Inquisitor:
        """Learns from networks that were tried; responses may be empty lists, where genes alone are to tell.

        Raises:
            HastenError: fewer than two, or other numbers of responses or scores.
        """
        if len(points) < 2 or not len(points) == len(responses) == len(scores):
            raise HastenError("an inquisitor learns from at least two networks, with responses and a score each")
        x, y = self._rows(points, responses), np.array(scores, dtype=float)
        self._mean, self._scale = x.mean(0), x.std(0) + 1e-6
        self._scale[: sum(self.sizes)] = 1.0  # of a gene's value, there or not
        self._base = float(y.mean())
        x = (x - self._mean) / self._scale
        found = []
        for _ in range(self.members):
            some = self.rng.integers(len(x), size=len(x))
            a, b = x[some], y[some] - self._base
            # The smaller of two equal systems: there are more features than networks.
            found.append(a.T @ np.linalg.solve(a @ a.T + self.strength * np.eye(len(a)), b))
        self.weights = np.array(found)
        return self

    def predict(self, points: Sequence[Indices], responses: Sequence[Sequence[float]]) -> tuple[Array, Array]:
        """Expected scores, and how much the ensemble's members differ.

        Raises:
            HastenError: it has learned nothing yet.
        """
        rows = (self._rows(points, responses) - self._mean) / self._scale @ self._learned().T
        return rows.mean(1) + self._base, rows.std(1)

    def credit(self, points: Sequence[Indices]) -> Array:
        """What each gene's value adds to a score beside the mean of the gene's values: (points, genes).

        Raises:
            HastenError: it has learned nothing yet.
        """
        weights = self._learned().mean(0)
        found = np.zeros((len(points), len(self.sizes)))
        start = 0
        for i, size in enumerate(self.sizes):
            part = weights[start : start + size]
            found[:, i] = [part[p[i]] - part.mean() for p in points]
            start += size
        return found

    def _learned(self) -> Array:
        if self.weights is None:
            raise HastenError("the inquisitor has learned nothing yet: fit it to networks that were tried")
        return self.weights
