"""Training a classifier in memory, and counting what it gets right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.models.vision.kat import ACTIVATIONS, KATConfig, with_activation
from hasten.train.classifying import accuracy, classify, fit_timed, noise_step


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


def test_a_timed_training_judges_by_images_that_it_has_not_seen() -> None:
    x, y = corners(300)
    module = linear()
    losses, seconds, right = fit_timed(module, x, y, 100, 40, 0, batch=50)
    assert len(losses) == 40
    assert losses[-1] < losses[0]
    assert seconds > 0
    assert right == pytest.approx(accuracy(module, x[:100], y[:100]))
    others = torch.cat([(y[:100] + 1) % 4, y[100:]])
    assert fit_timed(linear(), x, others, 100, 40, 0, batch=50)[0] == losses


def test_a_step_on_noise_changes_the_module() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16, 4))
    before = module[1].weight.detach().clone()
    step = noise_step(module, 2, 4, 0)
    step()
    assert not torch.equal(before, module[1].weight)


@pytest.mark.parametrize("arm", ACTIVATIONS)
def test_transformers_differ_in_their_activation_alone(arm: str) -> None:
    config = KATConfig(8, 4, 1, 10, 32, 1, 2, groups=4)
    made = with_activation(arm, config)
    assert made(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    names = {type(m).__name__ for m in made.modules()}
    assert ("GELU" in names) == (arm == "GELU")
    assert ("NaiveRational" in names) == (arm == "shared additions")
