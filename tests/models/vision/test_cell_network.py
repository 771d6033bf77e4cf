"""NAS-Bench-201's space: names, graphs, and networks without what their output does not depend on."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.models.vision.cell_network import EDGES, CellConfig, CellNetwork, cell_name, live_edges, named_cell
from hasten.models.vision.once_for_all import macs

SMALL = CellConfig(width=4, resolution=8)
cells = st.integers(0, 15624).map(SMALL.cell)


@given(cells)
@settings(max_examples=60, deadline=None)
def test_a_name_leads_back(cell: tuple[int, ...]) -> None:
    assert named_cell(cell_name(cell)) == cell


def test_every_cell_has_a_number() -> None:
    assert SMALL.count == 15625
    assert len({SMALL.cell(i) for i in range(SMALL.count)}) == 15625


@given(cells)
@settings(max_examples=30, deadline=None)
def test_graphs_are_of_the_published_shape(cell: tuple[int, ...]) -> None:
    features, heard = SMALL.encode(cell)
    assert features.shape == (9, 8)
    assert heard.shape == (9, 9)
    assert features.sum(1).tolist() == [1] * 9
    assert heard.diagonal().tolist() == [1] * 9
    assert heard[-1].tolist() == [1] * 9
    assert heard[7, 1:7].tolist() == [float(end == 3) for _, end in EDGES]
    assert torch.equal(heard, heard.tril())  # nobody hears what comes later
    assert SMALL.codes([cell]).shape == (1, 9, 17)


@given(cells, st.integers(0, 5), st.integers(0, 4))
@settings(max_examples=30, deadline=None)
def test_dead_edges_change_nothing(cell: tuple[int, ...], edge: int, operation: int) -> None:
    if live_edges(cell)[edge]:
        return
    changed = (*cell[:edge], operation, *cell[edge + 1 :])
    if live_edges(changed) != live_edges(cell):
        return
    networks = []
    for one in (cell, changed):
        torch.manual_seed(0)
        networks.append(CellNetwork(SMALL, one).eval())
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(networks[0](x), networks[1](x))
    assert SMALL.macs(cell) == SMALL.macs(changed)


def test_nothing_but_none_is_zero_in_every_cell() -> None:
    assert live_edges((0,) * 6) == [False] * 6
    assert live_edges((0, 0, 3, 1, 0, 3)) == [False, False, False, True, False, False]
    assert CellNetwork(SMALL, (0,) * 6).eval()(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("seed", range(5))
def test_operations_are_those_of_the_network_and_of_its_parts(seed: int) -> None:
    config = CellConfig(width=4, resolution=8, repeats=2)
    cell = config.sample(random.Random(seed))
    network, image = config.build(cell)
    assert network(image).shape == (1, 10)
    assert config.macs(cell) == macs(network, 8)
    parts = 0
    for _, make, shape in config.parts(cell):
        part = make().eval()
        if any(True for _ in part.parameters()):
            parts += macs(part, shape[-1], shape[0])
    assert parts == config.macs(cell)


def test_what_is_no_cell_is_said() -> None:
    with pytest.raises(HastenError, match="6 numbers"):
        CellNetwork(SMALL, (1, 2))
    with pytest.raises(HastenError, match="from 0 to 4"):
        SMALL.macs((5,) * 6)
    for name in ("", "|none~0|", "|none~1|+|none~0|none~1|+|none~0|none~1|none~2|"):
        with pytest.raises(HastenError, match="no cell"):
            named_cell(name)
