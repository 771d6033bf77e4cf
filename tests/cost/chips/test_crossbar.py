"""Linear layers on crossbar tiles: seconds, joules, bytes and tiles by hand."""

from __future__ import annotations

import pytest

from hasten.cost.chips.crossbar import ReadLayer, crossbar_cost
from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import CrossbarChip, crossbar_chip, crossbar_chips

PLAIN = CrossbarChip(
    name="plain", title="plain", rows=4, columns=2, tiles=6, read=1.0, cell_energy=1.0, row_energy=10.0, adcs=1,
    adc_rate=1.0, adc_energy=100.0, sum_energy=0.0, buffer_energy=0.0, buffer_rate=1e9, cell_area=1.0, tile_area=2.0,
    source="none",
)  # fmt: skip


def test_it_adds_up_by_hand() -> None:
    cost = crossbar_cost([ReadLayer(6, 3, 5)], PLAIN, input_bits=2)
    assert cost.tiles == 2 * 2
    assert cost.area == 4 * (8 + 2)
    assert cost.conversions == 5 * 2 * 2 * 3
    # 10 reads: 18 pairs, 6 rows of both tiles across, 6 conversions.
    assert cost.energy == 10 * (18 + 6 * 2 * 10 + 6 * 100)
    assert cost.latency == 10 * 2  # two columns take turns
    assert cost.bound == "converters"
    assert cost.bytes == {"buffer": 5 * (6 * 2 / 8 + 3 * 2)}


def test_more_converters_leave_the_arrays_as_what_is_waited_for() -> None:
    cost = crossbar_cost([ReadLayer(6, 3, 5)], PLAIN.model_copy(update={"adcs": 2}), input_bits=2)
    assert (cost.bound, cost.latency) == ("arrays", 10)
    slow = crossbar_cost([ReadLayer(6, 3, 5)], PLAIN.model_copy(update={"buffer_rate": 1.0}), input_bits=2)
    assert (slow.bound, slow.latency) == ("buffer", 37.5)


def test_weights_that_are_there_take_no_tiles_again() -> None:
    twice = crossbar_cost([ReadLayer(6, 3, 5), ReadLayer(6, 3, 5, held=False)], PLAIN)
    assert twice.tiles == 4
    with pytest.raises(HastenError, match="need 8 tiles, plain has 6"):
        crossbar_cost([ReadLayer(6, 3, 5)] * 2, PLAIN)
    with pytest.raises(HastenError, match="at least 1 bit"):
        crossbar_cost([ReadLayer(6, 3, 5)], PLAIN, input_bits=0)


def test_chips_are_read_by_name() -> None:
    assert "isaac" in crossbar_chips()
    chip = crossbar_chip("isaac")
    # A second of reads of a whole array: its cells draw 0.3 mW, the drivers of its rows 0.5.
    reads = 1 / chip.read
    cost = crossbar_cost([ReadLayer(128, 64, reads)], chip, input_bits=1)
    assert cost.latency == pytest.approx(1.0)
    assert cost.tiles == 1
    rest = cost.energy - reads * 64 * (chip.adc_energy + chip.sum_energy) - cost.bytes["buffer"] * chip.buffer_energy
    assert rest == pytest.approx(0.8e-3, rel=0.02)
    with pytest.raises(HastenError, match="no crossbar chip is called"):
        crossbar_chip("no such")
