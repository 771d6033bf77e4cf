"""Attention over maps: permuted positions, the relative bias, products."""

from __future__ import annotations

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.vision.backbone import multiply_accumulates
from hasten.nn import MapTransformer


def test_without_a_bias_it_knows_no_positions() -> None:
    torch.manual_seed(0)
    block = MapTransformer(32, 32, head_size=16).double()
    x, order = torch.randn(2, 32, 4, 4, dtype=torch.float64), torch.randperm(16)
    moved = block(x.flatten(2)[:, :, order].view_as(x)).flatten(2)
    torch.testing.assert_close(moved, block(x).flatten(2)[:, :, order], rtol=1e-9, atol=1e-9)


def test_a_relative_bias_is_added_to_scores_by_the_difference_of_positions() -> None:
    torch.manual_seed(0)
    block = MapTransformer(16, 16, head_size=16, relative=3)
    assert block.relative is not None
    torch.nn.init.normal_(block.relative)
    bias = block._bias(3, 3)
    assert bias is not None
    for one in range(9):
        for other in range(9):
            down, right = one // 3 - other // 3, one % 3 - other % 3
            assert bias[0, one, other] == block.relative[0, down + 2, right + 2]
    # Another size takes the table resized: its middle, no difference, stays.
    wide = block._bias(2, 5)
    assert wide is not None
    assert wide.shape == (1, 10, 10)
    torch.testing.assert_close(wide[0].diagonal(), block.relative[0, 2, 2].expand(10))


def test_products_are_those_of_the_formula() -> None:
    with torch.device("meta"):
        block = MapTransformer(64, 64)
    n, d = 49, 64
    assert multiply_accumulates(block, (64, 7, 7)) == 12 * d**2 * n + 2 * n**2 * d


def test_heads_divide_the_channels() -> None:
    with pytest.raises(HastenError, match="heads of 32 channels do not divide 48"):
        MapTransformer(48, 48)
