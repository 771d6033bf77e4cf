"""Deep and shallow networks of equal weights, and a warning where the shallow one cannot see the image."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.models import ResidualConvNet
from hasten.models.matching import parameters_of
from hasten.models.vision.backbone import multiply_accumulates
from hasten.nn import fuse_parallel


def test_deep_and_shallow_have_the_same_weights_and_products() -> None:
    nets = [ResidualConvNet(10, 1, 8, 8, 6, groups=groups) for groups in (None, 3, 1)]
    assert {parameters_of(n) for n in nets} == {80 + 6 * 584 + 5130}
    assert len({multiply_accumulates(n, (1, 8, 8)) for n in nets}) == 1
    fused = fuse_parallel(nets[-1].stack)
    assert sum(p.numel() for p in fused.parameters()) == 6 * 584


def test_determination_is_answers_over_weights() -> None:
    net = ResidualConvNet(10, 1, 8, 8, 8)
    assert net.determination(1200) == pytest.approx(12000 / 9882)


def test_averaging_what_nobody_saw_whole_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="outputs see 5 of 8 pixels"):
        ResidualConvNet(10, 1, 8, 8, 8, groups=1, pooled=True)
    assert ResidualConvNet(10, 1, 8, 8, 8, pooled=True).field == 19
    assert ResidualConvNet(10, 1, 8, 8, 8, groups=1, kernel=5, pooled=True)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(HastenError, match="odd kernels"):
        ResidualConvNet(10, 1, 8, 8, 8, kernel=2)
