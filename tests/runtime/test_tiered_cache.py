"""Two tiers are one cache: the same tokens, under the budget, whatever the schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.cost.tiers import Schedule
from hasten.errors import HastenError
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.policies import SparseWindow
from hasten.runtime.tiered_cache import SlowTier, TieredCache, generate

PROMPT, NEW, BATCH = 24, 30, 2
IDS = torch.randint(0, 211, (BATCH, PROMPT), generator=torch.Generator().manual_seed(5))
SCHEDULES = [
    Schedule(),
    Schedule(0.5),
    Schedule(0.9),
    Schedule(0.5, 0.5, 5),
    Schedule(0.2, 1.0, 0),
    Schedule(1.0, 0.3, 20),
]


def tiered(model: LanguageModel, policy: SparseWindow, schedule: Schedule, tokens: float, **more: Any) -> TieredCache:
    config = model.config
    token = (
        2
        * len(model.layers)
        * BATCH
        * config.num_key_value_heads
        * (config.hidden_size // config.num_attention_heads)
        * 4
    )
    return TieredCache(
        model, policy, schedule, batch=BATCH, capacity=PROMPT + NEW, fast_bytes=tokens * token, prompt=PROMPT, **more
    )  # fmt: skip


def without_tiers(model: LanguageModel, policy: SparseWindow) -> torch.Tensor:
    plain = LanguageModel(model.network, cache=CacheSpec(policy=policy))
    return plain.generate(IDS, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)[:, PROMPT:]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ratio", [0.4, 1.0])
def test_tiers_change_nothing(llama: Any, schedule: Schedule, ratio: float) -> None:
    model, policy = LanguageModel(llama), SparseWindow(ratio)
    expected = without_tiers(model, policy)
    cache = tiered(model, policy, schedule, 30)
    made, seconds, most = generate(model, IDS, cache, NEW)
    assert torch.equal(made, expected)
    assert len(seconds) == NEW - 1
    assert most <= 30 * cache.token_bytes
    assert cache.slow.moved > 0
    if schedule.beta:
        assert cache.recomputed > 0


def test_with_room_for_all_nothing_moves(llama: Any) -> None:
    model = LanguageModel(llama)
    cache = tiered(model, SparseWindow(0.4), Schedule(0.5, 0.5, 0), PROMPT + NEW)
    made, *_ = generate(model, IDS, cache, NEW)
    assert cache.slow.moved == cache.recomputed == 0
    assert torch.equal(made, without_tiers(model, SparseWindow(0.4)))


def test_recomputed_keys_are_the_dropped_ones(llama: Any) -> None:
    model = LanguageModel(llama)
    kept, dropped = (tiered(model, SparseWindow(1.0), s, 30) for s in (Schedule(), Schedule(0.8, 1.0, 0)))
    for cache in (kept, dropped):
        generate(model, IDS, cache, NEW)
    where = torch.arange(40).expand(BATCH, 2, -1)
    for one, other in zip(kept.layers, dropped.layers, strict=True):
        assert other.deleted > 0
        for a, b in zip(one._gather(where), other._gather(where), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_a_budget_below_one_token(llama: Any) -> None:
    with pytest.raises(HastenError, match="holds no token"):
        tiered(LanguageModel(llama), SparseWindow(1.0), Schedule(), 0.5)


def test_a_tier_that_is_cut_short(llama: Any) -> None:
    model = LanguageModel(llama)
    cache = tiered(model, SparseWindow(0.5), Schedule(0.5), 30)
    cache.slow._file.truncate(100)
    with pytest.raises(HastenError, match="cut short"):
        generate(model, IDS, cache, NEW)


def test_no_room_for_the_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(HastenError, match="No space left"):
        SlowTier((1, 1, 1, 4, 2, 8), folder=tmp_path)


def test_more_tokens_than_room(llama: Any) -> None:
    model = LanguageModel(llama)
    with pytest.raises(HastenError, match="room for"):
        generate(model, IDS, tiered(model, SparseWindow(1.0), Schedule(), 30), NEW + 1)
