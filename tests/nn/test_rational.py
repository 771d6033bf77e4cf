"""GR-KAN layers: how they start, and that they learn."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hasten.nn import GroupRational, GroupRationalMLP
from hasten.nn.rational import variance_gain


@pytest.mark.parametrize(
    ("start", "function", "error"),
    [("swish", F.silu, 1e-5), ("gelu", F.gelu, 1e-2), ("tanh", torch.tanh, 1e-2), ("relu", F.relu, 5e-2)],
)
def test_it_starts_as_what_it_is_told(start: str, function, error: float) -> None:
    v = torch.linspace(-3, 3, 2001)[:, None].expand(-1, 8)
    assert float((GroupRational(8, 8, start)(v).detach() - function(v)).abs().max()) < error


def test_parameters_and_their_sharing() -> None:
    assert sum(p.numel() for p in GroupRational(768).parameters()) == 38
    with pytest.raises(ValueError, match="do not divide"):
        GroupRational(10, 8)
    with pytest.raises(ValueError, match="starts as"):
        GroupRational(8, 8, "step")


@pytest.mark.parametrize(("start", "gain"), [("identity", 1.0), ("gelu", 2.3568), ("swish", 2.8178)])
def test_gains_are_the_published_ones(start: str, gain: float) -> None:
    assert abs(variance_gain(start) / gain - 1) < 0.005


def test_a_signal_keeps_its_size() -> None:
    torch.manual_seed(0)
    x = torch.randn(512, 256)
    for _ in range(4):
        x = GroupRationalMLP(256)(x).detach()
    assert 0.5 < float(x.std()) < 2.0
    assert float(GroupRationalMLP(256, released=True).fc1.weight.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_it_learns() -> None:
    torch.manual_seed(0)
    layer = GroupRationalMLP(16, 32)
    x = torch.randn(256, 16)
    wanted = torch.sin(2 * x)
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)
    losses = []
    for _ in range(200):
        loss = (layer(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert layer.first.denominator.abs().sum() > 0
