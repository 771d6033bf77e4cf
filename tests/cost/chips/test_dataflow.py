"""Dataflow templates: bounds, symmetries, monotone costs, and which layers suit which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.cost.chips.dataflow import (
    CLOCK,
    DATAFLOWS,
    ConvShape,
    SubAccelerator,
    area,
    blocked_cost,
    layer_cost,
    layer_costs,
)
from hasten.errors import HastenError

shapes = st.builds(
    ConvShape,
    st.integers(1, 300), st.integers(1, 300), st.integers(1, 7), st.integers(1, 7), st.integers(1, 60),
    st.integers(1, 60), st.integers(1, 2),
)  # fmt: skip


@given(shapes, st.sampled_from(DATAFLOWS), st.integers(1, 600), st.floats(0.5, 64))
def test_never_faster_than_its_elements(layer, dataflow, pes, bandwidth):
    cost = layer_cost(layer, SubAccelerator(dataflow, pes, bandwidth))
    assert cost.compute * pes >= layer.macs
    assert cost.cycles >= cost.bytes["memory"] / bandwidth
    assert cost.latency == cost.cycles / CLOCK
    assert cost.bytes["memory"] >= layer.weights + layer.inputs + layer.outputs


def test_all_elements_busy_where_tiles_divide():
    assert (
        layer_cost(ConvShape(64, 32, 3, 3, 14, 14), SubAccelerator("dla", 256, 64)).compute == 64 * 32 * 9 * 196 // 256
    )
    assert layer_cost(ConvShape(64, 32, 3, 3, 16, 16), SubAccelerator("shi", 256, 64)).compute == 64 * 32 * 9
    assert layer_cost(ConvShape(8, 32, 3, 3, 14, 14), SubAccelerator("rs", 8 * 3 * 14, 64)).compute == 14 * 3 * 32


@given(
    shapes, st.sampled_from(DATAFLOWS), st.integers(1, 500), st.integers(0, 300), st.floats(0.5, 32), st.floats(1, 4)
)
def test_more_elements_or_bandwidth_is_never_slower(layer, dataflow, pes, more, bandwidth, times):
    one = layer_cost(layer, SubAccelerator(dataflow, pes, bandwidth)).cycles
    assert layer_cost(layer, SubAccelerator(dataflow, pes + more, bandwidth)).cycles <= one
    assert layer_cost(layer, SubAccelerator(dataflow, pes, bandwidth * times)).cycles <= one


@given(shapes, st.integers(1, 400))
def test_symmetries(layer, pes):
    k, c, r, s, y, x = (
        layer.out_channels, layer.in_channels, layer.kernel_rows, layer.kernel_columns, layer.height, layer.width,
    )  # fmt: skip
    shi = SubAccelerator("shi", pes, 8)
    assert layer_cost(layer, shi).cycles == layer_cost(ConvShape(k, c, s, r, x, y, layer.stride), shi).cycles
    square, turned = ConvShape(k, c, r, r, y, x, layer.stride), ConvShape(k, c, r, r, x, y, layer.stride)
    assert layer_cost(square, shi).cycles == layer_cost(turned, shi).cycles
    flat = ConvShape(k, c, r, s, y * x, 1, layer.stride)
    dla = SubAccelerator("dla", pes, 8)
    assert layer_cost(layer, dla) == layer_cost(flat, dla)


@given(shapes, st.sampled_from(DATAFLOWS), st.integers(1, 500), st.floats(0.5, 32), st.floats(1, 4))
def test_energy_within_a_deadline_never_grows_with_bandwidth(layer, dataflow, pes, bandwidth, times):
    slow = layer_costs(layer, SubAccelerator(dataflow, pes, bandwidth))
    fast = layer_costs(layer, SubAccelerator(dataflow, pes, bandwidth * times))
    for ways in (slow, fast):
        assert [c.cycles for c in ways] == sorted({c.cycles for c in ways})
        assert [c.energy for c in ways] == sorted({c.energy for c in ways}, reverse=True)
    assert fast[-1].energy == slow[-1].energy
    for cost in slow:
        assert min(c.energy for c in fast if c.cycles <= cost.cycles * (1 + 1e-9)) <= cost.energy


def test_less_time_may_cost_many_times_the_energy():
    """A way a few per cent sooner at nine times the energy is offered beside the other, not in its place."""
    layer = ConvShape(128, 128, 3, 3, 28, 28)
    narrow, wide = (layer_costs(layer, SubAccelerator("shi", 256, b)) for b in (16, 24))
    soonest, least = wide
    assert layer_cost(layer, SubAccelerator("shi", 256, 24)) == soonest
    assert 0.95 < soonest.cycles / narrow[0].cycles < 1
    assert soonest.energy > 9 * narrow[0].energy
    assert least.energy == narrow[0].energy


def test_pieces_that_move_less_are_chosen():
    # Weights and inputs that fit cross once, whatever the dataflow.
    small = ConvShape(32, 32, 3, 3, 14, 14)
    for dataflow in DATAFLOWS:
        cost = layer_cost(small, SubAccelerator(dataflow, 512, 8))
        assert cost.bytes["memory"] == small.weights + small.inputs + small.outputs
    # 64 x 112 x 112 sums of 16 filters do not fit 64 KiB: in strips they do, and few inputs cross twice.
    first, unit = ConvShape(64, 3, 7, 7, 112, 112, 2), SubAccelerator("dla", 256, 16)
    best = layer_cost(first, unit)
    assert best.blocking.rows > 1
    assert best.bytes["memory"] < 1.5 * (first.weights + first.inputs + first.outputs)
    with pytest.raises(HastenError, match="more strips"):
        blocked_cost(first, unit, 4, 1)
    with pytest.raises(HastenError, match="rounds"):
        blocked_cost(first, unit, 1, 16)
    for strips in (8, 16, 64):
        other = blocked_cost(first, unit, 4, strips)
        assert (other.cycles, other.energy) >= (best.cycles, best.energy)
    # One output position: a matrix times a vector, weights once, at the speed of the memory.
    vector = ConvShape(1000, 512, 1, 1, 1, 1)
    assert layer_cost(vector, unit).cycles == (512_000 + 512 + 1000) / 16


def test_a_stride_over_the_kernel_leaves_inputs_out():
    assert ConvShape(8, 4, 1, 1, 10, 10, 2).inputs == 400
    assert ConvShape(8, 4, 3, 3, 10, 10, 2).inputs == 1600


def test_nothing_computes_before_its_data_and_leaves_before_its_sums():
    layer, unit = ConvShape(16, 16, 1, 1, 4, 4), SubAccelerator("dla", 256, 4)
    assert layer_cost(layer, unit).cycles >= 16 + (256 + 256) / 4


def test_the_best_dataflow_changes_with_depth():
    early, deep = ConvShape(64, 3, 7, 7, 112, 112, 2), ConvShape(512, 512, 3, 3, 7, 7)
    dla, shi = SubAccelerator("dla", 1024, 32), SubAccelerator("shi", 1024, 32)
    assert layer_cost(early, shi).cycles < layer_cost(early, dla).cycles
    assert layer_cost(deep, dla).cycles < layer_cost(deep, shi).cycles


def test_area_and_errors():
    one = SubAccelerator("dla", 64, 8)
    assert area([one, one]) == 2 * one.area
    for wrong in (("tpu", 64, 8), ("dla", 0, 8), ("dla", 64, 0)):
        with pytest.raises(HastenError):
            SubAccelerator(*wrong)
    with pytest.raises(HastenError):
        ConvShape(0, 1, 1, 1, 1, 1)
