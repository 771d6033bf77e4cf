"""Pictures and sounds as events in time, 0 or 1 for each channel and step: what spiking networks are given."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.errors import HastenError


def poisson_events(pictures: Tensor, steps: int = 50, rate: float = 0.5, seed: int = 0) -> Tensor:
    """Each pixel a channel that has an event at each step with a probability of ``rate`` times its brightness.

    Args:
        pictures: (batch, ...) in 0 .. 1.
        steps: of time.
        seed: of the events.

    Returns:
        (batch, steps, pixels) fp32.

    Raises:
        HastenError: a brightness or a probability outside of 0 to 1, or fewer than no steps.
    """
    if steps < 0:
        raise HastenError(f"events of {steps} steps: give a number from 0")
    bright = pictures.flatten(1).float()
    if not 0 <= rate <= 1 or (bright.numel() and not (float(bright.min()) >= 0 and float(bright.max()) <= 1)):
        raise HastenError("brightness and rate are probabilities: scale both to 0 .. 1")
    drawn = torch.rand(len(bright), steps, bright.shape[1], generator=torch.Generator().manual_seed(seed))
    return (drawn < rate * bright[:, None]).float()


def scan_events(pictures: Tensor, steps: int = 48, levels: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)) -> Tensor:
    """Pictures scanned column by column: a row is a signal in time, with an event at each step for each level that it
    has crossed and is above.

    Args:
        pictures: (batch, height, width) in 0 .. 1.
        steps: that the scan from the left edge to the right one takes.
        levels: of brightness.

    Returns:
        (batch, steps, height x levels) fp32.

    Raises:
        HastenError: pictures of another shape or without columns, or no steps.
    """
    if pictures.dim() != 3 or not pictures.shape[2] or steps < 1:
        raise HastenError(
            f"pictures of {tuple(pictures.shape)} in {steps} steps: give (batch, height, width), and steps"
        )
    signals = F.interpolate(pictures.float(), steps, mode="linear", align_corners=True)
    above = signals[..., None] > torch.tensor(levels)
    return above.permute(0, 2, 1, 3).flatten(2).float()
