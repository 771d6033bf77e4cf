"""Costs of generating at test time, against the paper's own figures and by brute force."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.cost.serving.scaling import (
    QWEN3,
    Point,
    best_within,
    block_top_k,
    cost_of,
    coverage,
    crossover,
    dense,
    envelope,
    intensity_of,
    seen,
    top_k,
)
from hasten.errors import HastenError
from hasten.hardware.device import load_device
from hasten.workload.decoder import DecoderSizes

SMALL = DecoderSizes("small", layers=2, heads=4, kv_heads=2, head_dim=16, parameters=1e6)


def test_published_figures() -> None:
    assert [m.token_bytes for m in QWEN3] == [114688, 114688, 147456, 147456, 163840, 262144]
    crossovers = [23.3, 62.9, 96.9, 197.5, 320.5, 444.3]
    assert [crossover(m) for m in QWEN3] == [pytest.approx(c, rel=3e-3) for c in crossovers]
    at_length = [dense(m, 200, 16384).equivalent() / 1e12 for m in QWEN3]
    assert at_length == [pytest.approx(c, rel=1e-3) for c in (8926, 8968, 11617, 11754, 13268, 21636)]
    sparse = [top_k(m, 200, 16384, 1024).equivalent() / 1e12 for m in QWEN3]
    assert sparse == [pytest.approx(c, rel=1e-3) for c in (1089, 1131, 1505, 1641, 2012, 3532)]


def test_one_trial_without_a_prompt() -> None:
    cost = dense(SMALL, 0, 100)
    assert cost.flops == 2 * 1e6 * 100 + 2 * 100**2 * SMALL.layers * SMALL.query_width
    assert cost.bytes == 2 * 100**2 * SMALL.layers * SMALL.kv_width


@given(st.integers(1, 300), st.integers(0, 200), st.integers(1, 200))
def test_keys_seen_by_brute_force(budget: int, prompt: int, made: int) -> None:
    total = sum(min(budget, prompt + t) for t in range(made))
    assert abs(seen(budget, prompt, made) - total) <= made / 2 + 1e-9


@given(st.integers(1, 400), st.integers(0, 300), st.integers(1, 300), st.integers(1, 8))
def test_costs_grow(budget: int, prompt: int, made: int, trials: int) -> None:
    for method in ("dense", "top-k", "block top-k"):
        base = cost_of(method, SMALL, prompt, made, budget, trials).equivalent()
        assert cost_of(method, SMALL, prompt, made + 1, budget, trials).equivalent() > base
        assert cost_of(method, SMALL, prompt, made, budget, trials + 1).equivalent() > base
        assert cost_of(method, SMALL, prompt, made, budget + 1, trials).equivalent() >= base
    one = top_k(SMALL, prompt, made, budget).equivalent()
    assert one <= dense(SMALL, prompt, made).equivalent() * (1 + 1e-12)


def test_a_long_shared_prompt_favours_dense() -> None:
    """Dense reads the prompt once for all trials; a sparse method picks its own keys in each."""
    few = {"prompt": 20000, "made": 50, "trials": 64}
    assert dense(SMALL, **few).equivalent() < block_top_k(SMALL, budget=4096, **few).equivalent()


@pytest.mark.parametrize("trials", [1, 3, 16])
def test_each_trial_searches_the_whole_blocks_of_its_own_context(trials: int) -> None:
    """FLOPs of the search: floor((2 prompt + made) / block) made Dq a trial, so exactly so many times one trial's."""
    prompt, made, block = 101, 77, 16
    found = block_top_k(SMALL, prompt, made, 32, trials, block)
    plain = top_k(SMALL, prompt, made, 32, trials)
    each = (2 * prompt + made) // block * made * SMALL.layers * SMALL.query_width
    assert (2 * prompt + made) % block, "or the floor would do nothing"
    assert found.flops - plain.flops == trials * each
    # Bytes: the mean keys of the prompt are read once for all trials.
    read = (2 * prompt + trials * made) // block * made * SMALL.layers * SMALL.kv_width
    assert found.bytes - plain.bytes == read


def test_what_chooses_blindly_searches_for_nothing() -> None:
    for method in ("local", "strided blocks", "random"):
        assert cost_of(method, SMALL, 30, 200, 32, 3) == top_k(SMALL, 30, 200, 32, 3)


def test_intensity_is_the_hardware_s() -> None:
    assert intensity_of(load_device("v100"), "fp16") == pytest.approx(125e12 / 900e9)
    assert dense(SMALL, 10, 10).equivalent(0.0) == dense(SMALL, 10, 10).flops


def test_coverage() -> None:
    assert coverage(16, 4, 1) == pytest.approx(4 / 16)
    rising = [coverage(16, 4, k) for k in range(1, 17)]
    assert rising == sorted(rising)
    assert coverage(4, 0, 4) == 0
    assert coverage(4, 1, 4) == 1
    with pytest.raises(HastenError):
        coverage(4, 1, 5)


def test_the_envelope_rises() -> None:
    points = [Point(c, a, {}) for c, a in [(1, 0.1), (2, 0.1), (3, 0.5), (4, 0.4), (5, 0.6)]]
    assert [(p.cost, p.accuracy) for p in envelope(points)] == [(1, 0.1), (3, 0.5), (5, 0.6)]
    best = best_within(points, 4.5)
    assert best is not None
    assert best.accuracy == 0.5
    assert best_within(points, 0.5) is None


def test_another_method_is_refused() -> None:
    with pytest.raises(HastenError, match="unknown attention"):
        cost_of("magic", SMALL, 1, 1, 1, 1)
