"""A network that learns a number from codes, on few examples."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hasten.train.loop import train
from hasten.train.schedules import Cosine

Matrix: TypeAlias = NDArray[np.float64]


def from_scratch(
    network: nn.Module, codes: Tensor, seconds: Matrix, asked: Tensor, *, steps: int = 400, rate: float = 1e-3,
    decay: float = 1e-3, seed: int = 0,
) -> Matrix:  # fmt: skip
    """Latencies of the asked networks by a predictor trained on the measured ones alone.

    With a `hasten.cost.latency.predictor.GraphNetwork` it is like BRP-NAS's predictor (arXiv 2007.08668): graph
    convolutions over the operations, read out at a node that hears all.

    Args:
        network: of codes and an empty embedding.
        codes, asked: (networks, ...).
        seconds: (networks,) measured.
        steps, rate, decay: of AdamW, 64 networks a step at most.

    Raises:
        HastenError: the loss became infinite or NaN.
    """
    y = torch.tensor((seconds - seconds.mean()) / max(float(seconds.std()), 1e-30), dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    none = torch.zeros(0)

    def loss(step: int) -> Tensor:
        chosen = torch.randperm(len(y), generator=generator)[:64]
        return F.mse_loss(network(codes[chosen], none), y[chosen])

    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay)
    train(network, loss, optimizer=optimizer, steps=steps, schedule=Cosine()).finished("learning latencies")
    with torch.no_grad():
        made: Any = network(asked, none).numpy().astype(np.float64)
    found: Matrix = made * float(seconds.std()) + float(seconds.mean())
    return found
