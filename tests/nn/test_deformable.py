"""Restricted offsets: each form is the one before where it does not bind, and plain where nothing moves."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.kernels.deform_conv import FORMS, Form, deform_conv2d
from hasten.nn.deformable import OPERATORS, DeformableConv2d, operator, plain_convolution, tap_offsets


def moved(form: Form, **options: Any) -> DeformableConv2d:
    """A layer whose offsets differ from place to place."""
    torch.manual_seed(0)
    layer = DeformableConv2d(6, 5, form, **options)
    with torch.no_grad():
        layer.offsets.weight.normal_(std=0.4)
        layer.offsets.bias.normal_(std=0.5)  # type: ignore[union-attr]
    return layer


@pytest.mark.parametrize(("form", "depthwise"), list(itertools.product(FORMS, (False, True))))
def test_it_starts_as_a_plain_convolution(form: Form, depthwise: bool) -> None:
    layer, x = DeformableConv2d(6, 5, form, depthwise=depthwise), torch.randn(2, 6, 7, 8)
    seen = F.conv2d(x, layer.pointwise.weight) if depthwise else x  # type: ignore[arg-type]
    wanted = F.conv2d(seen, layer.weight, padding=1, groups=5 if depthwise else 1)
    torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-6)
    layer(x).square().sum().backward()
    assert layer.offsets.weight.grad is not None
    assert layer.offsets.weight.grad.any()  # and leaves that start


@pytest.mark.parametrize("form", FORMS)
def test_depthwise_is_a_kernel_of_zeros_between_channels(form: Form) -> None:
    layer, x = moved(form, depthwise=True), torch.randn(2, 6, 7, 8)
    seen = layer.pointwise(x)
    whole = torch.diag_embed(layer.weight[:, 0].permute(1, 2, 0)).permute(2, 3, 0, 1)
    torch.testing.assert_close(layer(x), deform_conv2d(seen, layer.trace_offsets(x), whole), rtol=1e-4, atol=1e-5)


def test_no_bound_is_none_and_a_bound_of_0_is_a_plain_convolution() -> None:
    predicted = 3 * torch.randn(1, 18, 4, 5)
    assert torch.equal(tap_offsets(predicted, "bound", math.inf), tap_offsets(predicted, "original"))
    assert tap_offsets(predicted, "bound", 2.0).abs().max() == 2
    layer, x = moved("bound", bound=0.0), torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=1), rtol=1e-5, atol=1e-6)


def test_a_square_is_a_dilation_for_each_place() -> None:
    x = torch.randn(1, 6, 9, 9)
    layer = DeformableConv2d(6, 5, "square")
    with torch.no_grad():
        layer.offsets.bias.fill_(1.0)  # type: ignore[union-attr]
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, padding=2, dilation=2), rtol=1e-5, atol=1e-6)
    spread = tap_offsets(torch.tensor([-1.0, 0.5, 99.0]).reshape(1, 1, 1, 3), "square", 8.0)
    assert spread.reshape(9, 2, 3)[4].abs().max() == 0  # the middle stays
    assert spread.reshape(9, 2, 3)[0].tolist() == [[0, -0.5, -8], [0, -0.5, -8]]
    assert spread.reshape(9, 2, 3)[8].tolist() == [[0, 0.5, 8], [0, 0.5, 8]]
    # Places differ: half of the map at another dilation.
    with torch.no_grad():
        layer.offsets.weight[0, 0, 1, 1] = 1.0
        x[:, 0], x[:, 0, :, :4] = 0, 1
    found, far = layer(x), F.conv2d(x, layer.weight, padding=3, dilation=3)
    torch.testing.assert_close(found[..., 5:], F.conv2d(x, layer.weight, padding=2, dilation=2)[..., 5:])
    torch.testing.assert_close(found[..., :4], far[..., :4])


def test_rounded_offsets_are_whole_and_still_learn() -> None:
    layer, x = moved("original", rounded=True), torch.randn(1, 6, 7, 7)
    offsets = layer.trace_offsets(x)
    assert torch.equal(offsets, offsets.round())
    assert offsets.any()
    layer(x).square().sum().backward()
    assert layer.offsets.weight.grad is not None
    assert layer.offsets.weight.grad.any()


def test_what_the_bound_cuts_off_is_told() -> None:
    x = torch.randn(1, 6, 7, 7)
    layer = DeformableConv2d(6, 5, "square")
    assert layer.stuck(x) == 0
    with torch.no_grad():
        layer.offsets.bias.fill_(-0.5)  # type: ignore[union-attr]
    assert layer.stuck(x) == 1
    layer(x).sum().backward()
    assert not layer.offsets.weight.grad.any()  # type: ignore[union-attr]
    assert moved("original").stuck(x) == 0


def test_operators_by_name() -> None:
    assert len(OPERATORS) == 8
    x = torch.randn(2, 6, 5, 5)
    for name in OPERATORS:
        made = operator(name, 2.0)(6, 5)
        assert made(x).shape == (2, 5, 5, 5)
        assert not isinstance(made, DeformableConv2d) or (made.bound, made.depthwise) == (2.0, "depthwise" in name)
    assert [type(m) for m in plain_convolution(6, 5, depthwise=True)] == [  # type: ignore[attr-defined]
        nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d
    ]  # fmt: skip


def test_bad_options_are_one_line() -> None:
    with pytest.raises(HastenError, match="is original, bound, square, not 'round'"):
        DeformableConv2d(6, 5, "round")  # type: ignore[arg-type]
    with pytest.raises(HastenError, match="a bound from 0"):
        DeformableConv2d(6, 5, bound=-1)
    with pytest.raises(HastenError, match="no operator is called 'k3'"):
        operator("k3")
