"""ProxylessNAS' published networks, its super-network, and what is cut out of it."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import named
from hasten.models.matching import parameters_of
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.proxyless import PUBLISHED, ProxylessConfig, ProxylessNet, ProxylessSuperNet

SMALL = ProxylessConfig((8, 12), (2, 2), (2, 1), stem=8, first=6, last=16, resolution=16, channels=1, classes=5)
SIZES = {
    "proxylessnas-mobile": (4_080_512, 320.43), "proxylessnas-gpu": (7_119_848, 465.26),
    "proxylessnas-cpu": (4_361_648, 439.24), "proxylessnas-mobile-1.4": (6_857_568, 580.88),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_are_exact(name: str) -> None:
    with torch.device("meta"):
        model = ProxylessNet.named(name)
    products = multiply_accumulates(model, (3, 224, 224)) / 1e6
    assert (parameters_of(model), round(products, 2)) == SIZES[name]
    assert model.chosen == model.config.of_names(PUBLISHED[name][1])


def test_the_space_is_the_papers() -> None:
    config = ProxylessConfig()
    assert len(config.places()) == 21
    # The first block of each stage changes the shape: no place for none.
    assert [n for n in config.choices() if n == 6] == [6] * 6
    assert config.choices()[1] == 7
    assert config.operations == ("k3_e3", "k3_e6", "k5_e3", "k5_e6", "k7_e3", "k7_e6", "none")


def test_names_build_with_other_heads() -> None:
    model: Any = named.build("proxylessnas_mobile", device="cpu", dtype=torch.float32, num_classes=3, in_chans=1)
    assert model.num_classes == 3
    assert model.feature_info[-1] == {"num_chs": 320, "reduction": 32, "module": "stages.5"}
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {1e-3}
    with pytest.raises(HastenError, match="in_chans from 1"):
        ProxylessNet.named("proxylessnas-cpu", in_chans=0)


def test_a_network_is_cut_out_bit_for_bit() -> None:
    torch.manual_seed(0)
    supernet = ProxylessSuperNet(SMALL)
    images = torch.randn(3, 1, 16, 16)
    supernet(images)  # statistics that are not those of the start
    supernet.eval()
    rng = random.Random(0)
    for _ in range(4):
        chosen = tuple(rng.randrange(n) for n in SMALL.choices())
        supernet.choose(chosen)
        cut = supernet.extract(chosen)
        assert not cut.training
        assert torch.equal(cut(images), supernet(images))
    supernet.choose((0, SMALL.none, 0, SMALL.none))
    assert len(list(supernet.extract((0, SMALL.none, 0, SMALL.none)).stages[0].children())) == 1


def test_logits_and_weights_are_apart() -> None:
    supernet = ProxylessSuperNet(SMALL)
    logits, weights = supernet.logits(), list(supernet.weights())
    assert [len(row) for row in logits] == SMALL.choices() == [6, 7, 6, 7]
    assert len(logits) + len(weights) == len(list(supernet.parameters()))
    with torch.no_grad():
        logits[1][6] += 1
    assert supernet.best()[1] == SMALL.none


def test_what_is_no_network_is_said() -> None:
    for chosen in ((0,), (6, 0, 0, 0), (-1, 0, 0, 0)):
        with pytest.raises(HastenError, match="is 4 numbers from 0 to 6"):
            SMALL.check(chosen)
    with pytest.raises(HastenError, match="no block is written '9/9'"):
        SMALL.of_names("9/9 - | - -")
    for wrong, message in (({"depths": (1,)}, "equal length"), ({"kernels": (2,)}, "odd"), ({"resolution": 0}, "at")):
        with pytest.raises(HastenError, match=message):
            ProxylessConfig(**wrong)
