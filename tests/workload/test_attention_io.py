"""Programs that count the words they move, against closed forms and bounds."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.cost import estimate
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.workload import trace
from hasten.workload.attention_io import (
    PROGRAMS,
    FastMemory,
    best_program,
    compulsory,
    flash1,
    flash1_tiles,
    flash2,
    flash2_trace,
    lower_bound,
    lru_moved,
    output_tile,
    program_words,
    regime,
    small_cache,
    small_cache_tile,
    strassen,
    strassen_words,
    upper_bound,
)
from hasten.workload.attention_sites import sites


def tensors(n, d, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, d)) for _ in range(3)]


def reference(q, k, v, causal):
    scores = q @ k.T
    if causal:
        scores = np.where(np.triu(np.ones_like(scores), 1) > 0, -np.inf, scores)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ v


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(PROGRAMS)), st.integers(1, 70), st.integers(1, 20), st.integers(8, 3000), st.booleans())
def test_every_program_is_right_and_moves_what_its_form_says(program, n, d, m, causal):
    given = tensors(n, d)
    try:
        expected = program_words(program, n, d, m, causal=causal)
    except HastenError:
        with pytest.raises(HastenError, match=r"fit|small"):
            PROGRAMS[program](*given, m)
        return
    run = PROGRAMS[program](*given, m, causal=causal)
    np.testing.assert_allclose(run.output, reference(*given, causal), atol=1e-10)
    assert run.peak <= m
    assert run.moved == expected
    assert run.moved >= lower_bound(n, d, m, causal=causal)


def test_no_program_is_below_the_floor_on_a_grid():
    seen = 0
    for n in (64, 256, 1000, 4096):
        for d in (8, 16, 64, 128):
            last = math.inf
            for m in [2**i for i in range(5, 19)]:
                floor = lower_bound(n, d, m)
                assert floor <= last  # more memory never asks for more
                last = floor
                for program in PROGRAMS:
                    try:
                        assert program_words(program, n, d, m) >= floor
                    except HastenError:
                        continue
                    seen += 1
                if m >= 16:
                    assert floor <= best_program(n, d, m)[1] <= upper_bound(n, d, m)
                if m >= d * d:  # constants of both bounds together
                    assert upper_bound(n, d, m) <= 10 * floor
    assert seen > 500


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 200), st.integers(6, 1 << 17))
def test_the_best_program_stays_below_the_upper_bound(n, keys, d, m):
    assert lower_bound(n, d, m, keys=keys) <= best_program(n, d, m, keys=keys)[1] <= upper_bound(n, d, m, keys=keys)


def test_the_bound_itself():
    n, d = 4096, 64
    assert n * n * d * d / d**2 == n * n * d / math.sqrt(d**2) == lower_bound(n, d, d * d)
    assert lower_bound(2 * n, d, 512) == 4 * lower_bound(n, d, 512)
    assert lower_bound(n, d, 1 << 30) == compulsory(n, d) == 4 * n * d
    assert regime(n, d, 100) == "small"
    assert regime(n, d, 4096) == "large"
    assert regime(n, d, 1 << 22) == "resident"
    # 192 KB of 2-byte words: a latent head of 576 channels is in the other regime than one of 128.
    assert [regime(8192, d, 98_304) for d in (64, 128, 576)] == ["large", "large", "small"]
    with pytest.raises(HastenError, match="at least 1"):
        lower_bound(0, 1, 1)
    with pytest.raises(HastenError, match="6 words"):
        upper_bound(8, 8, 5)


def test_published_scale_of_the_two_programs():
    n, d = 4096, 64
    per = {(p, m): program_words(p, n, d, m) / n**2 for p in ("flash2", "small-cache") for m in (1024, 4096, 16384)}
    assert per["flash2", 1024] == pytest.approx(21.4, abs=0.1)
    assert per["flash2", 4096] == pytest.approx(4.31, abs=0.02)
    assert per["flash2", 16384] == pytest.approx(1.09, abs=0.02)
    assert per["small-cache", 1024] == pytest.approx(9.55, rel=0.05)
    assert per["small-cache", 4096] == pytest.approx(5.15, rel=0.05)
    # Below about 0.7 d^2 the second moves fewer.
    assert program_words("small-cache", n, d, 2048) < program_words("flash2", n, d, 2048)


def test_all_in_fast_memory_moves_each_word_once():
    run = flash2(*tensors(32, 8), 32 * 8 * 8)
    assert run.moved == 4 * 32 * 8
    assert best_program(32, 8, 32 * 8 * 8) == ("resident", 4 * 32 * 8)


def test_a_memory_that_is_full_says_so_and_goes_on():
    memory = FastMemory(10)
    with memory.room(8):
        with pytest.raises(HastenError, match="12 words do not fit"), memory.room(4):
            pass
        assert memory.held == 8
    assert memory.held == 0
    with pytest.raises(HastenError, match="no program"):
        program_words("magic", 8, 8, 100)


def test_fast_products_move_no_fewer_words():
    given = tensors(128, 32)
    plain = flash2(*given, 8 * 32 * 32, block=32)
    fast = flash2(*given, 8 * 32 * 32, block=32, multiply=lambda x, y: strassen(x, y, 8))
    np.testing.assert_allclose(plain.output, fast.output, atol=1e-9)
    assert fast.moved == plain.moved
    x, y = tensors(64, 64)[:2]
    np.testing.assert_allclose(strassen(x, y, 8), x @ y, atol=1e-9)


def test_least_recently_used_is_within_twice():
    for m in (512, 1024):
        program = flash2(*tensors(96, 16), m).moved
        assert lru_moved(flash2_trace(96, 16, m), 2 * m) <= 2 * program


class Plain(torch.nn.Module):
    def forward(self, q, k, v):
        return torch.softmax(q @ k.transpose(-1, -2) * 0.1, -1) @ v


class Fused(torch.nn.Module):
    def forward(self, q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


@pytest.mark.parametrize("module", [Plain, Fused])
def test_attention_is_found_in_what_is_traced(module):
    q, k = torch.zeros(2, 4, 256, 32), torch.zeros(2, 4, 512, 32)
    workload = trace(module(), q, k, k)
    (site,) = sites(workload.phases[0].cascade)
    assert (site.heads, site.queries, site.keys, site.channels, site.values) == (8, 256, 512, 32, 32)
    cost = estimate(workload, load_device("h100"))
    assert cost.attention_io is not None
    assert cost.attention_io >= 1
    assert (cost.attention_io == 1) == (module is Fused)


def test_nothing_attends_in_a_linear_layer():
    workload = trace(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Softmax(-1)), torch.zeros(2, 8))
    assert sites(workload.phases[0].cascade) == []
    assert estimate(workload, load_device("h100")).attention_io is None


def test_a_tile_of_flash1_gives_up_queries_before_keys() -> None:
    assert flash1_tiles(64, 16384) == (64, 42)  # what decides the traffic are the 64 keys
    assert flash1_tiles(8, 64)[0] >= 1
    with pytest.raises(HastenError, match="does not fit"):
        flash1_tiles(64, 128)


def test_causal_masks_save_flash1_reads() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((64, 8)) for _ in range(3))
    whole, causal = flash1(q, k, v, 512), flash1(q, k, v, 512, causal=True)
    assert causal.moved < 0.75 * whole.moved
    assert causal.peak <= 512
    scores = q @ k.T + np.triu(np.full((64, 64), -np.inf), 1)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    assert np.allclose(causal.output, weights / weights.sum(1, keepdims=True) @ v)


@pytest.mark.parametrize(("program", "m"), [(p, m) for p in PROGRAMS for m in (300, 1000)])
def test_a_causal_mask_saves_close_to_half(program: str, m: int) -> None:
    n, d = 512, 16
    whole, causal = program_words(program, n, d, m), program_words(program, n, d, m, causal=True)
    # What is moved once whatever is hidden: queries, keys, values, outputs, and the statistics of rows.
    once = 4 * n * d + 4 * n
    assert 0.8 * (whole - once) / 2 <= causal <= 1.2 * (whole - once) / 2 + once
    assert best_program(n, d, m, causal=True)[1] <= causal


def test_what_a_causal_mask_hides_is_neither_computed_nor_moved() -> None:
    """A count of the words by hand, one by one: tiles of 3 queries and keys, b^2 + 4 b = 21 words."""
    n, d, m = 8, 4, 21
    assert small_cache_tile(m) == 3
    tall, across = output_tile(n, n, d, m, causal=True)
    words = 0
    for rows in ([0, 1, 2], [3, 4, 5], [6, 7]):
        for cols in ([0, 1, 2], [3, 4, 5], [6, 7]):
            if cols[0] <= rows[-1]:
                words += d * (len(rows) + len(cols))
                words += sum(j <= i for i in rows for j in cols)
        words += 2 * len(rows)  # statistics
    for start in range(0, n, tall):
        rows = range(start, min(n, start + tall))
        for left in range(0, d, across):
            width = min(d, left + across) - left
            words += 2 * len(rows) + len(rows) * width
            words += sum(width + sum(i >= j for i in rows) for j in range(rows[-1] + 1))
    assert small_cache(*tensors(n, d), m, causal=True).moved == words
    assert program_words("small-cache", n, d, m, causal=True) == words


def test_a_causal_mask_over_other_keys_is_refused() -> None:
    with pytest.raises(HastenError, match="as many keys as queries, not 5 and 4"):
        program_words("flash2", 4, 2, 100, keys=5, causal=True)


def test_temporaries_of_fast_products_take_room_from_tiles() -> None:
    assert strassen_words(16, 64, 64) == 0  # too small to be halved
    assert strassen_words(32, 32, 32) == 16 * 16 * (2 + 7)
    assert strassen_words(64, 64, 64) == 32 * 32 * 9 + 16 * 16 * 9
    rng = np.random.default_rng(0)
    given = [rng.standard_normal((256, 64)) for _ in range(3)]
    m = 8 * 64 * 64
    plain = flash2(*given, m, block=64, multiple=4)
    fast = flash2(*given, m, block=64, multiple=4, multiply=strassen, workspace=strassen_words)
    np.testing.assert_allclose(fast.output, plain.output, atol=1e-9)
    assert m // 2 < fast.peak <= m
    assert fast.moved > plain.moved
