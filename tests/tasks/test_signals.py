"""MNIST-1D: signals as the paper's description makes them, one at a time, from the same draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.errors import HastenError
from hasten.tasks.signals import MNIST1D, SignalDraws, signals, strokes


def one_signal(digit: int, draws: SignalDraws, i: int) -> np.ndarray:
    """Pad, stretch, scale, turn, add noise, slant and shorten, in the order of the paper's appendix."""
    from scipy.ndimage import gaussian_filter

    def stretched(x: np.ndarray, length: int) -> np.ndarray:
        return np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(x)), x)

    x = strokes()[digit].numpy() + 1e-8
    x = stretched(np.concatenate([x, np.zeros(int(draws.blanks[i]))]), 72) * float(draws.scales[i])
    x = np.roll(x, int(draws.shifts[i]))
    blank = np.abs(x) < 1e-12
    x = np.where(blank, gaussian_filter(0.25 * draws.smoothed[i].numpy(), 2), x) + 0.02 * draws.noise[i].numpy()
    return stretched(x - float(draws.slants[i]) * np.linspace(-0.5, 0.5, 72), 40)


def test_signals_are_the_paper_s() -> None:
    pytest.importorskip("scipy")
    generator = torch.Generator().manual_seed(1)
    digits = torch.arange(60) % 10
    draws = SignalDraws.of(60, generator)
    made = signals(digits, draws)
    assert made.shape == (60, 40)
    for i, digit in enumerate(digits.tolist()):
        assert made[i].numpy() == pytest.approx(one_signal(digit, draws, i), abs=1e-6)


def test_draws_are_of_the_paper_s_ranges() -> None:
    draws = SignalDraws.of(5000, torch.Generator().manual_seed(0))
    assert (int(draws.blanks.min()), int(draws.blanks.max())) == (36, 60)
    assert (int(draws.shifts.min()), int(draws.shifts.max())) == (0, 47)
    assert 0.8 <= float(draws.scales.min()) < 0.81
    assert 0.365 < float(draws.slants.max()) <= 0.375
    assert strokes()[:, 0].abs().max() == 0
    assert torch.allclose(strokes().std(1, correction=0), torch.tensor(1 / 6).double())


def test_a_linear_classifier_knows_little_of_it_as_in_the_paper() -> None:
    task = MNIST1D()
    (x, y), (held, answers) = task.parts["training"], task.parts["test"]
    assert torch.equal(torch.bincount(y), torch.full((10,), 400))
    assert (float(x.mean()), float(x.std())) == pytest.approx((0, 1), abs=1e-5)

    def with_one(signals: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(signals[:, 0], (0, 1), value=1.0)

    weights = torch.linalg.lstsq(with_one(x), torch.nn.functional.one_hot(y, 10).float()).solution
    accuracy = float(((with_one(held) @ weights).argmax(-1) == answers).float().mean())
    assert 0.22 < accuracy < 0.42  # 32 % there


def test_points_in_another_order_and_what_is_refused() -> None:
    plain, shuffled = MNIST1D((20, 10, 10)), MNIST1D((20, 10, 10), shuffled=True)
    x, y = plain.parts["training"][0], shuffled.parts["training"][0]
    assert not torch.equal(x, y)
    assert torch.equal(x.sort(-1).values, y.sort(-1).values)
    with pytest.raises(HastenError, match="three counts from 10"):
        MNIST1D((20, 10, 9))
