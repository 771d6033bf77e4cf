"""Rates of unpacking weights: what is measured, and how it is named."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.hardware import memory_rates
from hasten.kernels.block_formats import BLOCK_FORMATS
from hasten.kernels.compiled import native


def test_blocks_are_known_by_the_bits_of_a_weight() -> None:
    found = memory_rates.blocks_by_bits()
    assert {bits: BLOCK_FORMATS[number].name for bits, (_, number) in found.items()} == {
        2.625: "q2_k", 3.4375: "q3_k", 4.5: "q4_k", 5.5: "q5_k", 6.5625: "q6_k", 4.25: "iq4_xs",
    }  # fmt: skip


@pytest.mark.skipif(native() is None or native().isa() == "generic", reason="no product of blocks is compiled")
def test_every_format_is_measured_by_what_it_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(call: Any, *budget: float) -> float:
        call()
        return 0.25

    monkeypatch.setattr(memory_rates, "seconds", once)
    rates, further = memory_rates.packed_rates()
    assert rates.keys() == further.keys()
    assert {"4", "4 int8", "8 int8", "16", "4.5 int8", "6.5625 int8"} <= rates.keys()
    # Three matrices of 16384 x 2048 in a quarter of a second, and a row more for nothing.
    assert float(rates["6.5625 int8"]) == pytest.approx(3 * 16384 * 2048 / 0.25)
    assert set(further.values()) == {0.0}
