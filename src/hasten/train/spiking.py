"""Recurrent networks of spiking neurons whose weights are trained through time: what reservoirs stand beside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.train.contrastive import (
    Objective,
    Pairing,
    Projections,
    contrastive_loss,
    held_samples,
    partners,
    prototype_loss,
    retrieval,
)
from hasten.train.loop import train

# Half the width of the rectangle that stands for the slope of a step.
_WIDTH = 0.25


class SpikingRNN(nn.Module):
    """The neurons of `hasten.nn.Reservoir`, with weights that have gradients: a spike's slope is a rectangle.

    Weights and threshold are a fifth of the reservoir's, which leaves all spikes as they are.

    Args:
        channels: of the events.
        size: neurons.
        decay: of the membranes.
        seed: of the weights at the start.

    Shape:
        events (batch, steps, channels) to the mean of spikes over the steps (batch, size).
    """

    def __init__(self, channels: int, size: int, decay: float = 0.9, gain: float = 0.07, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.decay = decay
        self.drive = nn.Linear(channels, size, bias=False)
        self.recurrent = nn.Linear(size, size, bias=False)
        with torch.no_grad():
            for layer in (self.drive, self.recurrent):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 6.64 * gain / 5)

    def forward(self, events: Tensor) -> Tensor:
        driven = self.drive(events)
        membrane = fired = driven.new_zeros(len(driven), self.drive.out_features)
        total = torch.zeros_like(fired)
        for step in range(driven.shape[1]):
            membrane = self.decay * membrane * (1 - fired) + driven[:, step] + self.recurrent(fired)
            soft = ((membrane - 1) / (2 * _WIDTH) + 0.5).clamp(0, 1)
            fired = soft + ((membrane > 1).to(soft.dtype) - soft).detach()
            total = total + fired
        return total / max(1, driven.shape[1])

    if TYPE_CHECKING:
        __call__ = forward


def _batch(allowed: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(allowed.float(), size, replacement=True, generator=generator)


def train_spiking_classifier(
    events: Tensor, labels: Tensor, training: Tensor, *, size: int = 200, steps: int = 300, batch: int = 64,
    rate: float = 1e-3, seed: int = 0,
) -> nn.Sequential:  # fmt: skip
    """A spiking network with a linear readout, trained as one: events to logits.

    Args:
        events: (samples, steps, channels).
        labels: (samples,) from 0.
        training: (samples,) which are trained on.
        size: neurons.
    """
    network = SpikingRNN(events.shape[2], size, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(network, nn.BatchNorm1d(size), nn.Linear(size, int(labels.max()) + 1))
    generator = torch.Generator().manual_seed(seed)

    def loss(step: int) -> Tensor:
        chosen = _batch(training, batch, generator)
        return F.cross_entropy(module(events[chosen]), labels[chosen])

    train(module, loss, optimizer=torch.optim.Adam(module.parameters(), lr=rate), steps=steps, keep=0).finished()
    return module.eval()


class _Pair(nn.Module):
    """Two spiking networks, each with a norm, and their projections."""

    def __init__(
        self, channels: tuple[int, int], size: int, width: int, decays: tuple[float, float], normalised: bool, seed: int
    ) -> None:
        super().__init__()
        made = (SpikingRNN(c, size, d, seed=seed + i) for i, (c, d) in enumerate(zip(channels, decays, strict=True)))
        self.first, self.second = (nn.Sequential(network, nn.BatchNorm1d(size)) for network in made)
        self.projections = Projections(1, (size, size), width, normalised, seed)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.projections(self.first(first)[None], self.second(second)[None])
        return a[0], b[0]


def align_spiking(
    first: Tensor, second: Tensor, labels: Tensor, training: Tensor, held: tuple[int, ...], *,
    pairing: Pairing = "instance", objective: Objective = "contrastive", temperature: float | None = None,
    size: int = 200, steps: int = 200, width: int = 64, batch: int = 32, rate: float = 1e-3,
    decays: tuple[float, float] = (0.9, 0.97), seed: int = 0,
) -> tuple[float, float]:  # fmt: skip
    """As `hasten.train.contrastive.align` with one set of held-out classes, networks trained beside the projections.

    Args:
        first, second: events (samples, steps, channels) of the same samples.

    Returns:
        Shares of queries that found their class: of classes that were seen, and of those held out.
    """
    allowed = training & ~held_samples(labels, held)
    classes = int(labels.max()) + 1
    normalised = temperature is not None and objective == "contrastive"
    module = _Pair((first.shape[2], second.shape[2]), size, width, decays, normalised, seed)
    generator = torch.Generator().manual_seed(seed)
    others = partners(labels, allowed[None])

    def loss(step: int) -> Tensor:
        chosen = _batch(allowed, batch, generator)
        other = others(chosen[None], generator)[0] if pairing == "class" else chosen
        a, b = module(first[chosen], second[other])
        if objective == "prototypes":
            return prototype_loss(a, b, labels[chosen], classes)
        return contrastive_loss(a, b, temperature or 1.0)

    train(module, loss, optimizer=torch.optim.Adam(module.parameters(), lr=rate), steps=steps, keep=0).finished()
    module.eval()
    found = []
    for part in (~training & ~held_samples(labels, held), held_samples(labels, held)):
        with torch.no_grad():
            a, b = module(first[part], second[part])
        found.append(retrieval(a, b, labels[part], objective))
    return found[0], found[1]
