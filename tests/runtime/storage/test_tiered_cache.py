"""Two tiers are one cache: the same tokens, under the budget, whatever the schedule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hasten.cost.serving.tiers import Schedule
from hasten.errors import HastenError
from hasten.runtime import CacheSpec, LanguageModel
from hasten.runtime.policies import SparseWindowPolicy
from hasten.runtime.storage.tiered_cache import GROUP, SlowTier, TieredCache, encode, generate

PROMPT, NEW, BATCH = 24, 30, 2
IDS = torch.randint(0, 211, (BATCH, PROMPT), generator=torch.Generator().manual_seed(5))
SCHEDULES = [
    Schedule(),
    Schedule(0.5),
    Schedule(0.9),
    Schedule(0.5, 0.5, 5),
    Schedule(0.2, 1.0, 0),
    Schedule(1.0, 0.3, 20),
    Schedule(0.5, 0.5, 5, prefix=True),
    Schedule(0.9, 1.0, 0, prefix=True),
]


def tiered(
    model: LanguageModel, policy: SparseWindowPolicy, schedule: Schedule, tokens: float, **more: Any
) -> TieredCache:
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


def without_tiers(model: LanguageModel, policy: SparseWindowPolicy) -> torch.Tensor:
    plain = LanguageModel(model.network, cache=CacheSpec(policy=policy))
    return plain.generate(IDS, max_new_tokens=NEW, eos_token_id=None, do_sample=False)[:, PROMPT:]


@pytest.mark.slow_except(every=3)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("ratio", [0.4, 1.0])
def test_tiers_change_nothing(llama: Any, schedule: Schedule, ratio: float) -> None:
    model, policy = LanguageModel(llama), SparseWindowPolicy(ratio)
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
    cache = tiered(model, SparseWindowPolicy(0.4), Schedule(0.5, 0.5, 0), PROMPT + NEW)
    made, *_ = generate(model, IDS, cache, NEW)
    assert cache.slow.moved == cache.recomputed == 0
    assert torch.equal(made, without_tiers(model, SparseWindowPolicy(0.4)))


@pytest.mark.slow_except(every=3)
@pytest.mark.parametrize("prefix", [False, True])
def test_recomputed_keys_are_the_dropped_ones(network: Any, prefix: bool) -> None:
    model = LanguageModel(network)
    kept, dropped = (tiered(model, SparseWindowPolicy(1.0), s, 30) for s in (Schedule(), Schedule(0.8, 1.0, 0, prefix)))
    for cache in (kept, dropped):
        generate(model, IDS, cache, NEW)
    where = torch.arange(40).expand(BATCH, 2, -1)
    for one, other in zip(kept.layers, dropped.layers, strict=True):
        assert other.deleted > 0
        for a, b in zip(one._gather(where), other._gather(where), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def tensors_of(layer: Any) -> list[torch.Tensor]:
    """All that a layer of the cache holds but the policy's memory, whatever it is called."""
    found, left = [], [v for n, v in vars(layer).items() if n not in ("_cache", "memory")]
    while left:
        value = left.pop()
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            left += value
        elif isinstance(value, dict):
            left += value.values()
    return found


@pytest.mark.slow_except(every=3)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("tokens", [21, 30, 47])
def test_all_that_is_held_is_counted_and_within_the_budget(llama: Any, schedule: Schedule, tokens: int) -> None:
    """After every step: keys, values and inputs, by the bytes that are really allocated."""
    cache = tiered(LanguageModel(llama), SparseWindowPolicy(0.4), schedule, tokens)
    seen = []

    def count(module: Any, args: Any, output: Any) -> None:
        storages = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for x in cache.layers for t in tensors_of(x)
        }
        seen.append(sum(storages.values()))
        assert seen[-1] == cache.fast_bytes
        first = cache.layers[0]
        assert seen[-1] == cache.job.held(schedule, first.length, first.away, first.deleted)
        assert first.inputs.shape[1] == (0 if schedule.prefix else first.deleted)
        assert cache._beginning.hidden.numel() == 0

    handle = llama.model.register_forward_hook(count)
    *_, most = generate(LanguageModel(llama), IDS, cache, NEW)
    handle.remove()
    assert len(seen) == NEW
    assert most == max(seen) <= tokens * cache.token_bytes


LONG = 150
LONG_IDS = torch.randint(0, 211, (BATCH, LONG), generator=torch.Generator().manual_seed(6))


def in_int8(model: LanguageModel, schedule: Schedule, tokens: float) -> TieredCache:
    """A budget of so many fp32 tokens."""
    token = 2 * len(model.layers) * BATCH * 2 * 32 * 4
    return TieredCache(
        model, SparseWindowPolicy(0.5), schedule, batch=BATCH, capacity=LONG + NEW, fast_bytes=tokens * token,
        prompt=LONG, dtype="int8",
    )  # fmt: skip


@pytest.mark.parametrize(
    "schedule", [Schedule(), Schedule(0.9), Schedule(0.9, 0.5, 5), Schedule(0.9, 1.0, 0, prefix=True)]
)
def test_tiers_change_nothing_in_int8(llama: Any, schedule: Schedule) -> None:
    model = LanguageModel(llama)
    expected, _, room = generate(model, LONG_IDS, everything := in_int8(model, Schedule(), 1000), NEW)
    assert everything.slow.moved == 0
    assert room < 0.65 * (LONG + NEW) * 4 * everything.token_bytes, "of 179 tokens 51 are in fp32"
    cache = in_int8(model, schedule, 75)
    made, _, most = generate(model, LONG_IDS, cache, NEW)
    assert torch.equal(made, expected)
    assert most <= 75 * 4 * cache.token_bytes
    assert cache.slow.moved > 0
    # A token's layer inputs are four times its codes here: nothing is deleted for them.
    assert (cache.recomputed > 0) == schedule.prefix


def test_int8_is_within_half_a_step(llama: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 2 * GROUP, 16, generator=generator) * torch.logspace(-3, 3, 16) + 5
    codes, step, least = encode(x)
    assert codes.dtype == torch.uint8
    back = least.repeat_interleave(GROUP, 2) + step.repeat_interleave(GROUP, 2) * codes
    assert ((back - x).abs() <= 0.5001 * step.repeat_interleave(GROUP, 2) + 1e-6).all()
    constant = torch.full((1, 1, GROUP, 4), 3.0)
    codes, step, least = encode(constant)
    assert torch.equal(least[:, :, 0, None] + step[:, :, 0, None] * codes, constant)


def test_int8_takes_a_quarter(llama: Any) -> None:
    """Where fp32 must move tokens int8 has room for all, and they are nearly the same."""
    model = LanguageModel(llama)
    coded = in_int8(model, Schedule(), 75)
    options: dict[str, Any] = {"batch": BATCH, "capacity": LONG + NEW, "fast_bytes": 75 * 4 * coded.token_bytes}
    plain = TieredCache(model, SparseWindowPolicy(0.5), Schedule(), prompt=LONG, **options)
    for cache in (plain, coded):
        generate(model, LONG_IDS, cache, 2)
    assert plain.slow.moved > 0 == coded.slow.moved
    assert plain.slow._bytes == 4 * coded.slow._bytes
    where = torch.arange(LONG).expand(BATCH, 2, -1)
    for a, b in zip(plain.layers[0]._gather(where), coded.layers[0]._gather(where), strict=True):
        torch.testing.assert_close(a, b, atol=0.05, rtol=0)


def test_a_budget_below_a_group(llama: Any) -> None:
    with pytest.raises(HastenError, match="no group of 64"):
        in_int8(LanguageModel(llama), Schedule(), 60)
    with pytest.raises(HastenError, match="fp32 or int8"):
        tiered(LanguageModel(llama), SparseWindowPolicy(1.0), Schedule(), 60, dtype="int3")


def test_a_budget_below_one_token(llama: Any) -> None:
    with pytest.raises(HastenError, match="holds no token"):
        tiered(LanguageModel(llama), SparseWindowPolicy(1.0), Schedule(), 0.5)


def test_a_tier_that_is_cut_short(llama: Any) -> None:
    model = LanguageModel(llama)
    cache = tiered(model, SparseWindowPolicy(0.5), Schedule(0.5), 30)
    cache.slow._file.truncate(100)
    with pytest.raises(HastenError, match="cut short"):
        generate(model, IDS, cache, NEW)


@pytest.mark.parametrize("when", [0, 6])
def test_a_tier_that_vanishes_while_in_use(llama: Any, when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short after some steps: one line, no killed process; the next cache works."""
    model = LanguageModel(llama)
    cache = tiered(model, SparseWindowPolicy(0.5), Schedule(0.5), 30)
    steps = 0

    def cut(module: Any, args: Any) -> None:
        nonlocal steps
        steps += 1
        if steps > when:
            cache.slow._file.truncate(0)

    handle = llama.model.layers[0].register_forward_pre_hook(cut)
    with pytest.raises(HastenError, match="cut short"):
        generate(model, IDS, cache, NEW)
    handle.remove()
    again = tiered(model, SparseWindowPolicy(0.5), Schedule(0.5), 30)
    assert torch.equal(generate(model, IDS, again, NEW)[0], without_tiers(model, SparseWindowPolicy(0.5)))


@pytest.mark.parametrize("where", ["fast", "slow", "inputs"])
def test_damaged_numbers_are_an_error(llama: Any, where: str) -> None:
    model = LanguageModel(llama)
    cache = tiered(model, SparseWindowPolicy(1.0), Schedule(0.5, 0.5, 0), 30)

    def damage(module: Any, args: Any) -> None:
        layer = cache.layers[1]
        if where == "fast":
            layer.keys[0, 0, -1] = torch.nan
        elif where == "slow":
            cache.slow._map[1, 0, 0, layer.deleted, 1] = float("nan")
        elif layer.deleted:
            layer.inputs[0, 0] = torch.nan

    llama.model.layers[2].register_forward_pre_hook(damage)
    with pytest.raises(HastenError, match="not a number"):
        generate(model, IDS, cache, NEW)


def test_sequences_that_end_at_different_times(llama: Any) -> None:
    """One that has ended does not stir the other; when all have, nothing more is made."""
    model, policy = LanguageModel(llama), SparseWindowPolicy(0.4)
    expected = without_tiers(model, policy)
    first = next(int(t) for t in expected[0] if t not in expected[1])
    at = expected[0].tolist().index(first)
    made, *_ = generate(model, IDS, tiered(model, policy, Schedule(0.5), 30), NEW, end=[first])
    assert torch.equal(made[1], expected[1])
    assert made[0].tolist() == [*expected[0, : at + 1].tolist(), *[first] * (NEW - at - 1)]
    both = [first, int(expected[1, 9])]
    made, seconds, _ = generate(model, IDS, tiered(model, policy, Schedule(0.5), 30), NEW, end=both)
    last = max(next(i for i, t in enumerate(row) if t in both) for row in expected.tolist())
    assert made.shape[1] == last + 1
    assert len(seconds) == last


def test_texts_that_cannot_be(llama: Any) -> None:
    model = LanguageModel(llama)
    cache = tiered(model, SparseWindowPolicy(1.0), Schedule(), 30)
    with pytest.raises(HastenError, match="for 2 prompts"):
        generate(model, IDS[:1], cache, NEW)
    generate(model, IDS, cache, 2)
    with pytest.raises(HastenError, match="for prompts of 24 tokens: make it with prompt=20"):
        generate(model, IDS[:, :20], cache, NEW)
    with pytest.raises(HastenError, match="another text"):
        generate(model, IDS, cache, 2)
    long = torch.zeros(BATCH, 500, dtype=torch.int64)
    roomy = TieredCache(
        model, SparseWindowPolicy(1.0), Schedule(), batch=BATCH, capacity=600, fast_bytes=1e9, prompt=500
    )  # fmt: skip
    with pytest.raises(HastenError, match="512 positions"):
        generate(model, long, roomy, 20)


def test_remembered_rows_are_counted(llama: Any) -> None:
    model = LanguageModel(llama)
    cache = tiered(model, SparseWindowPolicy(0.4), Schedule(), 60)
    generate(model, IDS, cache, NEW)
    # The last step's rows: as many as there are local tokens, minus those pruned for the next length.
    length = PROMPT + NEW - 1
    local = SparseWindowPolicy(0.4).split(length + 1)[0]
    assert cache.row_bytes == len(model.layers) * BATCH * 2 * local * length * 4


def test_no_room_for_the_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(HastenError, match="No space left"):
        SlowTier((1, 1, 1, 4, 2, 8), folder=tmp_path)


def test_more_tokens_than_room(llama: Any) -> None:
    model = LanguageModel(llama)
    with pytest.raises(HastenError, match="room for"):
        generate(model, IDS, tiered(model, SparseWindowPolicy(1.0), Schedule(), 30), NEW + 1)
