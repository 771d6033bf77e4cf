"""A problem without couplings: each value of each parameter is worth something, and a point is worth their sum."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hasten.search.agents.agent import Agent


def separable(parameters: int, values: int, seed: int = 0) -> NDArray[np.float64]:
    """What each value is worth, (parameters, values), such that the best point is worth 1."""
    worth = np.random.default_rng(seed).random((parameters, values))
    worth /= worth.max(1).sum()
    return worth


def samples_until(
    agent: Agent, worth: NDArray[np.float64], most: int, *, share: float = 0.95, window: int = 100
) -> int:
    """Samples until the average of the last ``window`` is that share of the best; ``most`` where it never is.

    Args:
        agent: with as many parameters and values as ``worth``, which it is paid.
        worth: of `separable`.
        most: samples.
    """
    rows = np.arange(len(worth))
    paid: list[float] = []
    while len(paid) < most and (len(paid) < window or np.mean(paid[-window:]) < share):
        point = agent.ask()
        paid.append(float(worth[rows, list(point)].sum()))
        agent.tell(point, paid[-1], (paid[-1],))
    return len(paid)
