"""Modules as circuits of whole numbers: near the module, more so with more bits; other modules are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.hardware.hls.quantized_engine import quantized_engine


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))


def small_conv() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5, bias=False))


def waves() -> nn.Sequential:
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))


@pytest.mark.parametrize(("make", "shape"), [(dense, (6,)), (small_conv, (2, 5, 5)), (waves, (2, 8))])
def test_it_computes_what_the_module_does(make, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module, x = make(), torch.randn(64, *shape)
    with torch.no_grad():
        expected = module(x).double()
    errors = []
    for bits in (6, 10, 16):
        engine = quantized_engine(module, x, bits=bits, reuse=4)
        errors.append(float((engine.outputs(x) - expected).abs().max() / expected.abs().max()))
        assert engine.design.bits == bits
    assert errors[2] < 2e-3
    assert errors[2] < errors[1] < errors[0] < 0.5


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(4, 2), "nn.Sequential"),
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), "stands behind"),
        (nn.Sequential(nn.Linear(4, 2), nn.Tanh()), "no layer of a circuit"),
        (nn.Sequential(), "at least one layer"),
        (nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3, padding=1)), "no layer of a circuit"),
    ],
)
def test_other_modules_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(HastenError, match=message):
        quantized_engine(module, torch.randn(3, 4))


def test_convolutions_that_no_engine_has_are_refused() -> None:
    for conv in (nn.Conv1d(2, 2, 3, padding=1), nn.Conv1d(2, 2, 3, groups=2), nn.Conv1d(2, 2, 3, dilation=2)):
        with pytest.raises(HastenError, match="no padding"):
            quantized_engine(nn.Sequential(conv), torch.randn(3, 2, 9))
    broken = nn.Sequential(nn.Linear(2, 2))
    nn.init.constant_(broken[0].weight, float("nan"))
    with pytest.raises(HastenError, match="not finite"):
        quantized_engine(broken, torch.randn(3, 2))
