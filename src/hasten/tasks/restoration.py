"""Patches of photographs to clean of noise, or to double in resolution (arXiv 2510.01796, section 4)."""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.data.images import digits, patches, photographs
from hasten.errors import HastenError
from hasten.tasks.task import Batch, Better, Model, Split, Task, registered

SIDE, NOISE = 12, 0.25


@functools.cache
def clean_patches() -> tuple[Tensor, Tensor]:
    """Training and test patches (count, 144) of the photographs, from columns that share no pixel."""
    images = photographs()
    training = torch.cat([patches(image, SIDE, (0, 448 - SIDE)) for image in images])
    test = torch.cat([patches(image, SIDE, (464, 640 - SIDE), stride=6) for image in images])
    return training, test


@functools.cache
def clean_digits() -> tuple[Tensor, Tensor]:
    """Training and test digits (count, 64) within 0 and 1, the first 1400 and the others."""
    images = digits()[0].float().flatten(1) / 16
    return images[:1400], images[1400:]


class Restoration(Task):
    """Flat patches (count, width) that something was taken from; the answer is what they were."""

    given = "spoiled patches (batch, 144), fp32; a clean one is within 0 and 1"
    answered = "the clean patches (batch, 144)"
    width: ClassVar[int] = SIDE * SIDE
    metric = "dB of signal to noise"
    splits: tuple[Split, ...] = ("training", "test")
    better: ClassVar[Better] = "higher"
    best = math.inf

    def __init__(self) -> None:
        self.parts: dict[Split, Tensor] = dict(zip(self.splits, self.clean(), strict=True))
        self._spoiled: dict[Split, Tensor] = {}

    def clean(self) -> tuple[Tensor, Tensor]:
        """Training and test patches (count, width)."""
        return clean_patches()

    def spoil(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        """What a model is given for clean patches (count, width)."""
        raise NotImplementedError

    @functools.cached_property
    def chance(self) -> float:
        """Of one who gives back what it was given."""
        total, number = self.count(*self.take("test", 0, self.examples("test")))
        return self.score(total / number)

    def examples(self, split: Split) -> int:
        return len(self.parts[split])

    def draw(self, split: Split, size: int, generator: torch.Generator) -> Batch:
        clean = self.parts[split][torch.randint(self.examples(split), (size,), generator=generator)]
        return Batch(self.spoil(clean, generator), clean)

    def take(self, split: Split, first: int, last: int) -> Batch:
        if split not in self._spoiled:
            self._spoiled[split] = self.spoil(self.parts[split], torch.Generator().manual_seed(1000))
        return Batch(self._spoiled[split][first:last], self.parts[split][first:last])

    def loss(self, model: Model, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch.inputs), batch.targets)

    def count(self, answers: Tensor, targets: Tensor) -> tuple[float, int]:
        return float((answers - targets).square().double().sum()), targets.numel()

    def score(self, mean: float) -> float:
        """-10 log10 of the mean squared error."""
        return -10 * math.log10(mean) if mean else math.inf

    def right(self, batch: Batch) -> Tensor:
        found: Tensor = batch.targets
        return found

    def blind(self, batch: Batch, generator: torch.Generator) -> Tensor:
        found: Tensor = batch.inputs
        return found


@registered("denoise")
class Denoise(Restoration):
    """Gaussian noise to take off.

    Args:
        noise: its deviation.
    """

    description = "patches of photographs, to be cleaned of noise"

    def __init__(self, *, noise: float = NOISE) -> None:
        if noise <= 0:
            raise HastenError("patches without noise need no restoring: give a deviation above 0")
        self.noise = noise
        super().__init__()

    def spoil(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        return clean + torch.randn(clean.shape, generator=generator) * self.noise


@registered("denoise-digits")
class DenoiseDigits(Denoise):
    """As `Denoise`, on the 1,797 digits that scikit-learn carries: data, not parameters, is what lacks here."""

    description = "handwritten digits of 8 x 8 pixels, to be cleaned of noise"
    given = "spoiled digits (batch, 64), fp32; a clean one is within 0 and 1"
    answered = "the clean digits (batch, 64)"
    width = 64

    def clean(self) -> tuple[Tensor, Tensor]:
        return clean_digits()


@registered("superres")
class SuperResolution(Restoration):
    """Patches of half the resolution, each pixel shown four times."""

    description = "patches of photographs, to be brought back from half their resolution"

    def spoil(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        images = clean.view(-1, 1, SIDE, SIDE)
        return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2).reshape(clean.shape)
