from __future__ import annotations

from hasten.cost.chips.monarch import monarch_chain
from hasten.workload.streaming import work_graph


def test_sizes_are_as_asked() -> None:
    chain = monarch_chain(2, 32, 8, 4, "fp32")
    assert chain.tensors["X"].shape == (8, 2, 4)
    assert chain.tensors["T"].shape == (32, 4)  # shared by the batch
    assert chain.tensors["O"].shape == (2, 4, 8)
    graph = work_graph(chain, grain="kernel")
    assert graph.order == ("Y", "Z", "W", "O")
    assert graph.macs == 2 * 32 * 8 * 8
