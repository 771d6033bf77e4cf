"""Rounding to steps: codes, thresholds, gradients, and what a chip does with whole numbers alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.nn.fake_quantization import (
    SymmetricQuantizer,
    fitted_threshold,
    requantize,
    requantizer,
    round_through,
    rounded_to,
)


def test_numbers_become_multiples_of_the_step_within_the_threshold() -> None:
    x = torch.tensor([-9.0, -1.0, 0.2, 0.5, 3.2, 7.4])
    found = rounded_to(x, torch.tensor([7.0]), 4)
    assert found.tolist() == [-7, -1, 0, 0, 3, 7]
    torch.testing.assert_close(rounded_to(x, torch.tensor([3.5]), 4)[2:4], torch.tensor([0.0, 0.5]))


def test_gradients_pass_within_the_threshold() -> None:
    x = torch.tensor([-9.0, 0.2, 3.3], requires_grad=True)
    rounded_to(x, torch.tensor([7.0]), 4).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1]
    y = torch.tensor([0.3], requires_grad=True)
    round_through(y).backward()
    assert y.grad is not None
    assert float(y.grad) == 1


def test_a_threshold_below_the_largest_tells_the_rest_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 500, generator=generator)
    x[0, 0] = 8
    found = fitted_threshold(x, 4, (1,))
    assert found.shape == (4, 1)
    assert found[0] < 0.8 * 8
    for threshold in (x.abs().amax(1, keepdim=True), 0.2 * found):
        errors = [(rounded_to(x, t, 4) - x).square().sum(1) for t in (found, threshold)]
        assert (errors[0] <= errors[1]).all()
    assert fitted_threshold(torch.zeros(3, 2), 4, (1,)).min() > 0


def test_a_quantizer_fits_what_passes() -> None:
    quantizer, x = SymmetricQuantizer(4, 3), torch.randn(3, 5, 2) * torch.tensor([0.1, 1, 10])[:, None, None]
    quantizer.observing = True
    found = quantizer(x)
    assert all(len(row.unique()) <= 15 for row in found)
    assert quantizer.threshold[0] < quantizer.threshold[1] < quantizer.threshold[2]
    torch.testing.assert_close(quantizer.step * 7, quantizer.threshold)
    quantizer.observing = False
    torch.testing.assert_close(quantizer(100 * x).abs().amax((1, 2)), quantizer.threshold)
    with pytest.raises(HastenError, match="2 to 16 bits"):
        SymmetricQuantizer(1)


@torch.no_grad()
def test_whole_numbers_alone_give_the_same_codes() -> None:
    """A layer, its normalization and ReLU: rounded in floats, and by codes, a scale and a bias."""
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(5, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
    norm(3 * torch.randn(50, 6, 2, 2) + 1)
    norm.eval()
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()
    weights, given, answered = SymmetricQuantizer(4, 6), SymmetricQuantizer(8), SymmetricQuantizer(8)
    x = torch.randn(2, 5, 7, 7)
    for quantizer in (weights, given, answered):
        quantizer.observing = True
    weight = conv.weight
    rounded = F.relu(norm(F.conv2d(given(x), weights(weight), padding=1)))
    floats = answered(rounded)
    codes = [(t / s).round() for t, s in ((given(x), given.step), (weights(weight), weights.step[:, None, None, None]))]
    assert codes[1].abs().max() <= 7
    scale, bias = requantizer(norm, weights.step, given.step, answered.step)
    found = requantize(F.conv2d(codes[0], codes[1], padding=1), scale, bias)
    wanted = (floats / answered.step).round()
    # Sums of floats may fall to the other side of a half.
    assert float((found - wanted).abs().max()) <= 1
    assert float((found != wanted).float().mean()) < 0.002
    assert found.min() >= 0
    assert found.max() <= 127
    assert requantize(torch.full((1, 6, 1, 1), -1e6), scale, bias, relu=False).min() == -127
