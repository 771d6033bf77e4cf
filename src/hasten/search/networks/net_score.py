"""NetScore (arXiv 1806.05512): accuracy against weights and products in one number, in decibels."""

from __future__ import annotations

import math

from hasten.errors import HastenError


def net_score(
    accuracy: float, parameters: float, products: float, alpha: float = 2.0, beta: float = 0.5, gamma: float = 0.5
) -> float:
    """20 log10(a^alpha / (p^beta m^gamma)), with the accuracy a in percent, p and m in millions.

    Args:
        accuracy: a share, from above 0 to 1.
        parameters: weights.
        products: multiply-accumulates of one input.
        alpha, beta, gamma: how much each counts.

    Raises:
        HastenError: a figure that is not above 0.

    >>> round(net_score(0.8, 2e6, 1e6) - net_score(0.8, 4e6, 1e6), 2)
    3.01
    """
    if not (accuracy > 0 and parameters > 0 and products > 0):
        raise HastenError("a NetScore is of an accuracy, weights and products above 0")
    return 20 * (
        alpha * math.log10(100 * accuracy) - beta * math.log10(parameters / 1e6) - gamma * math.log10(products / 1e6)
    )
