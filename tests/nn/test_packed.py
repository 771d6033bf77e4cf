"""Packed layers stand in for torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.nn import PackedEmbedding, PackedLinear


@pytest.mark.parametrize(("bits", "tolerance"), [(16, 0.02), (8, 0.03), (4, 0.5)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_is_close(bits: int, tolerance: float, bias: bool) -> None:
    linear = nn.Linear(64, 40, bias=bias)
    layer = PackedLinear.from_linear(linear, bits)
    x = torch.randn(2, 5, 64)
    torch.testing.assert_close(layer(x), linear(x), rtol=0, atol=tolerance)
    assert layer(x.bfloat16()).dtype is torch.bfloat16
    torch.testing.assert_close(layer.dequantize(), linear.weight.detach(), rtol=0, atol=tolerance / 4)


def test_tied_embedding_shares_memory() -> None:
    table, head = nn.Embedding(30, 64), nn.Linear(64, 30, bias=False)
    head.weight = table.weight
    packed_head = PackedLinear.from_linear(head, 8)
    packed = PackedEmbedding.from_embedding(table, 8).tie(packed_head)
    assert packed.packed.data_ptr() == packed_head.packed.data_ptr()
    ids = torch.tensor([[3, 29]])
    torch.testing.assert_close(packed(ids), table(ids).detach(), rtol=0, atol=0.03)


def test_shapes_on_meta_cost_nothing() -> None:
    with torch.device("meta"):
        linear = nn.Linear(4096, 4096, bias=False)
    layer = PackedLinear.from_linear(linear, 4)
    assert layer.packed.device.type == "meta"
    assert layer.packed.shape == (4096, 2048)


def test_state_round_trip() -> None:
    layer = PackedLinear.from_linear(nn.Linear(64, 8), 4)
    again = PackedLinear(64, 8, True, bits=4)
    again.load_state_dict(layer.state_dict())
    x = torch.randn(1, 64)
    assert torch.equal(layer(x), again(x))


def test_refuses_odd_widths() -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        PackedLinear(50, 8, bits=4)
