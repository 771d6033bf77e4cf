"""Shapes of a residual MLP that doubles the resolution of photographs, at a number of parameters."""

from __future__ import annotations

from hasten.search.problem import Problem
from hasten.spaces import hourglass

ENVIRONMENT: None = None  # a try trains a network: nothing to explore in thousands of steps


def problem(seed: int = 0, steps: int = 1000) -> Problem:
    """The space of `hasten.spaces.hourglass`, for 2x super-resolution.

    Args:
        seed: of weights and batches.
        steps: of each training.
    """
    return hourglass.problem(seed, steps, "superres")
