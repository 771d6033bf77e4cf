"""Schedules over two tiers: budgets kept, limits right, the optimizer no worse than what it chose from."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.cost.serving.tiers import (
    MODELS,
    ExpectedReads,
    Job,
    Schedule,
    Tiers,
    best_schedule,
    sparse,
    speedups,
    static_split,
    waves,
    window_split,
)
from hasten.errors import HastenError
from hasten.hardware.device import load_device
from hasten.workload.decoder import DecoderSizes

OPT = Job(MODELS["opt-6.7b"], batch=64)
V100 = Tiers(fast_bytes=3e9, link=20e9, fast=900e9, compute=100e12)
shares = st.floats(0, 1)


def test_published_bytes() -> None:
    assert replace(OPT, batch=1).token_bytes == 524288
    assert OPT.token_bytes * 640 == 20 * 2**30


@given(shares, shares, st.integers(0, 600), st.floats(1e9, 3e10), st.integers(1, 64))
def test_the_budget_is_never_passed(alpha: float, beta: float, start: int, fast: float, batch: int) -> None:
    job, tiers = replace(OPT, batch=batch), replace(V100, fast_bytes=fast)
    assert sparse(job, tiers, Schedule(alpha, beta, start), 0.2).most_fast <= fast * (1 + 1e-9)


def test_int8_keys_are_a_quarter_of_fp32() -> None:
    job = replace(OPT, model=replace(OPT.model, dtype="fp32"))
    coded = replace(job, model=replace(job.model, cache_dtype="int8"))
    assert job.token_bytes == 4 * coded.token_bytes
    assert job.input_bytes == coded.input_bytes
    ours, plain = (sparse(j, V100, best_schedule(j, V100, 0.2), 0.2) for j in (coded, job))
    assert ours.moved < plain.moved / 3
    assert ours.seconds < plain.seconds


def test_nothing_is_deleted_for_more_than_it_takes() -> None:
    assert Schedule(0.5, 0.5, 0).placed(100, 50, 60, 1.5) == (50, 0)
    assert Schedule(0.5, 0.5, 0, prefix=True).placed(100, 50, 60, 0.0) == (50, 25)
    assert Schedule(0.5, 0.5, 0, prefix=True).placed(100, 10, 60, 0.0) == (50, 10)  # only the prompt comes back


def test_running_the_beginning_again_keeps_nothing() -> None:
    """No inputs in fast memory, so that less goes away; but all that is deleted is computed, and only the prompt is."""
    inputs, prefix = (sparse(OPT, V100, Schedule(0.0, 0.5, 0, p), 0.2) for p in (False, True))
    assert prefix.most_fast <= V100.fast_bytes * (1 + 1e-9)
    assert prefix.seconds > inputs.seconds
    assert prefix.recomputed < inputs.recomputed


def test_with_memory_for_all_there_is_one_phase() -> None:
    found = sparse(OPT, replace(V100, fast_bytes=1e12), Schedule(0.5, 0.5, 0), 0.2)
    assert found.phases == (512, 0, 0)
    assert found.moved == 0


def test_a_link_without_end_leaves_nothing_to_delete() -> None:
    chosen = best_schedule(OPT, replace(V100, link=1e18), 0.2)
    assert chosen.beta == 0 or chosen.delete_from >= 512


def test_the_optimizer_is_no_worse() -> None:
    best = sparse(OPT, V100, best_schedule(OPT, V100, 0.2), 0.2).seconds
    for schedule in (Schedule(), Schedule(0.5), Schedule(0.5, 0.5, 0), Schedule(0.75, 1.0, 256)):
        assert best <= sparse(OPT, V100, schedule, 0.2).seconds * (1 + 1e-12)


def test_against_full_attention() -> None:
    ours = sparse(OPT, V100, best_schedule(OPT, V100, 0.2), 0.2).seconds
    assert static_split(OPT, V100).seconds > 1.5 * ours
    small = replace(OPT, batch=1)
    alone = [f.seconds for f in (static_split(small, V100), waves(small, V100))]
    assert sparse(small, V100, Schedule(), 1.0).seconds == pytest.approx(alone[0], rel=0.01) == alone[1]


def test_the_paper_s_models() -> None:
    published = {
        "opt-6.7b": 6.66e9, "opt-13b": 12.85e9, "opt-30b": 29.97e9, "llama-7b": 6.74e9, "llama-13b": 13.02e9,
        "llama-33b": 32.53e9, "pythia-6.9b": 6.86e9, "pythia-12b": 11.85e9,
    }  # fmt: skip
    assert {n: m.total_parameters for n, m in MODELS.items()} == {
        n: pytest.approx(v, rel=0.01) for n, v in published.items()
    }
    assert Job(MODELS["opt-6.7b"], 1).token_bytes == 524288


@pytest.mark.parametrize(("device", "model"), [("v100", "llama-7b"), ("h100", "llama-33b")])
def test_a_gpu_and_its_host(device: str, model: str) -> None:
    tiers = Tiers.of(load_device(device), MODELS[model], link=20e9)
    job = Job(MODELS[model], 64)
    ours = best_schedule(job, tiers, 0.2)
    assert sparse(job, tiers, ours, 0.2).seconds < static_split(job, tiers).seconds
    assert sparse(job, tiers, ours, 0.2).most_fast <= tiers.fast_bytes
    assert Tiers.of(load_device(device), MODELS[model]).link > 20e9


def test_a_model_that_does_not_fit_its_gpu() -> None:
    with pytest.raises(HastenError, match="opt-30b has 60 GB of weights, v100 32 GB"):
        Tiers.of(load_device("v100"), MODELS["opt-30b"])
    alone = load_device("v100").model_copy(update={"links": ()})
    with pytest.raises(HastenError, match="no connection to a host"):
        Tiers.of(alone, MODELS["opt-6.7b"])


def test_what_a_sparse_window_remembers() -> None:
    small = DecoderSizes("small", layers=2, hidden=8, heads=1)
    assert Job(small, batch=3, prompt=40, new_tokens=60).row_bytes(0.2, 4) == 10 * 100 * 4 * 2 * 3 * 2


def test_too_little_memory() -> None:
    with pytest.raises(HastenError, match="one token"):
        best_schedule(OPT, replace(V100, fast_bytes=1e6), 0.2)
    with pytest.raises(HastenError, match="one sequence"):
        waves(OPT, replace(V100, fast_bytes=1e6))
    with pytest.raises(HastenError, match="shares"):
        Schedule(1.5)


def test_speedups_are_of_the_ways_by_themselves() -> None:
    job = Job(MODELS["opt-6.7b"], 16, new_tokens=32)
    tiers = Tiers(fast_bytes=1e9, link=20e9, fast=900e9, compute=100e12)
    found = speedups(job, tiers, 0.2)
    assert found.three == sparse(job, tiers, best_schedule(job, tiers, 0.2), 0.2).seconds <= found.two
    assert found.over_split == static_split(job, tiers).seconds / found.three
    assert found.over_waves == waves(job, tiers).seconds / found.three


@given(shares, shares, st.integers(0, 60), st.floats(0, 1), st.booleans(), st.sampled_from([0, 16]))
def test_what_is_held_is_within_the_budget(
    alpha: float, beta: float, start: int, room: float, prefix: bool, group: int
) -> None:
    sizes = DecoderSizes(
        "small", layers=2, hidden=8, heads=4, kv_heads=4, head_dim=16, dtype="fp32", cache_dtype="int8"
    )
    job = Job(sizes if group else replace(sizes, cache_dtype=""), 3, 50, 60, group)
    fast, schedule = job.least_bytes + room * 60 * job.token_bytes, Schedule(alpha, beta, start, prefix)
    before = (0, 0)
    for length, away, deleted in job.placements(schedule, fast):
        assert 0 <= deleted <= away <= length
        assert (away, deleted) >= before
        assert job.held(schedule, length, away, deleted) <= fast * (1 + 1e-9)
        before = (away, deleted)


def test_scales_and_the_incomplete_group_are_held() -> None:
    """Of 37 tokens in groups of 16, 5 are plain; 32 are codes of which 20 are away; two groups have scales."""
    sizes = DecoderSizes("small", layers=1, hidden=8, heads=1, dtype="fp32", cache_dtype="int8")
    job = Job(sizes, 1, 30, 30, 16)
    plain = 2 * 8 * 4
    assert job.held(Schedule(), 37, 20, 0) == 12 * plain // 4 + 5 * plain + 2 * 2 * plain
    assert job.held(Schedule(0.5, 0.5), 37, 20, 3) == job.held(Schedule(), 37, 20, 0) + 3 * 8 * 4


@pytest.mark.parametrize("ratio", [0.07, 0.2, 0.5, 0.93, 1.0])
@pytest.mark.parametrize("prompt", [1, 19, 128])
def test_expected_reads_are_of_the_budget(ratio: float, prompt: int) -> None:
    for lasting in (0.0, 0.3, 1.0):
        reads = ExpectedReads(prompt, ratio, lasting)
        for length in range(prompt + 1, prompt + 300, 7):
            below = [reads.oldest(length, count) for count in range(length + 1)]
            assert below[0] == 0
            assert below[-1] == pytest.approx(sum(window_split(ratio, length)))
            each = [b - a for a, b in itertools.pairwise(below)]
            assert all(-1e-9 <= share <= 1 + 1e-9 for share in each)
            assert each[length - window_split(ratio, length)[0] :] == pytest.approx(
                [1] * window_split(ratio, length)[0]
            )


def test_expected_reads_are_those_of_choices_that_give_way_at_random() -> None:
    """Tokens that have been read stay until the token that leaves the newest takes the place of any of them."""
    import random

    random.seed(0)
    prompt, ratio, last, runs = 40, 0.3, 90, 3000
    counts = [0.0] * last
    for _ in range(runs):
        local, others = window_split(ratio, prompt + 1)
        older = prompt + 1 - local
        chosen = random.sample(range(older), others)
        for length in range(prompt + 2, last + 1):
            local, others = window_split(ratio, length)
            chosen += range(older, length - local)
            older = length - local
            chosen = random.sample(chosen, others)
        for j in chosen:
            counts[j] += 1 / runs
    reads = ExpectedReads(prompt, ratio, 0.0)
    older = last - window_split(ratio, last)[0]
    for count in range(0, older + 1, 5):
        assert reads.oldest(last, count) == pytest.approx(sum(counts[:count]), abs=0.2)


def test_a_long_text_of_few_choices_does_not_overflow() -> None:
    reads = ExpectedReads(10, 0.001, 0.0)
    assert reads.oldest(3000, 3000) == pytest.approx(sum(window_split(0.001, 3000)))
    assert reads.oldest(3000, 10) == pytest.approx(0, abs=1e-6)


class _Dense:
    """Reads everything."""

    def oldest(self, length: int, count: int) -> float:
        return count


def test_bytes_by_hand() -> None:
    """Four tokens fit, the prompt has six, two more are fed: 2 go away, then 1 and 1; steps fetch 2, then 3."""
    job = Job(DecoderSizes("small", layers=1, hidden=8, heads=2, dtype="fp32"), 1, 6, 3)
    tiers = Tiers(4 * job.token_bytes, 1.0, 1e12, 1e12, step=1e-9)
    found = sparse(job, tiers, Schedule(), 1.0, reads=_Dense())
    assert found.moved == (2 + (2 + 1) + (3 + 1)) * job.token_bytes
    assert found.seconds == pytest.approx(found.moved)
    assert found.prompt_seconds == 2 * job.token_bytes
    assert found.phases == (0, 3, 0)
    assert found.most_fast == 4 * job.token_bytes
    # Inputs are half of keys and values. Away and deleted go from 3 and 1 to 4 and 2 and to 6 and 3: the inputs of the
    # first token stay, those of two others are written, and read one by one.
    assert job.input_bytes * 2 == job.token_bytes
    deleting = Schedule(0.0, 0.5, 0)
    assert [p[1:] for p in job.placements(deleting, 4 * job.token_bytes)] == [(3, 1), (4, 2), (6, 3)]
    found = sparse(job, tiers, deleting, 1.0, reads=_Dense())
    tokens = 3 + (2 + 1) + (2 + 2)
    inputs = 2 + 1 + 1
    assert found.moved == tokens * job.token_bytes + inputs * job.input_bytes
    assert found.recomputed == 1 + 2


def test_a_static_split_is_one_from_the_first_token_on() -> None:
    job = Job(DecoderSizes("small", layers=1, hidden=8, heads=2, dtype="fp32"), 1, 6, 4)
    found = static_split(job, Tiers(8 * job.token_bytes, 1.0, 1e12, 1e12, step=1e-9))
    # A fifth of 6, 7, 8 and 9 tokens, rounded up: all would fit until the ninth.
    assert found.moved == (2 + 2 + 2 + 2) * job.token_bytes
    assert found.phases == (0, 4, 0)
