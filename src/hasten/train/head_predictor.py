"""Training what guesses which rows of an output head matter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.models.language.smallthinker import HeadPredictor
from hasten.train.loop import train


def fit_head_predictor(
    predictor: HeadPredictor, states: Tensor, head: Tensor, *, steps: int = 200, rate: float = 5e-3
) -> float:
    """Learns a head's own distribution; returns the last loss.

    Args:
        predictor: in place.
        states: (n, width), as the head reads them.
        head: (vocabulary, width).
        steps, rate: of Adam, all states at each step.

    Raises:
        HastenError: the loss became infinite or NaN.
    """
    target = (states @ head.t()).softmax(-1).detach()
    optimizer = torch.optim.Adam(predictor.parameters(), rate)
    trained = train(
        predictor, lambda step: F.cross_entropy(predictor(states), target), optimizer=optimizer, steps=steps
    )
    return trained.finished("training the predictor of rows").loss
