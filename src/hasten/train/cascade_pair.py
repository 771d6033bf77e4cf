"""A small and a larger network that find one digit among short signals: the two stages of a cascade."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.tasks.signals import MNIST1D
from hasten.tasks.task import SPLITS
from hasten.train.loop import train
from hasten.train.schedules import Cosine


class DetectionSignals(NamedTuple):
    """Signals (count, 1, 40) and whether they show the digit, for training, for thresholds and for a stream."""

    training: Tensor
    training_relevant: Tensor
    held: Tensor
    held_relevant: Tensor
    stream: Tensor
    stream_relevant: Tensor

    def mixed(self, relevant: float, seed: int = 0) -> tuple[Tensor, Tensor]:
        """All irrelevant signals of the stream and, in random order, as many relevant ones as make up this share.

        Raises:
            HastenError: there are not so many.
        """
        generator = torch.Generator().manual_seed(seed)
        kinds = [torch.nonzero(self.stream_relevant == kind).ravel() for kind in (False, True)]
        count = round(len(kinds[0]) * relevant / (1 - relevant))
        if count > len(kinds[1]):
            raise HastenError(f"{len(kinds[1])} relevant signals are fewer than {count}: give a smaller share")
        chosen = torch.cat([kinds[0], kinds[1][torch.randperm(len(kinds[1]), generator=generator)[:count]]])
        chosen = chosen[torch.randperm(len(chosen), generator=generator)]
        return self.stream[chosen], self.stream_relevant[chosen]


def detection_signals(counts: tuple[int, int, int] = (12_000, 60_000, 100_000), digit: int = 3) -> DetectionSignals:
    """Signals of MNIST-1D, a tenth of which show the digit.

    Raises:
        HastenError: fewer than ten signals.
    """
    parts = MNIST1D(counts).parts
    found = []
    for split in SPLITS:
        x, digits = parts[split]
        found += [x, digits == digit]
    return DetectionSignals(*found)


def detectors(seed: int = 0) -> dict[str, nn.Module]:
    """``small``, a hidden layer of 16, and ``large``, three convolutions: signals to one score, untrained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        small = nn.Sequential(nn.Flatten(), nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 1))
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 24), (24, 24), (24, 24)):
            layers += [nn.Conv1d(inputs, outputs, 5, stride=2 if inputs > 1 else 1, padding=2), nn.ReLU()]
        large = nn.Sequential(*layers, nn.Flatten(), nn.Linear(240, 64), nn.ReLU(), nn.Linear(64, 1))
    return {"small": small, "large": large}


def trained_detectors(
    signals: DetectionSignals, *, steps: int = 1000, batch: int = 128, rate: float = 3e-3, seed: int = 0
) -> dict[str, nn.Module]:
    """`detectors` trained on the training signals, half of each batch relevant; in evaluation mode.

    Raises:
        HastenError: a loss became infinite or NaN.
    """
    kinds = [torch.nonzero(signals.training_relevant == kind).ravel() for kind in (False, True)]
    made = detectors(seed)
    for name, module in made.items():
        generator = torch.Generator().manual_seed(seed)

        def loss(step: int, module: nn.Module = module, generator: torch.Generator = generator) -> Tensor:
            chosen = torch.cat([k[torch.randint(len(k), (batch // 2,), generator=generator)] for k in kinds])
            wanted = signals.training_relevant[chosen].float()
            return F.binary_cross_entropy_with_logits(module(signals.training[chosen])[:, 0], wanted)

        optimizer = torch.optim.Adam(module.parameters(), lr=rate)
        trained = train(module, loss, optimizer=optimizer, steps=steps, schedule=Cosine(), keep=0)
        trained.finished(f"training the {name} detector")
        module.eval()
    return made
