"""KAT: published sizes, its start, and training."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hasten.models import KAT, KATConfig, named

SMALL = KATConfig(image=8, patch=2, channels=1, classes=10, width=32, layers=2, heads=2)


@pytest.mark.parametrize(
    ("name", "count"), [("kat-tiny", 5_718_328), ("kat-small", 22_051_576), ("kat-base", 86_568_568)]
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert sum(p.numel() for p in named.build(name).parameters()) == count
    with torch.device("meta"):
        plain = KAT.named(name, feed_forward="mlp")
    assert sum(p.numel() for p in plain.parameters()) == count - 912


def test_mimetic_start() -> None:
    torch.manual_seed(0)
    model = KAT(KATConfig(image=8, patch=4, width=128, layers=1, heads=2))
    attention = model.blocks[0].attn
    query, key, value = attention.qkv.weight.detach().chunk(3)
    product = query[:64].T @ key[:64]
    # Rank 64 of 128 keeps the larger part of 0.7 (Z + I).
    assert float(product.diagonal().mean()) > 0.3
    whole = value.T @ attention.proj.weight.detach().T
    assert float(whole.diagonal().mean()) == pytest.approx(-0.4, abs=0.05)
    assert float((whole + 0.4 * torch.eye(128)).std()) == pytest.approx(0.4 / 128**0.5, rel=0.1)


def test_one_step_learns_and_shapes_hold() -> None:
    torch.manual_seed(0)
    model = KAT(SMALL)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        logits = model(images)
        assert logits.shape == (16, 10)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with pytest.raises(ValueError, match="divide"):
        KAT(KATConfig(image=10, patch=4))
