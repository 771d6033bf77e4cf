"""Real labelled images."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from hasten.data import assets


def fashion_mnist(progress: assets.Progress = lambda message: None) -> tuple[Tensor, Tensor]:
    """Articles of clothing: images (70000, 28, 28) uint8, labels (70000,) int64 (asset ``fashion-mnist``)."""
    return _classes("fashion-mnist", 1.0, progress)


def mnist(progress: assets.Progress = lambda message: None) -> tuple[Tensor, Tensor]:
    """Ten thousand handwritten digits: images (10000, 28, 28) uint8, labels int64 (asset ``mnist``)."""
    return _classes("mnist", 255.0, progress)


def _classes(name: str, scale: float, progress: assets.Progress) -> tuple[Tensor, Tensor]:
    folder = assets.get(name, progress)
    images, labels = [], []
    for label in range(10):
        data = json.loads((folder / f"{label}.json").read_text())["data"]
        # One package keeps a list of images, the other one flat list; some rows of the first are empty.
        if isinstance(data[0], list):
            rows = torch.tensor([row for row in data if len(row) == 784])
        else:
            rows = torch.tensor(data).reshape(-1, 784)
        images.append((rows * scale).round().to(torch.uint8).reshape(-1, 28, 28))
        labels.append(torch.full((len(rows),), label))
    return torch.cat(images), torch.cat(labels)
