"""Dense networks: published sizes, growth that keeps what is computed, weights by formula."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from hasten.cost.growing import calibrate
from hasten.cost.preserving import check_same, difference
from hasten.errors import HastenError
from hasten.models import DenseLayers, DenseNet
from hasten.models.vision.densenet import PUBLISHED

SIZES = {"densenet-bc-100-12": 769_162, "densenet-bc-250-24": 15_324_406, "densenet-bc-190-40": 25_624_430}


def weights(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def settled(layers: DenseLayers, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    network = DenseNet(layers, 2, 3).double().train()
    for _ in range(3):
        network(torch.randn(16, 2, 4, 4, dtype=torch.float64))
    return network.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model = DenseNet.named(name)
    assert weights(model) == model.layers.parameters(3, 10) == SIZES.get(name, weights(model))


def test_a_wider_layer_keeps_what_is_computed() -> None:
    network = settled(DenseLayers(4, ((2, 3), (2, 2))))
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64)
    grown = network.widened({(0, 1): 6, (1, 0): 4})
    assert grown.layers == DenseLayers(7, ((2, 6), (4, 2)))
    assert weights(grown) == grown.layers.parameters(2, 3)
    assert grown.stages[1][0][2].out_channels == (7 + 2 + 6) // 2
    check_same(network, grown, (x,), 1e-6)
    assert difference(network, network.widened({(0, 0): 4}, noise=1e-2), (x,)) > 1e-6
    with pytest.raises(HastenError, match="at least as many"):
        network.widened({(0, 0): 1})


def test_a_layer_is_put_behind_another() -> None:
    network = settled(DenseLayers(4, ((2, 3), (2, 2))))
    x = torch.randn(8, 2, 4, 4, dtype=torch.float64)
    for block, layer in ((0, 0), (0, 1), (1, 0), (1, 1)):
        grown = network.deepened(block, layer, seed=block)
        rows = [list(r) for r in network.layers.growths]
        rows[block].insert(layer + 1, rows[block][layer])
        assert grown.layers == DenseLayers(4, tuple(map(tuple, rows)))
        assert weights(grown) == grown.layers.parameters(2, 3)
        check_same(network, grown, (x,), 1e-6)
        # The new layer reads what the one in front has made with weights of 0 alone.
        new = grown.stages[block][layer + 1 + (block > 0)]
        assert not new.squeeze.weight[:, -rows[block][layer] :].any()
        assert difference(network, network.deepened(block, layer, noise=1e-2), (x,)) > 1e-6


def test_random_moves_keep_what_is_computed() -> None:
    rng = random.Random(0)
    for trial in range(4):
        network = grown = settled(DenseLayers(4, ((2, 2), (3,))), trial)
        x = torch.randn(8, 2, 4, 4, dtype=torch.float64)
        for move in range(9):
            block = rng.randrange(2)
            layer = rng.randrange(len(grown.layers.growths[block]))
            if rng.random() < 0.5:
                grown = grown.widened({(block, layer): grown.layers.growths[block][layer] + 1}, seed=move)
            else:
                grown = grown.deepened(block, layer, seed=move)
            assert weights(grown) == grown.layers.parameters(2, 3)
        assert not calibrate(grown, (x,))
        assert difference(network, grown, (x,)) < 1e-6


def test_what_is_no_network_is_refused() -> None:
    for wrong in ((0, ((1,),)), (4, ()), (4, ((),)), (4, ((0,),))):
        with pytest.raises(HastenError, match="each of a growth from 1"):
            DenseLayers(*wrong)
    with pytest.raises(HastenError, match="takes in_chans from 1"):
        DenseNet.named("densenet-bc-100-12", in_chans=0)
    assert str(DenseLayers(4, ((2, 3), (2,)))) == "4 | g2 g3 | g2"
    for wrong in ((9, 0), (0, 99), (-1, 0)):
        for move in (lambda net, at: net.widened({at: 64}), lambda net, at: net.deepened(*at)):
            with pytest.raises(HastenError, match="there is no layer"):
                move(DenseNet(DenseLayers(4, ((2, 3), (2,)))), wrong)
