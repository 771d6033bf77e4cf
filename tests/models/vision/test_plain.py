"""Plain networks: growth that keeps what is computed, weights by formula."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn

from hasten.cost.growing import calibrate, deepen
from hasten.cost.preserving import check_same, difference
from hasten.errors import HastenError
from hasten.models import PlainLayers, PlainNet
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.plain import PUBLISHED


def weights(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def settled(layers: PlainLayers, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    network = PlainNet(layers, 2, 3).double().train()
    for _ in range(3):
        network(torch.randn(16, 2, 4, 4, dtype=torch.float64))
    return network.eval()


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_by_formula(name: str) -> None:
    model = PlainNet.named(name)
    assert weights(model) == model.layers.parameters(3, 10)


@pytest.mark.parametrize("name", PUBLISHED)
def test_products_by_formula(name: str) -> None:
    with torch.device("meta"):
        found = multiply_accumulates(PlainNet.named(name, num_classes=7, in_chans=2), (2, 24, 24))
    assert PUBLISHED[name].products(2, 7, 24) == found


def test_deepening_is_that_of_any_network() -> None:
    network = settled(PlainLayers((((3, 4), (5, 6)), ((3, 4),)), (8,)))
    for (block, layer), name in {(0, 0): "stages.0.1.0", (1, 0): "stages.1.1.0", (2, 0): "head.2.0"}.items():
        mine = network.deepened(block, layer, 3, noise=0.1, seed=3)
        general = deepen(network, name, network._example(), kernel=3, noise=0.1, seed=3)
        assert {k: v.tolist() for k, v in mine.state_dict().items()} == {
            k: v.tolist() for k, v in general.state_dict().items()
        }
        assert not mine.training
        assert str(mine.stages) == str(general.stages)
        x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
        assert torch.equal(mine(x), general(x))
    assert mine.layers.units == (8, 8)


def test_random_moves_keep_what_is_computed() -> None:
    rng = random.Random(0)
    start = PlainLayers((((3, 2), (1, 3)), ((3, 4),)), (5,))
    for trial in range(4):
        network = grown = settled(start, trial)
        x = torch.randn(8, 2, 4, 4, dtype=torch.float64)
        for move in range(9):
            block = rng.randrange(3)
            rows = [*([f for _, f in b] for b in grown.layers.blocks), list(grown.layers.units)]
            layer = rng.randrange(len(rows[block]))
            if rng.random() < 0.5:
                grown = grown.widened({(block, layer): rows[block][layer] + 2}, seed=move)
            else:
                grown = grown.deepened(block, layer, rng.choice((1, 3, 5)), seed=move)
            assert weights(grown) == grown.layers.parameters(2, 3)
            assert PlainNet(grown.layers, 2, 3).state_dict().keys() == grown.state_dict().keys()
        calibrate(grown, (x,))
        assert difference(network, grown, (x,)) < 1e-6


def test_moves_in_single_precision_keep_it_too() -> None:
    network = settled(PlainLayers((((3, 4),), ((3, 4),)), (8,))).float()
    x = torch.randn(8, 2, 4, 4)
    grown = network.widened({(0, 0): 7, (2, 0): 12}).deepened(1, 0, 3).deepened(2, 0)
    assert grown.layers == PlainLayers((((3, 7),), ((3, 4), (3, 4))), (12, 12))
    assert calibrate(grown, (x,)) == 2
    check_same(network, grown, (x,), 1e-5)
    assert network.layers == PlainLayers((((3, 4),), ((3, 4),)), (8,))


def test_what_is_no_network_is_refused() -> None:
    for wrong in ((), ((),), (((2, 4),),), (((3, 0),),)):
        with pytest.raises(HastenError, match="convolutions of odd kernels"):
            PlainLayers(wrong)
    with pytest.raises(HastenError, match="1 unit or more"):
        PlainLayers((((3, 4),),), (0,))
    with pytest.raises(HastenError, match="takes in_chans from 1"):
        PlainNet.named("eas-start-4", in_chans=0)
    with pytest.raises(HastenError, match="at least as many"):
        PlainNet.named("eas-start-4").widened({(0, 0): 2})
    for wrong in ((9, 0), (0, 5), (-1, 0)):
        with pytest.raises(HastenError, match="there is no layer"):
            PlainNet.named("eas-start-4").widened({wrong: 64})
        with pytest.raises(HastenError, match="there is no layer"):
            PlainNet.named("eas-start-4").deepened(*wrong)
