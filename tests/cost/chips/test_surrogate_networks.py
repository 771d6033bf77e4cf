"""Networks that read circuits: nothing depends on the order of a graph's nodes, nor on what is filled up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.cost.chips.design_features import WIDTH, LayerBatch, layer_batch, pooled_features
from hasten.cost.chips.surrogate_networks import GraphAttention, LayerGraphNetwork, LayerTransformer
from hasten.errors import HastenError
from hasten.hardware.hls.engines import read_design

DESIGNS = [
    read_design("8 bits; dense 16 12 /16 relu; dense 12 6 /24 linear; dense 6 4 /6 linear"),
    read_design("4 bits; conv 4x5x2 2x3 +1 3 /12 relu; dense 27 4 /27 linear"),
    read_design("5 bits; dense 6 4 /24 relu"),
]


def padded(batch: LayerBatch, more: int) -> LayerBatch:
    count, layers, width = batch.features.shape
    features = torch.cat([batch.features, torch.randn(count, more, width)], 1)
    present = torch.cat([batch.present, torch.zeros(count, more, dtype=torch.bool)], 1)
    edges = torch.zeros(count, layers + more, layers + more, dtype=torch.bool)
    edges[:, :layers, :layers] = batch.edges
    return LayerBatch(features, present, edges, batch.overall)


def disturbed(network: nn.Module) -> nn.Module:
    """With no weight at the zero that it begins with."""
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return network.eval()


def test_a_layers_numbers() -> None:
    batch = layer_batch(DESIGNS)
    assert batch.features.shape == (3, 3, WIDTH)
    assert batch.present.sum(1).tolist() == [3, 2, 1]
    assert batch.edges.sum((1, 2)).tolist() == [2, 1, 0]
    assert bool(batch.edges[0, 1, 0])
    assert pooled_features(DESIGNS).shape[0] == 3


def test_a_graph_has_no_order() -> None:
    torch.manual_seed(0)
    network, batch = disturbed(LayerGraphNetwork(WIDTH, 1, 5, 2)), layer_batch(DESIGNS)
    order = torch.tensor([2, 0, 1])
    moved = LayerBatch(
        batch.features[:, order], batch.present[:, order], batch.edges[:, order][:, :, order], batch.overall
    )
    with torch.no_grad():
        assert torch.allclose(network(moved), network(batch), atol=1e-5)
        # What has no edge says nothing, and edges do matter.
        assert torch.allclose(network(padded(batch, 3)), network(batch), atol=1e-5)
        cut = LayerBatch(batch.features, batch.present, torch.zeros_like(batch.edges), batch.overall)
        assert not torch.allclose(network(cut)[:2], network(batch)[:2], atol=1e-4)


def test_a_transformer_does_not_see_what_is_filled_up() -> None:
    torch.manual_seed(0)
    network, batch = disturbed(LayerTransformer(WIDTH, 5, 2)), layer_batch(DESIGNS)
    with torch.no_grad():
        plain = network(batch)
        assert torch.allclose(network(padded(batch, 4)), plain, atol=1e-5)
        one = layer_batch(DESIGNS[2:])
        assert torch.allclose(network(one), plain[2:], atol=1e-5)
    with pytest.raises(HastenError, match="positions for 2"):
        LayerTransformer(WIDTH, 5, most=2)(batch)


def test_attention_is_of_both_ends() -> None:
    """GATv2: whom a node hears most depends on the node itself, by the formula written out."""
    torch.manual_seed(0)
    layer, x = GraphAttention(4, 2), torch.randn(1, 3, 4)
    edges = torch.tensor([[[0, 1, 0], [0, 0, 1], [0, 0, 0]]], dtype=torch.bool)
    with torch.no_grad():
        made = layer(x, edges)[0]
        source, target = layer.source(x[0]), layer.target(x[0])
        for i, heard in enumerate(([0, 1], [1, 2], [2])):
            for h in range(2):
                part = slice(2 * h, 2 * h + 2)
                scores = torch.stack(
                    [
                        torch.nn.functional.leaky_relu(target[i, part] + source[j, part], 0.2) @ layer.attention[h]
                        for j in heard
                    ]
                ).softmax(0)
                expected = sum(s * source[j, part] for s, j in zip(scores, heard, strict=True))
                assert torch.allclose(made[i, part], expected, atol=1e-6)
    with pytest.raises(HastenError, match="do not divide"):
        GraphAttention(5, 2)
