"""Memory traces: what share goes on to the next line, and what writes."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.data.memory_traces import WORKLOADS, memory_trace


@pytest.mark.parametrize(
    ("workload", "least", "most"),
    [("stream", 1, 1), ("random", 0, 0.01), ("cloud-1", 0.6, 0.8), ("cloud-2", 0.45, 0.6)],
)
def test_steps_to_the_next_line(workload: str, least: float, most: float) -> None:
    trace = memory_trace(workload, 20_000)
    assert least <= (np.diff(trace.address) == 64).mean() <= most
    assert not trace.write.any()


def test_the_same_seed_is_the_same_trace() -> None:
    for workload in WORKLOADS:
        a, b = memory_trace(workload, 500, seed=3), memory_trace(workload, 500, seed=3)
        np.testing.assert_array_equal(a.address, b.address)
    assert (memory_trace("cloud-2", 500, seed=1).address != memory_trace("cloud-2", 500, seed=2).address).any()
