"""Residual networks at their published sizes, and those of SimpleNet's comparison."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import ResidualRun, ResNet, residual_runs
from hasten.models.matching import parameters_of
from hasten.models.vision.backbone import multiply_accumulates


@pytest.mark.parametrize(
    ("name", "parameters", "products"), [("resnet-18", 11_689_512, 1814.1), ("resnet-34", 21_797_672, 3663.8)]
)
def test_published_sizes(name: str, parameters: int, products: float) -> None:
    with torch.device("meta"):
        net = ResNet.named(name)
    assert parameters_of(net) == parameters
    assert multiply_accumulates(net, (3, 224, 224)) / 1e6 == pytest.approx(products, rel=1e-3)


@pytest.mark.parametrize(("blocks", "width", "parameters"), [(1, 16, 75e3), (3, 9, 86e3), (5, 7, 90e3)])
def test_small_ones_have_simplenet_s_budget(blocks: int, width: int, parameters: float) -> None:
    assert parameters_of(ResNet(10, 1, (blocks,) * 3, width)) == pytest.approx(parameters, rel=0.01)


def test_shapes_change_without_weights_and_blocks_are_residual() -> None:
    torch.manual_seed(0)
    net = ResNet(10, 1, (3, 2), 4).eval()
    maps = net.features_only()(torch.randn(2, 1, 9, 9))
    assert [tuple(m.shape) for m in maps] == [(2, 4, 9, 9), (2, 8, 5, 5)]
    assert residual_runs(net, (torch.randn(2, 1, 9, 9),)) == [ResidualRun("stages.0", 0, 3)]
    stages = ResNet(10, 1, (2, 2), 4).stages
    twice = torch.nn.Sequential(stages[0], ResNet(10, 1, (3,), 4).stages[0]).eval()
    # Two stages of one shape are no blocks: those are within.
    found = residual_runs(twice, (torch.rand(1, 4, 6, 6),))
    assert found == [ResidualRun("0", 0, 2), ResidualRun("1", 0, 3)]
    with pytest.raises(HastenError, match="from 1"):
        ResNet(10, 1, ())
