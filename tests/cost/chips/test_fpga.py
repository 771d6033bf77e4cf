"""The FPGA engine: packed products bit for bit, published sizes, bounds on both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasten.cost.chips.fpga import (
    EFFICIENCIES,
    LLAMA_2_7B,
    PLANS,
    PRODUCTS,
    U280,
    DspEngine,
    Plan,
    best_slices,
    joules_a_token,
    needs,
    operations,
    pack_products,
    packing,
    run,
    weight_bytes,
    without_packing,
)
from hasten.errors import HastenError


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_product_is_exact(bits: int) -> None:
    """All 256 x 2^bits operands, in both places of a pair: the lower product may borrow from the upper one."""
    for activation in range(-128, 128):
        for weight in range(1 << bits):
            for weights in ([weight, (weight * 7 + 1) % (1 << bits)], [(weight * 5 + 3) % (1 << bits), weight]):
                assert pack_products(activation, weights, bits) == [activation * w for w in weights]


def test_every_pair_of_four_bits() -> None:
    for activation in (-128, -127, -1, 0, 1, 77, 127):
        for both in range(256):
            weights = [both & 15, both >> 4]
            assert pack_products(activation, weights, 4) == [activation * w for w in weights]


def test_packing_is_what_the_engine_counts() -> None:
    """As many products fit a slice as the cost model says, and no more."""
    for bits in (2, 4, 8):
        most = PRODUCTS[bits]
        assert pack_products(-128, [(1 << bits) - 1] * most, bits) == [-128 * ((1 << bits) - 1)] * most
        with pytest.raises(HastenError, match="do not fit"):
            pack_products(1, [(1 << bits) - 1] * (most + 1), bits)
    plan = PLANS["2:4, W2, KV4, window 2048"]
    packed, single = (run(DspEngine(), plan, LLAMA_2_7B, 0, 512, how) for how in (packing, without_packing))
    assert single.products == 3 * packed.products
    assert single.compute > packed.compute


def test_published_ratios() -> None:
    assert round(164 / 55, 2) == 2.98
    assert round(4.96 / 1.22, 2) == 4.07
    bound = 460e9 / run(DspEngine(), PLANS["2:4, W2, KV4, window 2048"], LLAMA_2_7B, 4096).bytes["memory"]
    assert bound == pytest.approx(205, abs=1)
    assert bound >= 164


def test_three_two_bit_weights_in_a_slice() -> None:
    for activation in range(-128, 128):
        for w in range(64):
            weights = [w & 3, w >> 2 & 3, w >> 4]
            assert pack_products(activation, weights, 2) == [activation * x for x in weights]


def test_operands_that_do_not_fit() -> None:
    for weights, bits in (([1, 1, 1, 1], 2), ([4], 2), ([1, 1, 1], 8)):
        with pytest.raises(HastenError, match="do not fit"):
            pack_products(3, weights, bits)


def test_published_sizes() -> None:
    sizes = LLAMA_2_7B
    assert sizes.layer_parameters == 6476005376
    plan = PLANS["2:4, W2, KV4, window 2048"]
    assert weight_bytes(plan, sizes) == pytest.approx(1.85e9 + 0.13e9, rel=0.01)
    assert weight_bytes(PLANS["dense fp16"], sizes) == pytest.approx(13.48e9 - 0.26e9, rel=0.01)
    window = 2 * 32 * 4096 * 2048 * 0.5
    assert window == pytest.approx(268e6, rel=0.01)


def test_bounds() -> None:
    sizes, engine = LLAMA_2_7B, DspEngine()
    plan = PLANS["2:4, W2, KV4, window 2048"]
    assert run(engine, plan, sizes, 4096).bound == "memory"
    assert run(engine, plan, sizes, 0, 512).bound == "compute"
    assert run(engine, plan, sizes, 4096).latency == run(engine, plan, sizes, 1 << 20).latency
    assert (
        run(engine, PLANS["dense fp16"], sizes, 32768).latency > run(engine, PLANS["dense fp16"], sizes, 4096).latency
    )
    assert best_slices(engine, plan, sizes, 4096, (16, 2048, 9024)) == 2048
    slow = replace(engine, slices=16)
    assert run(slow, plan, sizes, 4096).bound == "compute"
    with pytest.raises(HastenError, match="at least one token"):
        run(engine, plan, sizes, 1, 0)


FINAL = PLANS["2:4, W2, KV4, window 2048"]


@pytest.mark.parametrize(
    ("first", "count", "window"), [(0, 1, 8), (0, 20, 8), (5, 20, 8), (7, 1, 8), (30, 4, 8), (9, 40, 0)]
)
def test_a_prompt_attends_to_its_own_tokens(first: int, count: int, window: int) -> None:
    """Whatever the window, by counting: token t sees min(window, t + 1) tokens, itself among them."""
    plan = replace(FINAL, window=window)
    for chunk in (1, 7, 512):
        engine = DspEngine(chunk=chunk)
        found = [o for o in operations(engine, plan, LLAMA_2_7B, first, count) if o.name == "attention"]
        seen = sum(min(window or 1 << 40, t + 1) for t in range(first, first + count))
        assert sum(o.cycles for o in found) == pytest.approx(2 * LLAMA_2_7B.query_width * seen / 2)
        assert {o.times for o in found} == {32}


def test_a_window_makes_attention_linear_and_not_free() -> None:
    """Attention of a prompt in a window grows with the prompt, and lies between nothing and the whole."""

    def attention(plan: Plan, tokens: int) -> float:
        return sum(o.cycles for o in operations(DspEngine(), plan, LLAMA_2_7B, 0, tokens) if o.name == "attention")

    whole = replace(FINAL, window=0)
    assert attention(FINAL, 2048) == attention(whole, 2048), "a prompt no longer than the window sees all of itself"
    assert attention(FINAL, 4096) == pytest.approx(attention(FINAL, 2048) + 2 * 4096 * 2048 * 2048 / 2)
    assert attention(FINAL, 32768) < 0.2 * attention(whole, 32768)
    times = [run(DspEngine(), plan, LLAMA_2_7B, 0, 32768).latency for plan in (FINAL, whole)]
    assert times[0] < times[1]


def test_each_operation_takes_as_long_as_its_slower_side() -> None:
    """A sum of maxima, which is above the maximum of sums where one operation waits for memory and another does not."""
    engine, plan = DspEngine(slices=1500), PLANS["2:4, W2"]
    given = (engine, plan, LLAMA_2_7B, 4096, 1, without_packing)
    cost = run(*given)
    each = {
        o.name: (o.times * o.cycles / 1500 / engine.clock, o.times * o.bytes / (engine.bandwidth * engine.efficiency))
        for o in operations(*given)
    }
    assert each["weights"][0] > each["weights"][1], "bound by compute"
    assert each["attention"][0] < each["attention"][1], "bound by memory"
    assert cost.latency == pytest.approx(sum(map(max, each.values())))
    assert cost.latency > 1.1 * max(cost.compute, cost.memory)
    assert cost.bound == "compute"
    balanced = run(DspEngine(), FINAL, LLAMA_2_7B, 4096)
    assert balanced.latency == pytest.approx(balanced.memory), "all operations of a decoding step wait for memory"


def test_a_step_s_bytes_by_hand() -> None:
    moved = run(DspEngine(), FINAL, LLAMA_2_7B, 4096).bytes["memory"]
    assert moved == pytest.approx(weight_bytes(FINAL, LLAMA_2_7B) + 2048 * 131072)
    # Before the window is full, what is there is read and the new token is written.
    assert run(DspEngine(), FINAL, LLAMA_2_7B, 99).bytes["memory"] == pytest.approx(
        weight_bytes(FINAL, LLAMA_2_7B) + 100 * 131072
    )
    # A prompt in two chunks reads the layers' weights twice, and the first chunk's cache for the second.
    one, two = (run(DspEngine(chunk=c), FINAL, LLAMA_2_7B, 0, 1024).bytes["memory"] for c in (1024, 512))
    head = 4096 * 32000
    assert two - one == pytest.approx(weight_bytes(FINAL, LLAMA_2_7B) - head + 512 * 131072)


MOST = {0.5: 3, 1: 3, 1.58: 3, 2.5: 3, 3: 3, 3.5: 2, 5: 2, 6.5: 2, 8: 2, 8.5: 1, 12: 1}


@pytest.mark.parametrize(("bits", "most"), MOST.items())
def test_any_number_of_bits(bits: float, most: int) -> None:
    """A part of a bit is multiplied as a whole one, and stored as it is."""
    assert packing(bits) == most
    plan = replace(FINAL, weight_bits=bits, cache_bits=bits, head_bits=bits)
    cost = run(DspEngine(), plan, LLAMA_2_7B, 64)
    assert cost.bytes["memory"] == pytest.approx(
        (LLAMA_2_7B.layer_parameters * ((bits + 2) / 2 + 18 / 64) + 4096 * 32000 * bits + 65 * 2 * 32 * 4096 * bits) / 8
    )
    whole = -(-bits // 1)
    if whole <= 8:
        weights = [(1 << int(whole)) - 1] * most
        assert pack_products(-128, weights, int(whole)) == [-128 * w for w in weights]


@pytest.mark.parametrize("bits", [0, -1, 17, float("nan")])
def test_bits_that_the_engine_has_no_multiplier_for(bits: float) -> None:
    for where in ("weight_bits", "cache_bits", "head_bits"):
        with pytest.raises(HastenError, match="up to 16 bits"):
            Plan(**{where: bits})
    with pytest.raises(HastenError, match="fewer than 0"):
        Plan(window=-1)
    with pytest.raises(HastenError, match="at most all of the bandwidth"):
        DspEngine(efficiency=1.1)
    with pytest.raises(HastenError, match="bandwidth and chunks above 0"):
        DspEngine(bandwidth=0)


def test_a_design_that_does_not_fit_says_so() -> None:
    fp16 = run(DspEngine(), PLANS["dense fp16"], LLAMA_2_7B, 4096)
    assert not fp16.fits
    assert fp16.misfits == ("memory 15.6 of 8.0 GB",), "13.48 GB of weights and 4,097 tokens of 524,288 bytes"
    assert fp16.needs.memory == pytest.approx(13.48e9 + 4097 * 524288, rel=1e-3)
    assert run(DspEngine(), FINAL, LLAMA_2_7B, 1 << 20).fits, "a window holds no more, however long the text"
    assert run(DspEngine(), replace(FINAL, window=0), LLAMA_2_7B, 1 << 16).misfits[0].startswith("memory")
    assert run(DspEngine(slices=9025), FINAL, LLAMA_2_7B, 1).misfits == ("slices 9025 of 9024",)
    logic = run(DspEngine(luts=10**6), FINAL, LLAMA_2_7B, 1).misfits
    assert len(logic) == 1
    assert logic[0].startswith("luts ")
    # A chunk of 4,096 tokens has more activations than there is memory on the chip; they go to block memory last.
    wide = run(DspEngine(chunk=4096), FINAL, LLAMA_2_7B, 0, 4096)
    assert wide.needs.uram == U280.uram
    assert wide.misfits[0].startswith("bram ")
    assert run(DspEngine(chunk=512), FINAL, LLAMA_2_7B, 0, 4096).fits


def test_experts_that_a_token_does_not_use_take_memory_too() -> None:
    mixture = replace(LLAMA_2_7B, experts=8, experts_per_token=2, expert_inner=11008)
    dense = needs(DspEngine(), FINAL, LLAMA_2_7B, 1).memory
    assert needs(DspEngine(), FINAL, mixture, 1).memory > 5 * dense
    assert not run(DspEngine(), FINAL, mixture, 1).fits


def test_slices_are_chosen_among_designs_that_fit() -> None:
    assert best_slices(DspEngine(), Plan(2, cache_bits=8, head_bits=8), LLAMA_2_7B, 4096, (64, 128, 20000)) == 128
    with pytest.raises(HastenError, match=r"no design of 20000, 30000 slices fits \(slices 30000 of 9024"):
        best_slices(DspEngine(), FINAL, LLAMA_2_7B, 4096, (20000, 30000))


def test_the_published_rate_stands_or_falls_within_about_0_8_of_the_bandwidth() -> None:
    """164 of 204.8 tokens/s are 80.1 %: what is assumed of the bandwidth decides, so no single value may."""
    rates = [1 / run(DspEngine(efficiency=e), FINAL, LLAMA_2_7B, 4096).latency for e in EFFICIENCIES]
    assert EFFICIENCIES == (0.75, 0.8, 0.85)
    assert rates == [pytest.approx(r, abs=0.1) for r in (153.6, 163.8, 174.1)]
    assert DspEngine().efficiency == 0.8


def test_energy_over_what_is_not_known() -> None:
    low, high = joules_a_token(DspEngine(), FINAL, LLAMA_2_7B, 4096)
    assert low < run(DspEngine(), FINAL, LLAMA_2_7B, 4096).energy < high
    same = joules_a_token(DspEngine(), FINAL, LLAMA_2_7B, 4096, spread=0, efficiencies=(0.8,))
    assert same == (run(DspEngine(), FINAL, LLAMA_2_7B, 4096).energy,) * 2
