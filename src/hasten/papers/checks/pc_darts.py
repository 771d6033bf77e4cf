"""Checks of PC-DARTS: Partial Channel Connections for Memory-Efficient Architecture Search."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch.nn import functional as F

from hasten.cost.latency.correlation import kendall
from hasten.cost.measuring import alternating, kept_for_backward
from hasten.models.matching import parameters_of
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.darts import CIFAR, GENOTYPES, IMAGENET, DartsConfig, DartsNetwork, Genotype
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.processes import one_thread
from hasten.search.networks.cell_search import search_cells
from hasten.search.networks.darts_super_net import DartsSuperNet
from hasten.search.networks.members.darts import DartsSpace
from hasten.search.networks.retraining import at_size, retrained
from hasten.tasks.images import Digits, FashionMNIST, LabelledImages

_NEEDS = 300.0
_PARTS = (1, 2, 4, 8)
# Channels of an edge that operations see (1 of so many), and whether edges have weights; 1 and none is DARTS.
_ARMS = {
    "PC and EN": (4, True), "PC": (4, False), "EN": (1, True), "DARTS": (1, False), "K=2": (2, True), "K=8": (8, True),
}  # fmt: skip
_Sizes = dict[str, tuple[int, float]]
# Parameters, and millions of products of an image.
_SMALL: _Sizes = {
    "pc-darts-cifar": (3_634_678, 556.67), "darts-v1": (3_169_414, 500.99), "darts-v2": (3_349_342, 528.36),
}  # fmt: skip
_LARGE: _Sizes = {
    "pc-darts-imagenet": (5_342_464, 581.63), "pc-darts-cifar": (5_270_560, 571.14), "darts-v2": (4_718_752, 529.91),
}  # fmt: skip


def _told_sizes(config: DartsConfig, image: int, expected: _Sizes) -> tuple[str, bool]:
    with torch.device("meta"):
        nets = {name: DartsNetwork(config, GENOTYPES[name]) for name in expected}
    found = {n: (parameters_of(m), round(multiply_accumulates(m, (3, image, image)) / 1e6, 2)) for n, m in nets.items()}
    return ", ".join(f"{name} {p:,} / {m:.1f} M" for name, (p, m) in found.items()), found == expected


@check("c1", weight=2)
def _sizes(experiment: Experiment) -> Seen:
    """Parameters and products of the published cells for CIFAR-10; errors are not checked."""
    value, exact = _told_sizes(CIFAR, 32, _SMALL)
    return experiment.judge(value, exact)


@check("c3", weight=2)
def _large_sizes(experiment: Experiment) -> Seen:
    """Parameters and products of the published cells for ImageNet; errors are not checked."""
    value, exact = _told_sizes(IMAGENET, 224, _LARGE)
    return experiment.judge(f"{value}; published 597 M and 574 M by another counter", exact)


@shared(weight=12)
def _costs(experiment: Experiment) -> dict[int, tuple[int, float]]:
    """Of a step of the logits and one of the weights: bytes kept for the backward pass, and least seconds. 16 channels,
    four cells, 32 images of 16 x 16, one thread, in turn."""
    config = DartsConfig(*experiment.at(quick=(8, 3), normal=(16, 4)), resolution=16, channels=1)
    batch = experiment.at(quick=2, normal=32)
    generator = torch.Generator().manual_seed(experiment.seed)
    images, labels = torch.randn(batch, 1, 16, 16, generator=generator), torch.arange(batch) % 10
    torch.manual_seed(experiment.seed)
    nets = {part: DartsSuperNet(config, part) for part in _PARTS}

    def step(net: DartsSuperNet) -> None:
        for learning in (net.logits(), list(net.weights())):
            torch.autograd.backward(F.cross_entropy(net(images), labels), inputs=learning)

    calls: dict[str, Callable[[], object]] = {str(part): partial(step, net) for part, net in nets.items()}
    with one_thread():
        kept = {p: kept_for_backward(partial(net, images), net.parameters()) for p, net in nets.items()}
        times = alternating(calls, experiment.at(quick=1, normal=2))
    return {part: (kept[part], min(times[str(part)])) for part in _PARTS}


@check("c2", weight=1)
def _speed(experiment: Experiment) -> Seen:
    """Products of the search's network at its published size, and a step measured here."""
    with torch.device("meta"):
        whole, part = (multiply_accumulates(DartsSuperNet(part=k), (3, 32, 32)) / 1e6 for k in (1, 4))
    seconds = {k: seconds for k, (_, seconds) in experiment.once(_costs).items()}
    ratio = seconds[1] / seconds[4]
    value = f"products of an image {whole:.1f} M and {part:.1f} M: {whole / part:.1f}x; steps "
    value += ", ".join(f"K={k} {1e3 * s:.0f} ms" for k, s in seconds.items())
    value += f": {ratio:.2f}x from K=1 to K=4; published 4x"
    return experiment.judge(value, ratio >= 2.0 and round(whole / part, 1) == 5.3, ratio > 1)


@check("c4", weight=1)
def _memory(experiment: Experiment) -> Seen:
    """Bytes that a forward pass keeps for the backward pass."""
    kept = {k: size for k, (size, _) in experiment.once(_costs).items()}
    ratio = kept[1] / kept[4]
    value = ", ".join(f"K={k} {size / 1e6:.0f} MB" for k, size in kept.items())
    return experiment.judge(f"{value}: {ratio:.2f}x from K=1 to K=4; published 3x", ratio >= 2.5, ratio > 1)


class _Arm(NamedTuple):
    """A derived genotype, its accuracy on test images, images seen by the search, and scores of edges."""

    arch: Genotype
    accuracy: float
    images: int
    edges: list[float]


def _setting(quick: bool) -> tuple[DartsSpace, LabelledImages]:
    config = DartsConfig(8, 3 if quick else 4, resolution=8 if quick else 16, channels=1)
    task = Digits((64, 32, 32)) if quick else FashionMNIST((6000, 2000, 2000))
    return DartsSpace(config), at_size(task, config.resolution)


def _searched(part: int, normalized: bool, seconds: float, trains: float, seed: int, quick: bool) -> _Arm:
    """Searches and trains in seconds of processor time; the batch grows with the part."""
    (space, task), clock = _setting(quick), time.process_time
    torch.manual_seed(seed)
    net = space.super_network(part, normalized)
    batch = 4 * part if quick else None
    found = search_cells(net, task, seconds=seconds, seed=seed, batch=batch, clock=clock)
    edges = [float(v) for scores in found.scores.values() for v in scores[:, 1:].max(1).values]
    images = found.steps[0] * (batch or 64 * part)
    return _Arm(found.arch, retrained(task, space, found.arch, trains, seed=seed, clock=clock), images, edges)


def _random(trains: float, seed: int, quick: bool) -> _Arm:
    space, task = _setting(quick)
    arch = space.sample(random.Random(seed))
    return _Arm(arch, retrained(task, space, arch, trains, seed=seed, clock=time.process_time), 0, [])


@shared(weight=100)
def _searches(experiment: Experiment) -> dict[str, list[_Arm]]:
    """Of each arm a search and a training in equal processor time, and five random genotypes trained as long."""
    experiment.require(_NEEDS)
    seeds = experiment.seeds(2, long=5)
    whole = experiment.at(quick=0.3, normal=experiment.budget * 0.9 / (len(_ARMS) * len(seeds) + 2))
    searches, trains = 0.6 * whole, 0.4 * whole
    plan = {f"{name} {s}": (*arm, searches, trains, s, experiment.quick) for name, arm in _ARMS.items() for s in seeds}
    found, _ = succeeded(experiment.arms(_searched, plan), plan)
    drawn = {str(i): (trains, experiment.seed + i, experiment.quick) for i in range(experiment.at(quick=1, normal=5))}
    others, _ = succeeded(experiment.arms(_random, drawn), drawn)
    return {name: [found[f"{name} {s}"] for s in seeds] for name in _ARMS} | {"random": list(others.values())}


def _points(row: list[_Arm]) -> float:
    return 100 * statistics.fmean(arm.accuracy for arm in row)


def _told(arms: dict[str, list[_Arm]]) -> str:
    found = {name: sorted(100 * arm.accuracy for arm in row) for name, row in arms.items()}
    return "; ".join(f"{n} {statistics.fmean(p):.1f} % ({p[0]:.1f} to {p[-1]:.1f})" for n, p in found.items())


@check("c5", weight=1, needs=_NEEDS)
def _both_help(experiment: Experiment) -> Seen:
    """Partial channels and weights of edges, each with and without: with both at most a point under DARTS, no worse than
    random genotypes and twice the images in the same time; and in the paper's order, both, channels alone, DARTS."""
    arms = experiment.once(_searches)
    points = {name: _points(row) for name, row in arms.items()}
    both, images = points["PC and EN"], {n: statistics.fmean(a.images for a in row) for n, row in arms.items()}
    more = images["PC and EN"] / images["DARTS"]
    holds = both >= points["DARTS"] - 1 and both >= points["random"] and more >= 2
    ordered = both > points["PC"] > points["DARTS"]
    value = f"{_told(arms)}; {more:.1f}x the images of DARTS in the same time"
    return experiment.judge(value, holds and ordered, holds or both > points["DARTS"])


@check("c6", weight=1, needs=_NEEDS)
def _best_part(experiment: Experiment) -> Seen:
    """The part that searches best in equal time."""
    arms = experiment.once(_searches)
    rows = {"K=1": arms["EN"], "K=2": arms["K=2"], "K=4": arms["PC and EN"], "K=8": arms["K=8"]}
    best = max(rows, key=lambda name: _points(rows[name]))
    return experiment.judge(_told(rows), best == "K=4", _points(rows["K=4"]) > _points(rows["K=1"]))


@check("c7", weight=1, needs=_NEEDS)
def _stable(experiment: Experiment) -> Seen:
    """Between seeds: how far accuracies are apart, and how alike edges are ranked."""
    arms = experiment.once(_searches)
    spread, ranks = {}, {}
    for name in ("PC and EN", "PC", "DARTS"):
        spread[name] = 100 * statistics.pstdev(a.accuracy for a in arms[name])
        pairs = list(itertools.combinations(arms[name], 2))
        ranks[name] = statistics.fmean(kendall(a.edges, b.edges) for a, b in pairs) if pairs else 0.0
    value = "; ".join(f"{n}: deviation {spread[n]:.2f} pp, Kendall's tau of edges {ranks[n]:.2f}" for n in spread)
    wider = spread["PC and EN"] < spread["DARTS"]
    return experiment.judge(value, wider and ranks["PC and EN"] > ranks["PC"], wider)
