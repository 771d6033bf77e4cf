"""What a linear readout makes of features that are there."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.train.fitting import fit


def linear_probe(
    features: Tensor, labels: Tensor, training: Tensor, *, steps: int = 300, rate: float = 0.02, decay: float = 0.01,
    seed: int = 0,
) -> nn.Sequential:  # fmt: skip
    """A linear classifier on features by their mean and deviation: AdamW on all training samples at each step.

    Args:
        features: (samples, in).
        labels: (samples,) from 0.
        training: (samples,) which are trained on.

    Returns:
        A module of features to logits.

    Raises:
        HastenError: no sample is trained on.
    """
    known = features[training].float()
    if not len(known):
        raise HastenError("a readout is trained on samples: give at least one")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        scale, readout = Standardised(known), nn.Linear(features.shape[1], int(labels.max()) + 1)
    module = nn.Sequential(scale, readout)
    asked = labels[training]
    fit(module, lambda step: F.cross_entropy(module(known), asked), steps=steps, peak=rate, weight_decay=decay)
    return module.eval()


class Standardised(nn.Module):
    """Features less the mean of known ones, over their deviation."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", known.mean(0))
        # Of one sample there is no deviation.
        self.register_buffer("deviation", known.std(0, correction=min(1, len(known) - 1)).clamp(min=1e-6))

    def forward(self, features: Tensor) -> Tensor:
        return (features.float() - self.mean) / self.deviation


@torch.no_grad()
def probe_accuracy(probe: nn.Module, features: Tensor, labels: Tensor) -> float:
    """Share of samples whose largest logit is their label's."""
    return float((probe(features).argmax(1) == labels).float().mean())
