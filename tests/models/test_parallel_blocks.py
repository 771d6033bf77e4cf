"""Residual blocks of any network are found, and stand side by side in a copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.cost.preserving import check_same, difference
from hasten.errors import HastenError
from hasten.models import ResidualRun, ResNet9, parallelize, residual_runs
from hasten.models.loading.tiny import tiny_model
from hasten.nn import FusedMBConv


class Basic(nn.Module):
    """A block of a classic ResNet: the activation stands behind the sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def encoder(layers: int = 3) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(8, 2, 16, norm_first=True, batch_first=True, activation="gelu")
    made = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    return made


def test_runs_are_blocks_that_would_be_nothing_without_weights() -> None:
    stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    plain = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU())
    network = nn.Sequential(stem, Basic(6), Basic(6), plain, plain, FusedMBConv(6, 6, 12), nn.Identity(), Basic(6))
    images = (torch.randn(2, 3, 8, 8),)
    assert residual_runs(network, images) == [ResidualRun("", 1, 2)]
    assert network.training
    with pytest.raises(HastenError, match="no residual blocks"):
        parallelize(nn.Sequential(stem, plain), images)
    with pytest.raises(HastenError, match="no run of this network"):
        parallelize(network, images, runs=[ResidualRun("", 2, 2)])


def test_blocks_of_a_resnet_stand_side_by_side() -> None:
    blocks = [Basic(4) for _ in range(5)]
    network = nn.Sequential(nn.ReLU(), *blocks, nn.Flatten()).eval()
    x = torch.rand(2, 4, 6, 6)
    made = parallelize(network, (x,), together=2)
    with torch.no_grad():
        one = blocks[0](x) + blocks[1](x) - x
        two = blocks[2](one) + blocks[3](one) - one
        torch.testing.assert_close(made(x), blocks[4](two).flatten(1))
    assert len(made) == len(network)
    assert sum(p.numel() for p in made.parameters()) == sum(p.numel() for p in network.parameters())
    exact = parallelize(network, (x,), together=2, runs=[ResidualRun("", 1, 2)], order=2)
    assert 0 < difference(network, exact, (x,)) < difference(network, parallelize(network, (x,), together=None), (x,))


def test_sums_outside_of_blocks_are_no_residual_blocks() -> None:
    network = ResNet9(5, 3, 4, (8,), (3,)).eval()
    images = (torch.rand(2, 3, 8, 8),)
    with pytest.raises(HastenError, match="no residual blocks"):  # the sum is the network's, not the block's
        parallelize(network, images)


def test_layers_of_a_transformer_are_taken_apart_and_fused() -> None:
    network, x = encoder(), (torch.randn(2, 5, 8),)
    assert residual_runs(network, x) == [ResidualRun("layers", 0, 3)]
    inside = parallelize(network, x, together=1, split=True)
    layer: Any = network.layers[0]
    with torch.no_grad():
        normed = layer.norm1(x[0])
        attended = layer.self_attn(normed, normed, normed)[0]
        wanted = x[0] + attended + layer.linear2(layer.activation(layer.linear1(layer.norm2(x[0]))))
        torch.testing.assert_close(inside.layers[0](x[0]), wanted, rtol=1e-4, atol=1e-5)
    apart = parallelize(network, x, together=3, split=True)
    fused = parallelize(network, x, together=3, split=True, fused=True)
    check_same(apart, fused, x, 1e-5)
    assert any(isinstance(m, nn.Linear) and m.out_features == 48 for m in fused.modules())
    assert difference(network, apart, x) > 1e-2


def test_decoders_of_transformers_stand_side_by_side() -> None:
    network = tiny_model(layers=4).network.eval()
    ids, kwargs = torch.randint(0, 40, (2, 8)), {"use_cache": False}
    inside = parallelize(network, (ids,), kwargs, together=1, split=True)
    gaps = []
    for scale in (0.1, 0.05):
        small = tiny_model(layers=4).network.eval()
        small.load_state_dict(network.state_dict())
        for layer in small.model.layers:
            layer.self_attn.o_proj.weight.data *= scale
            layer.mlp.down_proj.weight.data *= scale
        changed = parallelize(small, (ids,), kwargs, together=2)
        with torch.no_grad():
            gaps.append(float((changed(ids, **kwargs).logits - small(ids, **kwargs).logits).norm()))
    assert 3 < gaps[0] / gaps[1] < 5  # what is left out falls with the square
    with torch.no_grad():
        assert inside(ids, **kwargs).logits.isfinite().all()
