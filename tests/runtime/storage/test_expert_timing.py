"""Experts from a file are timed over the same routes, and every way says the same."""

from __future__ import annotations

import torch

from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM
from hasten.runtime.storage.expert_timing import time_experts


def test_every_way_gives_the_same_logits() -> None:
    config = SmallThinkerConfig(
        width=64, layers=2, heads=2, kv_heads=1, head_dim=32, vocabulary=64, experts=8, used=2, inner=32
    )
    found = time_experts(SmallThinkerLM(config).eval(), 3, 16, share=0.5, bandwidth=1e9)
    assert list(found) == ["prefetch", "on demand", "resident"]
    assert found["resident"].missing == 0
    assert found["on demand"].bundle == 4 * 3 * 32 * 64
    for one in found.values():
        assert one.logits.shape == (1, 7, 64)
        assert torch.equal(one.logits, found["resident"].logits)
        assert one.step >= one.attention
