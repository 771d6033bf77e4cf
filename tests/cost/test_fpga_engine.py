"""The FPGA engine: packed products bit for bit, published sizes, bounds on both sides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hasten.cost.fpga_engine import PLANS, Engine, Sizes, best_slices, pack_products, run, weight_bytes
from hasten.errors import HastenError


@pytest.mark.parametrize(("bits", "count"), [(2, 2), (4, 2), (8, 1)])
def test_every_product_is_exact(bits: int, count: int) -> None:
    for activation in range(-128, 128):
        for weight in range(1 << bits):
            weights = [weight, (weight * 7 + 1) % (1 << bits)][:count]
            assert pack_products(activation, weights, bits) == [activation * w for w in weights]


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
    sizes = Sizes()
    assert sizes.parameters == 6476005376
    plan = PLANS["2:4, W2, KV4, window 2048"]
    assert weight_bytes(plan, sizes) == pytest.approx(1.85e9 + 0.13e9, rel=0.01)
    assert weight_bytes(PLANS["dense fp16"], sizes) == pytest.approx(13.48e9 - 0.26e9, rel=0.01)
    window = 2 * 32 * 4096 * 2048 * 0.5
    assert window == pytest.approx(268e6, rel=0.01)


def test_bounds() -> None:
    sizes, engine = Sizes(), Engine()
    plan = PLANS["2:4, W2, KV4, window 2048"]
    assert run(engine, plan, sizes, 4096).bound == "memory"
    assert run(engine, plan, sizes, 0, 512).bound == "compute"
    assert run(engine, plan, sizes, 4096).seconds == run(engine, plan, sizes, 1 << 20).seconds
    assert (
        run(engine, PLANS["dense fp16"], sizes, 32768).seconds > run(engine, PLANS["dense fp16"], sizes, 4096).seconds
    )
    assert best_slices(engine, plan, sizes, 4096, (16, 2048, 9024)) == 2048
    slow = replace(engine, slices=16)
    assert run(slow, plan, sizes, 4096).bound == "compute"
    with pytest.raises(HastenError, match="at least one token"):
        run(engine, plan, sizes, 1, 0)
