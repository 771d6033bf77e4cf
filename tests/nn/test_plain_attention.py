"""Attention by its formula against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hasten.nn.plain_attention import online_attention, whole_attention


@pytest.mark.parametrize("causal", [False, True])
def test_all_scores_at_once(causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 20, 8, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=0.3)
    assert torch.allclose(whole_attention(q, k, v, scale=0.3, causal=causal), expected)


def test_what_a_causal_mask_hides_is_not_read() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 6, 8)
    before = whole_attention(q, k, v, causal=True)
    k[4:], v[4:] = 1e4, 1e4
    assert torch.equal(whole_attention(q, k, v, causal=True)[:4], before[:4])


@pytest.mark.parametrize("tile", [7, 32, 256])
def test_tile_by_tile(tile: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(5, 8), torch.randn(100, 8) * 3, torch.randn(100, 4)
    assert torch.allclose(online_attention(q, k, v, tile=tile), whole_attention(q, k, v), atol=1e-5)
