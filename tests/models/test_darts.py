"""DARTS' and PC-DARTS' published networks, the super-network, and what is derived from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.errors import HastenError
from hasten.models import named
from hasten.models.matching import parameters_of
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.darts import (
    CIFAR,
    GENOTYPES,
    IMAGENET,
    DartsConfig,
    DartsNetwork,
    genotype,
    read_genotype,
)

# Parameters for CIFAR-10 and ImageNet, millions of products, and parameters with the second head.
SIZES = {
    "pc-darts-cifar": (3_634_678, 5_270_560, 556.67, 571.14, 4_111_104, 6_531_336),
    "pc-darts-imagenet": (3_721_510, 5_342_464, 570.47, 581.63, 4_197_936, 6_603_240),
    "darts-v1": (3_169_414, 4_510_432, 500.99, 505.86, 3_645_840, 5_771_208),
    "darts-v2": (3_349_342, 4_718_752, 528.36, 529.91, 3_825_768, 5_979_528),
}
SMALL = DartsConfig(8, 3, resolution=8, channels=1, classes=5)


@pytest.mark.slow_except("pc-darts-*")
@pytest.mark.parametrize("name", SIZES)
def test_published_sizes_are_exact(name: str) -> None:
    found: list[float] = []
    with torch.device("meta"):
        networks = [DartsNetwork(c, GENOTYPES[name]) for c in (CIFAR, IMAGENET)]
        taught = [DartsNetwork(replace(c, auxiliary=True), GENOTYPES[name]) for c in (CIFAR, IMAGENET)]
    found += map(parameters_of, networks)
    found += [round(multiply_accumulates(n, (3, s, s)) / 1e6, 2) for n, s in zip(networks, (32, 224), strict=True)]
    found += map(parameters_of, taught)
    assert tuple(found) == SIZES[name]


def test_genotypes_are_read_as_they_are_published() -> None:
    text = (
        "PCDARTS = Genotype(normal=[('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 0), "
        "('dil_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 1), ('avg_pool_3x3', 0), ('dil_conv_3x3', 1)], "
        "normal_concat=range(2, 6), reduce=[('sep_conv_5x5', 1), ('max_pool_3x3', 0), ('sep_conv_5x5', 1), "
        "('sep_conv_5x5', 2), ('sep_conv_3x3', 0), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('sep_conv_3x3', 2)], "
        "reduce_concat=range(2, 6))"
    )
    assert read_genotype(text) == GENOTYPES["pc-darts-cifar"] == read_genotype(text.replace("range(2, 6)", "[2,3,4,5]"))
    assert read_genotype(repr(GENOTYPES["darts-v1"])) == GENOTYPES["darts-v1"]
    for wrong in ("", "Genotype(normal=[])", text.replace("range(2, 6)", "[2]"), text.replace("dil", "del")):
        with pytest.raises(HastenError):
            read_genotype(wrong)
    pairs = GENOTYPES["darts-v1"].normal
    for cell, message in ((pairs[:4], "8 pairs"), ((pairs[0], pairs[0], *pairs[2:]), "two different")):
        with pytest.raises(HastenError, match=message):
            genotype(cell, pairs)


def test_names_build_with_a_second_head() -> None:
    model: Any = named.build(
        "pc-darts-cifar", device="cpu", dtype=torch.float32, num_classes=3, in_chans=1, auxiliary=True
    )  # fmt: skip
    images: Tensor = torch.randn(1, 1, 32, 32)
    model.eval()
    first, second = model.both(images)
    assert torch.equal(first, model(images))
    assert second.shape == (1, 3)
    with pytest.raises(HastenError, match="no second head"):
        DartsNetwork(SMALL).both(torch.zeros(1, 1, 8, 8))


def test_paths_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    net = DartsNetwork(SMALL)
    images = torch.randn(4, 1, 8, 8)
    assert torch.equal(net(images), net(images))
    net.drop_path(0.5)
    assert not torch.equal(net(images), net(images))
    net.eval()
    assert torch.equal(net(images), net(images))
    with pytest.raises(HastenError, match="less than 1"):
        net.drop_path(1.0)
