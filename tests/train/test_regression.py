"""A network that learns latencies from few measurements."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.cost.latency.correlation import spearman
from hasten.cost.latency.meta_network import CodeNetwork, GraphNetwork
from hasten.models.vision.cell_network import CellConfig
from hasten.train.regression import from_scratch

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("graph", [False, True])
def test_networks_learn_from_scratch(graph: bool) -> None:
    config = CellConfig()
    cells = [config.cell(i) for i in RNG.permutation(15625)[:90]]
    counts = np.array([config.counts(c) for c in cells])
    y = counts @ np.array([0.1, 1.0, 4.0, 2.0]) + 1
    codes = config.codes(cells) if graph else torch.tensor(counts, dtype=torch.float32)
    torch.manual_seed(0)
    network = GraphNetwork(8, 32, 0) if graph else CodeNetwork(4, 32, 0)
    found = from_scratch(network, codes[:60], y[:60], codes[60:], steps=150, rate=3e-3)
    assert spearman(found, y[60:]) > 0.8
