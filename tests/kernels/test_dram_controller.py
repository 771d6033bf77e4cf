"""The compiled DRAM controller against the plain one, and both against arithmetic by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.kernels import native
from hasten.kernels.dram_controller import KNOBS, TIMING, plain, simulate

DDR3 = dict(zip(TIMING, (8, 1, 11, 11, 8, 11, 28, 4, 4, 5, 5, 24, 12, 6, 6, 88, 6240, 4), strict=True))
GROUPED = DDR3 | {"groups": 4, "ccd_l": 6, "rrd_l": 7}
DEFAULT = dict(zip(KNOBS, (0, 2, 0, 8, 0, 0, 8, 8, 1, 128), strict=True))


def knobs(**changed):
    return np.array([(DEFAULT | changed)[k] for k in KNOBS], np.int64)


def timing(part=DDR3):
    return np.array([part[k] for k in TIMING], np.int64)


def requests(cycles, banks, rows, writes=None):
    n = len(cycles)
    return (
        np.array(cycles, np.int64),
        np.array(banks, np.int32),
        np.array(rows, np.int32),
        np.array(writes if writes is not None else [0] * n, np.uint8),
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_compiled_is_plain(data):
    n = data.draw(st.integers(1, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    chosen = knobs(
        page=data.draw(st.integers(0, 3)),
        scheduler=data.draw(st.integers(0, 2)),
        buffer=data.draw(st.integers(0, 2)),
        size=data.draw(st.sampled_from([1, 2, 8, 64])),
        response=data.draw(st.integers(0, 1)),
        refresh=data.draw(st.integers(0, 1)),
        postponed=data.draw(st.integers(1, 8)),
        pulled=data.draw(st.integers(1, 8)),
        arbiter=data.draw(st.integers(0, 2)),
        active=data.draw(st.sampled_from([1, 2, 8, 128])),
    )
    part = timing(data.draw(st.sampled_from([DDR3, GROUPED])))
    span = data.draw(st.sampled_from([10, 500, 60_000]))
    trace = requests(
        np.sort(rng.integers(0, span, n)), rng.integers(0, 8, n), rng.integers(0, 4, n), rng.integers(0, 2, n)
    )
    found = simulate(part, chosen, *trace)
    assert found == plain(part, chosen, *trace)
    assert found.cycles >= 4 * n
    assert found.reads + found.writes == n
    assert found.open_cycles <= found.cycles


@pytest.mark.parametrize("run", [simulate, plain])
def test_latencies_by_hand(run):
    closed = run(timing(), knobs(), *requests([0], [0], [5]))
    assert closed.cycles == 11 + 11 + 4  # activate, read, data
    hit = run(timing(), knobs(), *requests([0, 1000], [0, 0], [5, 5]))
    assert hit.cycles - 1000 == 11 + 4
    assert hit.activates == 1
    conflict = run(timing(), knobs(), *requests([0, 1000], [0, 0], [5, 6]))
    assert conflict.cycles - 1000 == 11 + 11 + 11 + 4
    # A write, then a read of the same row: its data, then the turnaround.
    turned = run(timing(), knobs(), *requests([0, 0], [0, 0], [5, 5], [1, 0]))
    assert turned.cycles == 11 + (8 + 4 + 6) + 11 + 4


def test_four_activates_in_a_window():
    found = simulate(timing(), knobs(), *requests([0] * 5, [0, 1, 2, 3, 4], [1] * 5))
    assert found.cycles == max(20 + 11, 24 + 11) + 11 + 4  # the fifth waits for the window


def test_refreshes_come_due_and_may_wait():
    cycles = np.arange(20_000)
    trace = requests(cycles, np.zeros(20_000), np.zeros(20_000))
    none = simulate(timing(), knobs(), *trace)
    few = simulate(timing(), knobs(refresh=1, postponed=8), *trace)
    many = simulate(timing(), knobs(refresh=1, postponed=1), *trace)
    assert none.refreshes == 0
    assert few.refreshes < many.refreshes
    assert none.cycles < few.cycles < many.cycles
    assert few.refreshes + few.owed >= few.cycles // 6240 - 1
    idle = requests([0, 100_000], [0, 0], [0, 1])
    assert simulate(timing(), knobs(refresh=1, pulled=8), *idle).refreshes == 16 + 8


@pytest.mark.parametrize(
    "wrong",
    [
        {"bank": np.array([9], np.int32)},
        {"row": np.array([-1], np.int32)},
        {"arrival": np.array([-1], np.int64)},
        {"write": np.array([2], np.uint8)},
        {"bank": np.array([0], np.int64)},
        {"row": np.array([0, 0], np.int32)},
    ],
)
def test_refuses_what_would_reach_outside(wrong):
    good = dict(zip(("arrival", "bank", "row", "write"), requests([0], [0], [0]), strict=True))
    with pytest.raises(ValueError, match=r"DRAM simulation|room for one"):
        simulate(timing(), knobs(), **(good | wrong))
    with pytest.raises(ValueError, match="room for one"):
        simulate(timing(), knobs(size=0), **good)


def test_nothing_to_do():
    assert simulate(timing(), knobs(), *requests([], [], [])).cycles == 0


def test_works_without_the_compiled_part(monkeypatch):
    trace = requests([0, 3], [0, 1], [0, 0])
    expected = simulate(timing(), knobs(), *trace)
    monkeypatch.setenv("HASTEN_NO_NATIVE", "1")
    native.cache_clear()
    try:
        assert simulate(timing(), knobs(), *trace) == expected
    finally:
        native.cache_clear()
