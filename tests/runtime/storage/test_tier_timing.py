"""The ways of two tiers give the same tokens, each within its memory."""

from __future__ import annotations

import pytest
import torch

from hasten.cost.serving.tiers import Job, Schedule, Tiers, sparse
from hasten.errors import HastenError
from hasten.models.loading.tiny import tiny_model
from hasten.runtime import LanguageModel
from hasten.runtime.storage.tier_timing import RecordedWindow, time_tiers
from hasten.runtime.storage.tiered_cache import GROUP, TieredCache, generate
from hasten.workload.decoder import DecoderSizes


def test_every_way_is_timed_and_gives_the_same_tokens() -> None:
    model = LanguageModel(tiny_model(layers=1).network)
    ids = torch.randint(0, 256, (4, 256), generator=torch.Generator().manual_seed(0))
    found = time_tiers(model, ids, 4, link=1e9)
    assert found.same
    assert min(found.alone, found.two, found.three, found.int8, found.split, found.waves) > 0
    assert 0 <= found.int8_moved < found.moved
    for moved in found.bytes.values():
        assert moved.simulated == pytest.approx(moved.run, rel=1e-9)
        assert moved.expected == pytest.approx(moved.run, rel=0.25)
    with pytest.raises(HastenError, match="holds none of 2 sequences"):
        time_tiers(model, ids[:2], 4)


@pytest.mark.slow_except(every=3)
@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.5, 1.0])
@pytest.mark.parametrize(("prompt", "new"), [(64, 20), (129, 40)])
@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(), Schedule(0.9), Schedule(0.2, 0.5, 10), Schedule(0.5, 1.0, 0), Schedule(0.9, 0.5, 10, prefix=True),
        Schedule(0.4, always=True),
    ],
)  # fmt: skip
def test_simulated_bytes_are_those_moved(ratio: float, prompt: int, new: int, schedule: Schedule) -> None:
    """Exactly, with the choices that were made: what goes where and when is the same in simulation and run."""
    model = LanguageModel(tiny_model(layers=2).network)
    ids = torch.randint(0, 256, (2, prompt), generator=torch.Generator().manual_seed(0))
    job = Job(DecoderSizes.of(model.config, dtype="fp32"), 2, prompt, new)
    fast, policy = 0.4 * (prompt + new) * job.token_bytes, RecordedWindow(ratio)
    cache = TieredCache(
        model, policy, schedule, batch=2, capacity=prompt + new, fast_bytes=fast, prompt=prompt
    )  # fmt: skip
    *_, most = generate(model, ids, cache, new)
    tiers = Tiers(fast, 1e9, 1e12, 1e12, step=1.0)
    found = sparse(job, tiers, schedule, ratio, reads=policy.reads)
    assert found.moved == pytest.approx(cache.slow.moved, rel=1e-9)
    assert found.most_fast == most
    # Without them, as many as are expected.
    assert sparse(job, tiers, schedule, ratio).moved == pytest.approx(cache.slow.moved, rel=0.25)


@pytest.mark.parametrize("schedule", [Schedule(), Schedule(0.9), Schedule(0.9, 1.0, 0, prefix=True)])
def test_simulated_bytes_in_int8(schedule: Schedule) -> None:
    model = LanguageModel(tiny_model(layers=2).network)
    ids = torch.randint(0, 256, (2, 300), generator=torch.Generator().manual_seed(0))
    job = Job(DecoderSizes.of(model.config, dtype="fp32", cache_dtype="int8"), 2, 300, 40, GROUP)
    fast, policy = 110 * job.plain_bytes, RecordedWindow(0.5)
    cache = TieredCache(
        model, policy, schedule, batch=2, capacity=340, fast_bytes=fast, prompt=300, dtype="int8"
    )  # fmt: skip
    *_, most = generate(model, ids, cache, 40)
    found = sparse(job, Tiers(fast, 1e9, 1e12, 1e12, step=1.0), schedule, 0.5, reads=policy.reads)
    assert cache.slow.moved > 0
    assert found.moved == pytest.approx(cache.slow.moved, rel=1e-9)
    assert found.most_fast == most <= fast
