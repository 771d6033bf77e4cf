"""What the published training of a once-for-all network costs on a device, by the analytic model."""

from __future__ import annotations

import random

import torch

from hasten.cost import estimate
from hasten.hardware import Device
from hasten.models.vision.once_for_all import Architecture, OFAConfig, SubNetwork
from hasten.train.shrinking import SHRINKING, choices
from hasten.workload import trace

IMAGENET = 1_281_167
"""Images of an epoch."""
PUBLISHED = ((180, 1), (125, 1), (25, 2), (125, 2), (25, 4), (125, 4))
"""Epochs, and sub-networks of a step, of each phase of `SHRINKING` as published (arXiv 1908.09791, section 4.1)."""
SEARCH_HOURS = {"MnasNet": 40_000, "ProxylessNAS": 200 + 300}
"""V100 hours of searches that are paid for each device, as published (the same, table 1)."""
PREDICTOR_HOURS = 40
"""V100 hours for the accuracies that its predictor learns from."""
PUBLISHED_HOURS = 1200
"""V100 hours of the published training."""


def cheaper_from(hours: float, each: float) -> int:
    """From how many devices on ``hours`` once are less than ``each`` for every device."""
    return 1 + int(hours / each)


def schedule_hours(
    device: Device, config: OFAConfig | None = None, *, images: int = IMAGENET, batch: int = 64, seed: int = 0
) -> dict[str, float]:
    """Phase -> hours on one card, a training pass as three forward ones, the teacher's passes included.

    Args:
        device: the card.
        config: of the network; the paper's when None.
        images: of an epoch.
        batch: images of a step on a card.
        seed: of the two sub-networks that stand for a phase's.
    """
    config, rng = config or OFAConfig(), random.Random(seed)
    known: dict[Architecture, float] = {}

    def forward(arch: Architecture) -> float:
        if arch not in known:
            with torch.device("meta"):
                network, x = (
                    SubNetwork(config, arch).eval(),
                    torch.empty(batch, config.channels, arch.resolution, arch.resolution),
                )
            known[arch] = estimate(trace(network, x), device).latency
        return known[arch]

    middle = config.resolutions[len(config.resolutions) // 2]
    teacher = forward(config.architecture(resolution=middle))
    hours = {}
    for phase, (epochs, count) in zip(SHRINKING, PUBLISHED, strict=True):
        drawn = [config.sample(rng, resolutions=(middle,), **choices(config, phase)) for _ in range(2)]
        trained = 3 * count * sum(map(forward, drawn)) / len(drawn)
        seconds = trained + (0 if phase.name == "largest" else teacher)
        hours[phase.name] = epochs * images / batch * seconds / 3600
    return hours
