"""The baseline with shared additions is the same function with the same gradients, up to rounding."""

from __future__ import annotations

import pytest
import torch

from hasten.kernels import native
from hasten.nn.naive_rational import NaiveRational
from hasten.nn.rational import GroupRational


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
def test_values_and_gradients_are_those_of_the_activation() -> None:
    torch.manual_seed(0)
    activation = GroupRational(16, 4, "swish")
    found = []
    for module in (activation, NaiveRational(activation)):
        torch.manual_seed(1)
        x = torch.randn(3, 5, 16, requires_grad=True)
        value = module(x)
        parameters = (activation.numerator, activation.denominator)
        found.append([value, *torch.autograd.grad(value.square().sum(), (x, *parameters))])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert list(NaiveRational(activation).parameters()) == list(activation.parameters())
