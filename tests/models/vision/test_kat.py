"""KAT: published sizes, its start, and training."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hasten.errors import HastenError
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


@pytest.mark.parametrize(("short", "width"), [("tiny", 192), ("small", 384), ("base", 768)])
@pytest.mark.parametrize("start", ["", "_swish"])
def test_names_as_timm_writes_them(short: str, width: int, start: str) -> None:
    name = f"kat_{short}{start}_patch16_224"
    model = named.build(name, num_classes=10, in_chans=1, img_size=64)
    assert isinstance(model, KAT)
    assert (model.config.width, model.config.layers) == (width, 12)
    assert (model.num_classes, model.config.channels, model.config.image) == (10, 1, 64)
    assert named.is_named(name)


@pytest.mark.parametrize("options", [{"num_classes": -1}, {"in_chans": 0}, {"img_size": 100}])
def test_sizes_that_no_model_has_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(HastenError, match="kat_tiny_patch16_224 takes num_classes from 0"):
        named.build("kat_tiny_patch16_224", **options)
    with pytest.raises(HastenError, match="takes no option 'drop_rate': it takes feed_forward, num_classes"):
        named.build("kat-tiny", drop_rate=0.1)
    with pytest.raises(HastenError, match="mamba-130m takes no option 'num_classes'"):
        named.build("mamba-130m", num_classes=10)


def test_timms_conventions() -> None:
    torch.manual_seed(0)
    model = KAT(SMALL).eval()
    images = torch.randn(3, 1, 8, 8)
    features = model.forward_features(images)
    assert features.shape == (3, 17, model.num_features)
    torch.testing.assert_close(model.forward_head(features), model(images))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (3, 32)
    assert model.get_classifier() is model.head
    model.reset_classifier(0)
    assert model.num_classes == 0
    torch.testing.assert_close(model(images), pooled)
    model.to(torch.bfloat16).reset_classifier(4)
    assert model.head.weight.dtype is torch.bfloat16
    assert model(images.bfloat16()).shape == (3, 4)
    assert not model.head.training
    kept = model.no_weight_decay()
    assert {"pos_embed", "cls_token", "blocks.0.mlp.first.numerator", "blocks.1.mlp.second.denominator"} <= kept
    assert len(kept) == 2 + 4 * 2


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
