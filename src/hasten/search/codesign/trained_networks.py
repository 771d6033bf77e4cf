"""Small classifiers of several image tasks, trained once and looked up by searches for networks and chips.

A ResNet-9 with four choices, 81 networks, on digits and on Fashion-MNIST and MNIST at half their size.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from hasten.cost.chips.module_layers import conv_shapes
from hasten.data import images
from hasten.models.vision.resnet9 import ResNet9
from hasten.search.codec import Codec
from hasten.search.codesign.chips import ChipSpace, Specs
from hasten.search.codesign.coexplore import CoProblem, NetworkTask, Solution, coexplore, limits_from
from hasten.search.parameter import ordinal
from hasten.search.space import Space
from hasten.train.classifying import accuracy, classify

WIDTHS, SKIPS = (4, 12, 32), (0, 1, 2)
# Task -> pixels a side, images to train on; the rest of 3500 judge.
IMAGES = {"digits": (8, 1200), "fashion-mnist": (14, 1200), "mnist": (14, 1200)}
CHOSEN = 3500

Accuracies: TypeAlias = Mapping[tuple[int, ...], float]


def split(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 1, side, side) and labels of a task of `IMAGES` to train on, and others to judge by."""
    load = {"digits": images.digits, "fashion-mnist": images.fashion_mnist, "mnist": images.mnist}[name]
    everything, labels = load()
    chosen = torch.randperm(len(everything), generator=torch.Generator().manual_seed(0))[:CHOSEN]
    pictures = everything[chosen, None].float()
    size, count = IMAGES[name]
    if pictures.shape[-1] != size:
        pictures = F.avg_pool2d(pictures, pictures.shape[-1] // size)
    pictures = (pictures - pictures[:count].mean()) / pictures[:count].std()
    return pictures[:count], labels[chosen][:count], pictures[count:], labels[chosen][count:]


def network_space() -> Space:
    """Filters and skip layers of two stages."""
    return Space(
        [
            ordinal("filters-1", WIDTHS),
            ordinal("skips-1", SKIPS),
            ordinal("filters-2", WIDTHS),
            ordinal("skips-2", SKIPS),
        ]
    )


def network(params: Mapping[str, Any]) -> ResNet9:
    """The network of a point of `network_space`, for images of one channel in ten classes."""
    return ResNet9(10, 1, 8, (params["filters-1"], params["filters-2"]), (params["skips-1"], params["skips-2"]))


def network_key(params: Mapping[str, Any]) -> tuple[int, ...]:
    """A point as the key of a table of accuracies."""
    return tuple(params[k] for k in ("filters-1", "skips-1", "filters-2", "skips-2"))


def every_network() -> list[dict[str, int]]:
    """All 81 points."""
    return [
        {"filters-1": a, "skips-1": b, "filters-2": c, "skips-2": d}
        for a, b, c, d in itertools.product(WIDTHS, SKIPS, WIDTHS, SKIPS)
    ]


def trained_accuracies(name: str, points: Sequence[Mapping[str, int]], epochs: int, seed: int) -> list[float]:
    """Accuracy of each network on held-out images, trained from the same seed."""
    pictures, labels, held, answers = split(name)
    found = []
    for params in points:
        torch.manual_seed(seed)
        made = network(params)
        classify(made, pictures, labels, epochs=epochs, batch=32, rate=0.05, seed=seed)
        found.append(accuracy(made, held, answers))
    return found


def by_width(accuracy: float) -> dict[tuple[int, ...], float]:
    """A table of all 81 networks where one was trained: each has its accuracy, and more the wider and deeper it is."""
    return {network_key(p): accuracy + sum(p.values()) / 1000 for p in every_network()}


def network_task(name: str, accuracies: Accuracies, label: str = "") -> NetworkTask:
    """A task of a co-exploration whose networks are looked up instead of trained again."""
    size = IMAGES[name][0]
    return NetworkTask(
        label or name,
        network_space(),
        lambda params: conv_shapes(network(params), (1, 1, size, size)),
        lambda params: accuracies[network_key(params)],
    )


def small_chips(**changed: Any) -> ChipSpace:
    """Chips in proportion to these networks: 512 elements, 16 bytes a cycle.

    Args:
        **changed: other arguments of `ChipSpace`.
    """
    given: dict[str, Any] = {
        "pes": tuple(range(0, 513, 32)),
        "bandwidths": (1, 2, 4, 6, 8, 10, 12, 14),
        "total_pes": 512,
        "total_bandwidth": 16,
    }
    return ChipSpace(**{**given, **changed})


def limits_of_the_best(tasks: Sequence[NetworkTask], chips: ChipSpace, share: float) -> tuple[Specs, Specs]:
    """Limits at a share of what the most accurate network of each task costs on the best chips, and its bounds."""
    best = []
    for task in tasks:
        codec = Codec(task.space)
        points = [codec.decode(i) for i in itertools.product(*(range(n) for n in codec.sizes))]
        best.append(max(points, key=task.accuracy))
    return limits_from(list(tasks), chips, best, share)


def searched(
    names: Sequence[str], changed: Mapping[str, Any], limits: Specs, bounds: Specs, method: str, seed: int,
    table: Mapping[str, Accuracies], budget: tuple[int, int],
) -> Solution | None:  # fmt: skip
    """One search for networks of these tasks and a small chip, for a process of its own; None where nothing was found.

    Args:
        names: of the tasks; one may stand there twice.
        changed: of `small_chips`.
        limits, bounds: as of `limits_of_the_best`.
        method, seed: of `coexplore`.
        table: task -> accuracies to look up.
        budget: mapped chips, and trained networks a task.
    """
    tasks = tuple(network_task(n, table[n], f"{n} {i}") for i, n in enumerate(names))
    problem = CoProblem(tasks, small_chips(**changed), limits, bounds, mapped=budget[0], trained=budget[1])
    return coexplore(problem, method, seed=seed)
