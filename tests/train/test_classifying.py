"""Training a classifier in memory, and counting what it gets right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.train.classifying import accuracy, classify


def corners(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with one bright corner of four."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 4
    images = torch.randn(count, 1, 4, 4, generator=generator)
    images[torch.arange(count), 0, labels // 2 * 3, labels % 2 * 3] += 4
    return images, labels


def linear() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 4))


def test_it_learns_and_leaves_evaluation_mode() -> None:
    x, y = corners()
    module = linear()
    before = accuracy(module, x, y)
    classify(module, x, y, epochs=5, batch=20, smoothing=0.1)
    assert not module.training
    assert accuracy(module, x, y) > max(0.95, before)


def test_the_same_seed_is_the_same_training() -> None:
    x, y = corners()
    made = []
    for seed in (0, 0, 1):
        module = linear()
        classify(module, x, y, epochs=1.5, batch=20, seed=seed)
        made.append(module[1].weight.detach().clone())
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_an_epoch_sees_each_image_once() -> None:
    x, y = corners(60)
    seen: list[torch.Tensor] = []

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = linear()

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            seen.append(given.flatten(1)[:, 0])
            made: torch.Tensor = self.inner(given)
            return made

    classify(Watching(), x, y, epochs=1, batch=20)
    assert torch.equal(torch.cat(seen).sort().values, x.flatten(1)[:, 0].sort().values)


@pytest.mark.parametrize("batch", [3, 500])
def test_accuracy_is_a_share(batch: int) -> None:
    logits = torch.eye(4)[:, :, None, None]
    assert accuracy(nn.Flatten(), logits, torch.tensor([0, 1, 2, 0]), batch) == 0.75
