"""Inverted bottlenecks: shapes, skips, weights counted, and what is folded."""

from __future__ import annotations

import pytest
import torch

from hasten.cost.preserving import check_same, fold_normalization
from hasten.errors import HastenError
from hasten.nn import FusedMBConv, MBConv, SqueezeExcite
from hasten.nn.convolutional import activation


def _count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_weights_of_each_form() -> None:
    assert _count(MBConv(8, 8, 32, 3, 1, "relu", False)) == 8 * 32 + 32 * 9 + 32 * 8 + 2 * (32 + 32 + 8)
    assert _count(MBConv(8, 8, 32, 3, 1, "relu", False, normed=False)) == 8 * 32 + 32 * 9 + 32 * 8 + 32 + 32 + 2 * 8
    bare = MBConv(8, 8, 32, 3, 1, "relu", False, normed=False, bias=False)
    assert _count(bare) == 8 * 32 + 32 * 9 + 32 * 8 + 2 * 8
    assert _count(FusedMBConv(8, 12, 32)) == 9 * 8 * 32 + 32 * 12 + 2 * (32 + 12)
    assert _count(FusedMBConv(8, 12, 32, bias=True)) == _count(FusedMBConv(8, 12, 32)) + 32
    assert _count(FusedMBConv(8, 12, 32, squeezed=2)) == _count(FusedMBConv(8, 12, 32)) + 2 * 32 * 2 + 2 + 32
    assert _count(FusedMBConv(8, 12, 32, pooled_skip=True)) == _count(FusedMBConv(8, 12, 32)) + 8 * 12
    assert SqueezeExcite(64).reduce.out_channels == 16


@pytest.mark.parametrize("side", [7, 8])
def test_a_pooled_skip_is_halved_as_the_convolution_halves(side: int) -> None:
    block = FusedMBConv(8, 8, 16, stride=2, pooled_skip=True).eval()
    with torch.no_grad():
        block.project[1].weight.zero_()  # type: ignore[index]
        x = torch.ones(1, 8, side, side)
        made = block(x)
    assert made.shape == (1, 8, 4, 4)
    # The mean of what is there: a window over the edge of ones is 1 too.
    assert torch.equal(made, torch.ones_like(made))


def test_folded_blocks_compute_the_same() -> None:
    torch.manual_seed(0)
    for block in (
        FusedMBConv(8, 12, 32, stride=2, squeezed=2, pooled_skip=True),
        FusedMBConv(8, 8, 32, bias=True),
        MBConv(8, 8, 16, 5, 1, "silu", True),
        MBConv(8, 8, 16, 3, 1, "gelu", False, normed=False),
    ):
        x = torch.randn(4, 8, 6, 6)
        block(x)  # statistics that are not those of the start
        folded = fold_normalization(block)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
        check_same(block, folded, (x,))


def test_unknown_activations_are_told() -> None:
    with pytest.raises(HastenError, match="no activation is called 'tanhh': choose relu"):
        activation("tanhh")
