"""A meta-learned predictor stands for the latency in a search over sub-networks."""

from __future__ import annotations

import random

import torch

from hasten.cost.latency.correlation import spearman
from hasten.cost.latency.meta_settings import MetaSettings
from hasten.cost.latency.predictor import LatencyPredictor
from hasten.models.vision.once_for_all import Architecture, OFAConfig
from hasten.search.networks.members.once_for_all import OnceForAllSpace
from hasten.search.networks.specialize import evolve


def test_evolution_stays_within_the_predicted_limit() -> None:
    config = OFAConfig(
        widths=(16, 24), strides=(1, 2), activations=("relu", "relu"), se=(False, False), resolutions=(16, 24, 32),
        final=32, last=32, classes=10,
    )  # fmt: skip
    rng = random.Random(0)
    nets = list(dict.fromkeys(config.sample(rng) for _ in range(150)))

    def seconds(arch: Architecture, weights: tuple[float, float, float]) -> float:
        kernel, expand, size = weights
        blocks = zip(arch.kernels, arch.expands, config.used(arch.depths), strict=True)
        return 1e-3 * (arch.resolution / 16) ** size * (1 + sum(u * (kernel * k + expand * e) for k, e, u in blocks))

    def table(seed: int) -> dict[Architecture, float]:
        draw = random.Random(seed)
        weights = (draw.uniform(0, 0.3), draw.uniform(0.05, 0.4), draw.uniform(0.5, 2))
        return {a: seconds(a, weights) for a in nets}

    predictor = LatencyPredictor[Architecture](
        lambda archs: torch.tensor([config.encode(a) for a in archs]),
        nets[:10],
        settings=MetaSettings(hidden=32, episodes=80, devices=4, query=40, rate=5e-3, cosine=True, every=80, samples=2),
    ).fit({f"d{i}": table(i) for i in range(6)})
    new = table(99)
    latency = predictor.adapt({a: new[a] for a in nets[:10]})
    assert spearman(latency.predict(nets[10:]), [new[a] for a in nets[10:]]) > 0.8
    limit = sorted(new.values())[75]
    found = evolve(
        OnceForAllSpace(config), lambda archs: [sum(a.expands) + sum(a.kernels) for a in archs], latency, limit,
        population=12, generations=4,
    )  # fmt: skip
    assert found.latency == latency(found.arch) <= limit
    assert found.score >= found.history[0]
