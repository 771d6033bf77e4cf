"""Networks whose numbers are rounded while they train: what is rounded, to how many values, and that it learns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models.vision.centernet import SizingNetwork
from hasten.nn.deformable import DeformableConv2d, operator
from hasten.train.fitting import fit
from hasten.train.quantization_aware import quantization_aware, weight_bytes


def network() -> SizingNetwork:
    torch.manual_seed(0)
    made = SizingNetwork(operator("square-depthwise", 2.0))
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, DeformableConv2d):
                layer.offsets.weight.normal_(std=0.3)
    return made


def test_every_weight_has_fifteen_values_a_channel_and_offsets_are_whole() -> None:
    plain, x = network(), torch.rand(8, 1, 16, 16)
    before = copy.deepcopy(plain.state_dict())
    made = quantization_aware(plain.eval(), x)
    assert all(torch.equal(t, before[n]) for n, t in plain.state_dict().items())
    layers = [m for m in made.modules() if isinstance(m, nn.Conv2d | nn.Linear | DeformableConv2d)]
    assert len(layers) == 2 + 2 * 3 + 2
    for layer in layers:
        weight = layer.weight
        assert all(len(row.unique()) <= 15 for row in weight)
    read: list[torch.Tensor] = []
    made.features[3].register_forward_hook(lambda layer, given, answer: read.append(given[0]))
    moved = [m for m in layers if isinstance(m, DeformableConv2d)]
    name, _ = made.eval()(x)
    assert len(read[0].unique()) <= 255
    assert all(m.rounded for m in moved)
    assert name.isfinite().all()
    assert float((name - plain.eval()(x)[0]).norm() / name.norm()) < 0.5
    assert weight_bytes(made) == weight_bytes(plain) == sum(p.numel() for p in plain.parameters()) / 2


def test_it_learns_behind_its_roundings() -> None:
    x, wanted = torch.rand(16, 1, 16, 16), torch.randint(10, (16,))
    made = quantization_aware(network(), x).train()
    losses = fit(
        made, lambda step: nn.functional.cross_entropy(made(x)[0], wanted), steps=40, peak=1e-2, weight_decay=0.0
    )
    assert losses[-1] < 0.5 * losses[0]
    copied = copy.deepcopy(made)
    torch.testing.assert_close(copied.eval()(x), made.eval()(x))
    with torch.no_grad():
        for p in copied.parameters():
            p.zero_()
    assert not torch.equal(copied(x)[0], made(x)[0])  # of its own weights


def test_what_cannot_be_rounded_is_one_line() -> None:
    with pytest.raises(HastenError, match="nothing to round"):
        quantization_aware(nn.ReLU(), torch.zeros(1))
    made = quantization_aware(nn.Linear(4, 4), torch.randn(3, 4))
    with pytest.raises(HastenError, match="nothing to round"):
        quantization_aware(made, torch.randn(3, 4))
