"""Encoders of thin layers: shapes, what is observed, and that a layer's loss can be its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.language.bottleneck_encoder import BottleneckConfig, BottleneckEncoder

CONFIG = BottleneckConfig(31, 30, 12, layers=3, width=24, bottleneck=16, heads=4, feed_forwards=2, inner=20)


@pytest.fixture
def encoder() -> BottleneckEncoder:
    torch.manual_seed(0)
    return BottleneckEncoder(CONFIG)


def test_what_is_observed_is_what_it_does(encoder: BottleneckEncoder) -> None:
    ids = torch.randint(0, 31, (5, 12))
    seen = encoder.observe(ids)
    assert torch.allclose(seen.logits, encoder(ids), atol=1e-6)
    assert [tuple(f.shape) for f in seen.features] == [(5, 12, 24)] * 4
    assert [tuple(m.shape) for m in seen.maps] == [(5, 4, 12, 12)] * 3
    assert all(torch.allclose(m.sum(-1), torch.ones(5, 4, 12)) for m in seen.maps)
    part = encoder.observe(ids, 2)
    assert len(part.maps) == 2
    assert torch.equal(part.features[-1], seen.features[2])


def test_attention_is_torch_s(encoder: BottleneckEncoder) -> None:
    layer: Any = encoder.layers[0]
    x = torch.randn(2, 12, 24)
    thin = layer.narrow_norm(layer.narrow(x))
    parts = [p.unflatten(-1, (4, -1)).transpose(1, 2) for p in (layer.query(thin), layer.key(thin), layer.value(x))]
    mixed = torch.nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
    found = layer.attention_norm(thin + layer.output(mixed))
    for rising, falling, norm in zip(layer.rising, layer.falling, layer.norms, strict=True):
        found = norm(found + falling(torch.relu(rising(found))))
    assert torch.allclose(layer(x), layer.wide_norm(x + layer.wide(found)), atol=1e-5)


def test_every_token_is_seen_from_both_sides(encoder: BottleneckEncoder) -> None:
    ids = torch.randint(0, 31, (1, 12))
    before = encoder(ids)
    for at in (0, 11):
        other = ids.clone()
        other[0, at] = (other[0, at] + 1) % 31
        assert (encoder(other) - before).abs().amax(-1).min() > 0


def test_apart_a_layer_s_output_trains_that_layer_alone(encoder: BottleneckEncoder) -> None:
    seen = encoder.observe(torch.randint(0, 31, (2, 12)), 2, apart=True)
    seen.features[2].square().mean().backward()
    assert all(p.grad is None for p in (*encoder.layers[0].parameters(), *encoder.embedding.parameters()))
    second: Any = encoder.layers[1]
    assert second.wide.weight.grad is not None
    encoder.observe(torch.randint(0, 31, (2, 12)), 1, apart=True).features[1].square().mean().backward()
    assert encoder.embedding.tokens.weight.grad is not None


def test_sizes_that_do_not_go_are_refused() -> None:
    with pytest.raises(HastenError, match="3 heads do not divide a bottleneck of 16"):
        BottleneckConfig(31, 30, 12, bottleneck=16, heads=3)
    with pytest.raises(HastenError, match="at least 1"):
        BottleneckConfig(31, 30, 12, layers=0)
