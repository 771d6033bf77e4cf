"""What a module asks of an array: each layer counted, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.cost.chips.dataflow import ConvShape
from hasten.cost.chips.loop_nest import convolution
from hasten.cost.chips.module_layers import conv_shapes, grouped_shapes
from hasten.errors import HastenError
from hasten.models.vision.resnet9 import ResNet9


def test_layers_of_a_module():
    network = ResNet9(10, 1, 8, (16, 24), (1, 0)).train()
    shapes = conv_shapes(network, (1, 1, 14, 14))
    assert network.training
    assert shapes == (
        ConvShape(8, 1, 3, 3, 14, 14),
        ConvShape(16, 8, 3, 3, 14, 14),
        ConvShape(16, 16, 3, 3, 7, 7),
        ConvShape(16, 16, 3, 3, 7, 7),
        ConvShape(24, 16, 3, 3, 7, 7),
        ConvShape(10, 24, 1, 1, 1, 1),
    )
    assert network(torch.zeros(2, 1, 14, 14)).shape == (2, 10)
    with pytest.raises(HastenError, match="groups"):
        conv_shapes(nn.Conv2d(4, 4, 3, groups=4), (1, 4, 8, 8))
    with pytest.raises(HastenError, match="skips"):
        ResNet9(10, 1, 8, (16,), (1, 0))


def test_a_token_is_a_row_and_a_batch_is_not():
    assert conv_shapes(nn.Linear(64, 64), (1, 196, 64)) == (ConvShape(64, 64, 1, 1, 196, 1),)
    assert conv_shapes(nn.Linear(64, 64), (5, 196, 64))[0].macs == 802_816
    assert conv_shapes(nn.Linear(64, 32), (7, 64)) == (ConvShape(32, 64, 1, 1, 1, 1),)
    # Tokens that a module folds into the batch are rows all the same.
    folded = nn.Sequential(nn.Flatten(0, 1), nn.Linear(8, 4))
    assert conv_shapes(folded, (2, 10, 8)) == (ConvShape(4, 8, 1, 1, 10, 1),)
    frames = nn.Sequential(nn.Flatten(0, 1), nn.Conv2d(3, 4, 3))
    assert conv_shapes(frames, (2, 5, 3, 8, 8)) == (ConvShape(4, 3, 3, 3, 6, 6),) * 5
    assert conv_shapes(nn.Flatten(), (1, 3, 4)) == ()


def test_each_axis_has_its_stride():
    for stride, inputs in (((1, 2), 3 * 30 * 15 * 2), ((2, 1), 3 * 15 * 30 * 2), ((2, 2), 3 * 15 * 15 * 4)):
        (shape,) = conv_shapes(nn.Conv2d(3, 8, 3, stride=stride), (1, 3, 32, 32))
        assert shape.strides == stride
        assert shape.inputs == inputs
        nest = convolution(shape)
        assert [dict(d)[r] for d, r in zip(nest.operands[1].dimensions[-2:], "yx", strict=True)] == list(stride)
    assert ConvShape(8, 3, 3, 3, 4, 4, 2) == ConvShape(8, 3, 3, 3, 4, 4, 2, 2)
    assert conv_shapes(nn.Conv1d(3, 8, 3, stride=2), (1, 3, 33)) == (ConvShape(8, 3, 1, 3, 1, 16, 1, 2),)
    assert grouped_shapes(nn.Conv2d(4, 8, 3, groups=4), (1, 4, 8, 8)) == ((ConvShape(2, 1, 3, 3, 6, 6), 4),)


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (nn.Conv3d(3, 8, 3), (1, 3, 8, 8, 8)),
        (nn.ConvTranspose2d(3, 8, 3), (1, 3, 8, 8)),
        (nn.ConvTranspose1d(3, 8, 3), (1, 3, 8)),
        (nn.TransformerEncoderLayer(64, 4, 128, batch_first=True), (1, 196, 64)),
        (nn.GRU(8, 8), (1, 4, 8)),
    ],
)
def test_what_multiplies_otherwise_is_refused(module, inputs):
    with pytest.raises(HastenError, match="no mapping to these dataflows"):
        conv_shapes(module, inputs)
