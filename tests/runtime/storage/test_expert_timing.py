"""Experts from a file are timed over the same routes, and every way says the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hasten.models.language.smallthinker import SmallThinkerConfig, SmallThinkerLM
from hasten.processes import bytes_from_storage
from hasten.runtime.storage.expert_store import ExpertFile, write_experts
from hasten.runtime.storage.expert_timing import storage_rate, time_experts, timeline


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
        assert one.read == pytest.approx(one.missing * 2 * one.bundle)
        assert one.drive > 0
        assert one.held_to == min(one.drive, 1e9)
    line = timeline(found, 2)
    assert list(line) == ["prefetch", "on demand"]
    whole, demand = found["resident"], found["on demand"]
    assert line["on demand"] == pytest.approx(whole.step + demand.read / demand.held_to)


def test_packed_experts_are_timed_by_their_own_bytes() -> None:
    config = SmallThinkerConfig(
        width=64, layers=2, heads=2, kv_heads=1, head_dim=32, vocabulary=64, experts=8, used=2, inner=32
    )
    found = time_experts(SmallThinkerLM(config).eval(), 3, 16, share=0.5, bandwidth=None, form="q4_0")
    assert {one.bundle for one in found.values()} == {3 * 32 * 64 * 18 // 32}
    assert found["on demand"].read == pytest.approx(found["on demand"].missing * 2 * 3 * 32 * 64 * 18 / 32)
    for one in found.values():
        assert torch.equal(one.logits, found["resident"].logits)
        assert one.held_to == one.drive


def test_a_drive_is_measured_past_the_page_cache(tmp_path: Path) -> None:
    model = SmallThinkerLM(SmallThinkerConfig(width=64, layers=2, head_dim=16, inner=64))
    write_experts(model, tmp_path / "e")
    before = bytes_from_storage()
    rate = storage_rate(ExpertFile(tmp_path / "e"), reads=20)
    after = bytes_from_storage()
    assert rate > 0
    # A file held to a rate gives no more.
    assert storage_rate(ExpertFile(tmp_path / "e", bandwidth=5e6), reads=8) < 6e6
    if before is None or after is None or after == before:
        pytest.skip("this system does not count what is read, or the folder of tests is not on a storage device")
    assert after - before >= 20 * 4 * 3 * 64 * 64
