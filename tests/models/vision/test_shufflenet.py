"""ShuffleNetV2: published sizes, halves and shuffles."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import ShuffleBlock, ShuffleNetConfig, ShuffleNetV2, named
from hasten.models.matching import parameters_of
from hasten.models.vision.backbone import multiply_accumulates


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("shufflenet-v2-0.5", 1_366_792), ("shufflenet_v2_x1_0", 2_278_604), ("shufflenet-v2-1.5", 3_503_624),
        ("shufflenet-v2-2.0", 7_393_996),
    ],
)  # fmt: skip
def test_sizes_are_exact(name: str, parameters: int) -> None:
    assert parameters_of(lambda: named.build(name)) == parameters


def test_products_are_those_published() -> None:
    assert multiply_accumulates(named.build("shufflenet-v2-1.0"), (3, 224, 224)) / 1e6 == pytest.approx(146, rel=0.02)


def test_half_of_the_channels_passes_and_halves_are_shuffled() -> None:
    block = ShuffleBlock(6, 6).eval()
    x = torch.randn(2, 6, 4, 4)
    found = block(x)
    assert torch.equal(found[:, 0::2], x[:, :3])
    assert torch.equal(found[:, 1::2], block.through(x[:, 3:]))
    assert ShuffleBlock(6, 8, halves=True)(torch.randn(2, 6, 5, 7)).shape == (2, 8, 3, 4)


def test_a_first_layer_of_stride_4_has_no_pooling() -> None:
    made = [ShuffleNetV2(ShuffleNetConfig((8, 8, 8), 16, (1, 1, 1), 4, pooled=p, classes=3)) for p in (True, False)]
    assert parameters_of(made[0]) == parameters_of(made[1])
    x = torch.randn(2, 3, 64, 64)
    assert made[0].stem(x).shape == made[1].stem(x).shape == (2, 4, 16, 16)


def test_bad_sizes_are_one_line() -> None:
    with pytest.raises(HastenError, match="three stages"):
        ShuffleNetConfig(depths=(1, 0, 1))
    with pytest.raises(HastenError, match="widths are even"):
        ShuffleNetConfig((3, 4, 6))
