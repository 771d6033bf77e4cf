"""The FPGA engine: packed products bit for bit, published sizes, bounds on both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasten.cost.chips.fpga import (
    LLAMA_2_7B,
    PLANS,
    PRODUCTS,
    DspEngine,
    best_slices,
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
