"""The networks of a meta-learned latency predictor, and how they adapt to a device (HELP, arXiv 2106.08630)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad

Weights = dict[str, Tensor]


class _Head(nn.Module):
    """From a network's features and a device's embedding to a number (HELP's official code)."""

    def __init__(self, hidden: int, embedding: int) -> None:
        super().__init__()
        width = 2 * hidden if embedding else hidden
        if embedding:
            self.device1, self.device2 = nn.Linear(embedding, hidden), nn.Linear(hidden, hidden)
        self.embedding = embedding
        self.fc3, self.fc4, self.fc5 = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, features: Tensor, embedding: Tensor) -> Tensor:
        if self.embedding:
            device = F.relu(self.device2(F.relu(self.device1(embedding))))
            features = torch.cat([features, device.expand(*features.shape[:-1], -1)], -1)
        made: Tensor = self.fc5(F.relu(self.fc4(F.relu(self.fc3(features)))))
        return made[..., 0]


class CodeNetwork(nn.Module):
    """Networks given as vectors: two layers before the head.

    Args:
        features: of a code.
        hidden: width.
        embedding: references that make a device's embedding; 0 for none.

    Shapes: codes (count, features) and an embedding (references,) to (count,).
    """

    def __init__(self, features: int, hidden: int = 100, embedding: int = 10) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(features, hidden), nn.Linear(hidden, hidden)
        self.head = _Head(hidden, embedding)

    def forward(self, codes: Tensor, embedding: Tensor) -> Tensor:
        made: Tensor = self.head(F.relu(self.fc2(F.relu(self.fc1(codes)))), embedding)
        return made


class GraphNetwork(nn.Module):
    """Networks given as graphs: four graph convolutions, and the last node, which hears all, before the head.

    Args:
        labels: of a node.
        hidden, embedding: as `CodeNetwork`.

    Shapes: codes (count, nodes, labels + nodes), features and adjacency side by side, to (count,).
    """

    def __init__(self, labels: int, hidden: int = 100, embedding: int = 10) -> None:
        super().__init__()
        self.labels = labels
        self.layers = nn.ModuleList(nn.Linear(labels if i == 0 else hidden, hidden) for i in range(4))
        for layer in self.layers:
            nn.init.uniform_(layer.weight, -0.05, 0.05)  # type: ignore[arg-type]
        self.head = _Head(hidden, embedding)

    def forward(self, codes: Tensor, embedding: Tensor) -> Tensor:
        x, heard = codes[..., : self.labels], codes[..., self.labels :]
        for layer in self.layers:
            x = F.relu(heard @ F.linear(x, layer.weight) + layer.bias)  # type: ignore[arg-type, operator]
        made: Tensor = self.head(x[..., -1, :], embedding)
        return made


class Modulator(nn.Module):
    """Normal distributions over scales of the head's three layers, from a device's embedding.

    Args:
        width: inputs of each of the head's layers.
        embedding: references.
    """

    def __init__(self, width: int, embedding: int = 10) -> None:
        super().__init__()
        self.width = width
        self.count = 3 * (width + 1)
        self.layers = nn.Sequential(nn.Linear(embedding, 10), nn.ReLU(), nn.Linear(10, 2 * self.count))

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (..., 3 * (width + 1)) for embeddings (..., references)."""
        means, spread = self.layers(embedding).chunk(2, -1)
        return means, F.softplus(spread)


def divergence(means: Tensor, deviations: Tensor) -> Tensor:
    """KL divergence of independent normals from standard ones, summed over the last axis."""
    return 0.5 * (means**2 + deviations**2 - 1 - 2 * deviations.log()).sum(-1)


def modulated(weights: Weights, z: Tensor, scale: float) -> Weights:
    """Weights whose head is changed by a sample: inputs of each layer scaled, its bias shifted (supplement, and the
    official code).

    Args:
        weights: of a `CodeNetwork` or `GraphNetwork`.
        z: (3 * (width + 1),): scales of three layers, then shifts of their biases.
        scale: of both.
    """
    made = dict(weights)
    width = len(z) // 3 - 1
    for i, name in enumerate(("head.fc3", "head.fc4", "head.fc5")):
        made[f"{name}.weight"] = weights[f"{name}.weight"] * (1 + scale * z[i * width : (i + 1) * width])
        made[f"{name}.bias"] = weights[f"{name}.bias"] + scale * z[3 * width + i]
    return made


def inner_loop(
    network: nn.Module, weights: Weights, rates: Mapping[str, Tensor] | float, codes: Tensor, targets: Tensor,
    embedding: Tensor, *, steps: int = 2, second_order: bool = True,
) -> Weights:  # fmt: skip
    """Weights after some gradient steps on measured networks.

    Args:
        network: whose weights they are.
        rates: one for all, or of the weights' shapes.
        codes, targets: (measured, ...) and (measured,).
        embedding: (references,).
        steps: of gradient descent on the mean squared error.
        second_order: False leaves the gradients out of what is differentiated later.
    """

    def loss(current: Weights) -> Tensor:
        return F.mse_loss(functional_call(network, current, (codes, embedding)), targets)

    for _ in range(steps):
        slopes = grad(loss)(weights)
        if not second_order:
            slopes = {k: g.detach() for k, g in slopes.items()}
        weights = {k: w - (rates[k] if isinstance(rates, Mapping) else rates) * slopes[k] for k, w in weights.items()}
    return weights
