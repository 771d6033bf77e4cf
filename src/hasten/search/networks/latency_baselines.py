"""What a meta-learned predictor of latency is compared with, for networks of any space.

Each takes as many measurements as the other: those of `hasten.cost.latency.baselines`, and networks trained on what was
measured alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from hasten.cost.latency.baselines import Matrix, best_proxy, flops_regression, layerwise_sum, mean_device_ridge
from hasten.cost.latency.meta_network import CodeNetwork, GraphNetwork
from hasten.cost.latency.tables import Arch
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.train.regression import from_scratch


def of_one_device(
    space: ArchitectureSpace[Arch], measured: Sequence[Arch], seconds: Sequence[float], asked: Sequence[Arch],
    seed: int = 0, *, hidden: int = 64, steps: int = 200,
) -> dict[str, Matrix]:  # fmt: skip
    """Predictions of what knows one device alone: a sum over layers, a plain network, a graph network.

    Args:
        space: of the networks; one without graphs has no graph network.
        measured, seconds: networks, and what they take.
        asked: other networks.
        seed: of the trained ones.
        hidden, steps: width of their layers, and how long they learn.

    Returns:
        Baseline -> predictions (asked,).
    """
    values = np.array(seconds)
    fine = [np.array([space.encode(a) for a in archs]) for archs in (measured, asked)]
    coarse = [np.array([space.counts(a) for a in archs]) for archs in (measured, asked)]
    found = {"layer-wise sum": layerwise_sum([fine[0], coarse[0]], values, [fine[1], coarse[1]])}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        here, there = (torch.tensor(f, dtype=torch.float32) for f in fine)
        plain = CodeNetwork(here.shape[1], hidden, embedding=0)
        found["MLP"] = from_scratch(plain, here, values, there, steps=steps, rate=3e-3)
        if space.graph_labels:
            network = GraphNetwork(space.graph_labels, hidden, embedding=0)
            graphs = space.graphs(measured), space.graphs(asked)
            found["GNN"] = from_scratch(network, graphs[0], values, graphs[1], steps=steps, rate=3e-3)
    return found


def all_baselines(
    space: ArchitectureSpace[Arch], measured: Mapping[Arch, float], asked: Sequence[Arch],
    known: Sequence[Mapping[Arch, float]], seed: int = 0, *, steps: int = 200,
) -> dict[str, Matrix]:  # fmt: skip
    """Each baseline's predictions for the asked networks of a device.

    Args:
        space: of the networks.
        measured: network -> seconds on that device: all that is known of it.
        asked: other networks.
        known: the devices learned from, network -> seconds; those with all networks serve as proxies.
        seed, steps: of the trained ones.

    Returns:
        Baseline -> predictions (asked,).
    """
    seconds = np.array(list(measured.values()))
    both = [*measured, *asked]
    here, there = list(range(len(measured))), list(range(len(measured), len(both)))
    products = np.array([space.products(a) for a in both], dtype=float)
    proxies = np.array([[t[a] for a in both] for t in known if all(a in t for a in both)])
    codes = np.array([space.encode(a) for a in both])
    return {
        **of_one_device(space, list(measured), seconds.tolist(), asked, seed, steps=steps),
        "FLOPs": flops_regression(products[here], seconds, products[there]),
        "best proxy": best_proxy(proxies, here, seconds, there),
        "mean device + ridge": mean_device_ridge(proxies, codes, here, seconds, there),
    }
