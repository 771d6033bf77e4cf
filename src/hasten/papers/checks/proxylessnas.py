"""Checks of ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware."""

from __future__ import annotations

import math
import random
import statistics
import time
from functools import partial
from typing import NamedTuple

import torch

from hasten.cost.latency.correlation import spearman
from hasten.cost.latency.expected import ExpectedLatency
from hasten.cost.measuring import alternating, kept_for_backward
from hasten.models.matching import parameters_of
from hasten.models.vision.backbone import modelled_seconds, published_figures
from hasten.models.vision.proxyless import PUBLISHED, BlockChoices, ProxylessConfig, ProxylessNet, ProxylessSuperNet
from hasten.models.vision.pyramid_tree import PyramidTreeNet
from hasten.nn.mixed_edge import Paths
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.processes import one_thread
from hasten.search.networks.members.proxyless import ProxylessSpace
from hasten.search.networks.path_search import search_paths
from hasten.search.networks.retraining import at_size, retrained
from hasten.search.networks.searches.sampled import random_networks
from hasten.search.networks.specialize import measured, whole_seconds
from hasten.tasks.images import Digits, FashionMNIST

_SIZES = {
    "proxylessnas-mobile": (4_080_512, 320.43), "proxylessnas-gpu": (7_119_848, 465.26),
    "proxylessnas-cpu": (4_361_648, 439.24), "proxylessnas-mobile-1.4": (6_857_568, 580.88),
}  # fmt: skip
_NEEDS, _SPACE = 300.0, ProxylessSpace.for_images(1, 16, 10)
_BATCH = 16  # images that latency is of: of one the calls of so small layers cost more than what they compute
_TARGETS = {"tight": 0.6, "loose": 0.9}  # of the largest network's latency
_SEARCHES = 0.7  # of an arm's time; the rest is for the network that was found


@check("c1", weight=3)
def _memory(experiment: Experiment) -> Seen:
    """Bytes kept for a step of the logits, twelve places of six or seven candidates, batch 64."""
    depth, batch = experiment.at(quick=(2, 4), normal=(12, 64))
    config = ProxylessConfig((16,), (depth,), (1,), 16, 16, 64, 1, resolution=8, channels=1, classes=10)
    torch.manual_seed(experiment.seed)
    supernet, images = ProxylessSuperNet(config), torch.randn(batch, 1, 8, 8)
    kept: dict[Paths, int] = {}
    for rule in ("one", "full_v2", "two", "full", "mixture"):
        for edge in supernet.mixed:
            edge.draw(rule, torch.Generator().manual_seed(0))
            edge.active = 2  # the same path in all
            edge.pair = None if edge.pair is None else (2, 3)
        kept[rule] = kept_for_backward(lambda: supernet(images).sum().backward(), supernet.parameters())
    ratios = {rule: size / kept["one"] for rule, size in kept.items()}
    value = f"{kept['one'] / 1e6:.1f} MB kept for one path; times as much: "
    value += ", ".join(f"{r:.2f} {rule}" for rule, r in list(ratios.items())[1:])
    return experiment.judge(value, ratios["full_v2"] <= 1.25 and ratios["mixture"] >= 4, ratios["full_v2"] < 2)


@check("c2", weight=4)
def _gpu_net(experiment: Experiment) -> Seen:
    """Against MobileNetV2, which is of the same blocks: 3x3 with expansion 6 everywhere."""
    config = ProxylessConfig((24, 32, 64, 96, 160, 320), (2, 3, 4, 3, 3, 1))
    with torch.device("meta"):
        mobilenet = ProxylessNet(config, (config.blocks.index((3, 6)),) * len(config.places())).eval()
        network = ProxylessNet.named("proxylessnas-gpu").eval()
    batch, image = experiment.at(quick=(1, 64), normal=(8, 224))
    one, other = (modelled_seconds(n, (3, image, image), "v100", batch) for n in (network, mobilenet))
    value = (
        f"V100 modelled, batch {batch}: {1e3 * one:.2f} ms, MobileNetV2 ({parameters_of(mobilenet):,} "
        f"parameters) {1e3 * other:.2f} ms: {one / other:.2f}x; published 0.84x; accuracy not checked"
    )
    return experiment.judge(value, one < other)


@check("c3", weight=2)
def _sizes(experiment: Experiment) -> Seen:
    """Parameters and millions of products of every published network; accuracy is not checked."""
    with torch.device("meta"):
        found = {name: published_figures(ProxylessNet.named(name), (3, 224, 224)) for name in PUBLISHED}
    value = ", ".join(f"{name[13:]} {p:,} / {m:.1f} M" for name, (p, m) in found.items())
    return experiment.judge(value, found == _SIZES)


@check("c4", weight=1)
def _steps(experiment: Experiment) -> Seen:
    """160 epochs of one path, in 120 of them a step of the logits for five of the weights, against MnasNet's 8,000
    networks of five epochs. Forward counts 1, backward 2, by inputs alone 1; a step of the logits runs a path forward
    and back and the other candidates forward."""
    ours, theirs = 160 + 120 / 5 * (1 + statistics.mean(ProxylessConfig().choices())) / 3, 8000 * 5
    value = f"{ours:.0f} epochs' work against {theirs:,}: {theirs / ours:.0f}x less; published 200x"
    return experiment.judge(value, 100 <= theirs / ours <= 400, theirs > ours)


@check("c5", weight=2)
def _small_images(experiment: Experiment) -> Seen:
    """The size of the network for CIFAR-10, against AmoebaNet-B's 34.9 M parameters; accuracy is not checked."""
    with torch.device("meta"):
        size, products = found = published_figures(PyramidTreeNet.named("proxylessnas-cifar"), (3, 32, 32))
    value = f"{size:,} parameters / {products:.2f} M products, {34.9e6 / size:.2f} times fewer; published 6 times"
    return experiment.judge(value, found == (5_731_530, 1213.16) and round(34.9e6 / size) == 6)


@check("c6", weight=6)
def _own_devices(experiment: Experiment) -> Seen:
    """On models of the three kinds of device; this processor is measured on one thread beside them."""
    names, size = ("gpu", "cpu", "mobile"), (3, *experiment.at(quick=(64, 64), normal=(224, 224)))
    devices = {"gpu": ("v100", 8), "cpu": ("xeon-8468", 1), "mobile": ("snapdragon-8-gen3", 1)}
    with torch.device("meta"):
        nets = {n: ProxylessNet.named(f"proxylessnas-{n}").eval() for n in names}
    rows = {d: {n: modelled_seconds(nets[n], size, where, b) for n in names} for d, (where, b) in devices.items()}
    real, pictures = {n: ProxylessNet.named(f"proxylessnas-{n}").eval() for n in names}, torch.randn(1, *size)
    with one_thread(), torch.inference_mode():
        times = alternating({n: partial(m, pictures) for n, m in real.items()}, experiment.at(quick=1, normal=15))
    rows["here, measured"] = {n: min(t) for n, t in times.items()}
    value = "; ".join(f"{d}: " + ", ".join(f"{n} {1e3 * s:.2f} ms" for n, s in row.items()) for d, row in rows.items())
    own = sum(min(rows[d], key=lambda n: rows[d][n]) == d for d in names)
    return experiment.judge(value, own == len(names), own >= 2)


@shared(weight=10)
def _table(experiment: Experiment) -> ExpectedLatency:
    """Seconds of every block on 16 images, measured here, all in turn."""
    table, counts = measured(_SPACE, experiment.at(quick=1, normal=15), _BATCH), _SPACE.config.choices()
    with one_thread():
        table.fill(tuple(min(o, n - 1) for n in counts) for o in range(max(counts)))
        return ExpectedLatency.of_choices(table, counts)


@check("c7", weight=10)
def _additive(experiment: Experiment) -> Seen:
    """Sums of the table against networks measured as a whole."""
    table, rng = experiment.once(_table), random.Random(experiment.seed)
    archs = [_SPACE.sample(rng) for _ in range(experiment.at(quick=4, normal=60))]
    sums = [table.of(a) for a in archs]
    truth = [whole_seconds(_SPACE, a, experiment.at(quick=1, normal=9), _BATCH) for a in archs]
    rank = spearman(sums, truth)
    error = statistics.fmean((s - t) ** 2 for s, t in zip(sums, truth, strict=True)) ** 0.5 / statistics.fmean(truth)
    value = f"{len(archs)} networks of {1e3 * min(truth):.2f} to {1e3 * max(truth):.2f} ms: rank correlation {rank:.3f}"
    value += f", root of squared error {100 * error:.1f} % of the mean"
    return experiment.judge(value, rank >= 0.9 and error <= 0.15, rank >= 0.9)


class _Arm(NamedTuple):
    """A network, its accuracy on test images, and with the super-network's weights on validation images."""

    arch: BlockChoices
    accuracy: float
    shared: float


def _searched(kind: str, table: ExpectedLatency, limit: float, seconds: float, seed: int, quick: bool) -> _Arm:
    """Searches in a share of the seconds of processor time, and trains what was found in the rest."""
    task = at_size(Digits((64, 32, 32)) if quick else FashionMNIST((6000, 2000, 2000)), 16)
    spent, clock, score = _SEARCHES * seconds, time.process_time, 0.0
    torch.manual_seed(seed)
    if kind == "random":
        arch = random_networks(task, _SPACE, table.of, limit, seconds=spent, seed=seed, clock=clock).arch
    else:
        found = search_paths(_SPACE.super_network(), task, table, limit, seconds=spent, seed=seed, clock=clock)
        arch, score = found.arch, found.score
    return _Arm(arch, retrained(task, _SPACE, arch, seconds - spent, seed=seed, clock=clock), score)


@shared(weight=100)
def _searches(experiment: Experiment) -> dict[str, list[_Arm]]:
    """Of each arm, at equal processor time: sampled paths and random networks for both targets, and without one."""
    experiment.require(_NEEDS)
    table, seeds = experiment.once(_table), experiment.seeds(3, long=10)
    limits = {name: share * table.slowest for name, share in _TARGETS.items()}
    # Arms that run side by side: two cores have half the budget's seconds each.
    seconds = experiment.at(quick=0.3, normal=experiment.budget * 1.7 / (5 * len(seeds)))
    plan = {f"paths {name}": ("paths", limit) for name, limit in limits.items()}
    plan |= {f"random {name}": ("random", limit) for name, limit in limits.items()} | {"free": ("paths", math.inf)}
    arms = {
        f"{n} {s}": (kind, table, lim, seconds, s, experiment.quick) for n, (kind, lim) in plan.items() for s in seeds
    }
    found, _ = succeeded(experiment.arms(_searched, arms), arms)
    return {name: [found[f"{name} {s}"] for s in seeds] for name in plan}


@check("c8", weight=10, needs=_NEEDS)
def _latency_in_the_loss(experiment: Experiment) -> Seen:
    """For each target the networks' measured latency within 12 %, accuracy at least random search's less half a point at
    equal time, the tight ones faster than the loose; and those faster than what is found without latency in the loss."""
    arms, table = experiment.once(_searches), experiment.once(_table)
    again = partial(whole_seconds, runs=experiment.at(quick=1, normal=15), batch=_BATCH)
    seconds = {name: [again(_SPACE, a.arch) for a in row] for name, row in arms.items()}
    points = {name: 100 * statistics.fmean(arm.accuracy for arm in row) for name, row in arms.items()}
    value = "; ".join(
        f"{name} {points[name]:.1f} % (with shared weights {100 * statistics.fmean(a.shared for a in row):.1f} %), "
        f"{1e3 * statistics.fmean(seconds[name]):.3f} ms"
        for name, row in arms.items()
    )
    off = max(abs(t / (_TARGETS[n] * table.slowest) - 1) for n in _TARGETS for t in seconds[f"paths {n}"])
    good = min(points[f"paths {n}"] - points[f"random {n}"] for n in _TARGETS) >= -0.5
    tight, loose, free = (statistics.fmean(seconds[n]) for n in ("paths tight", "paths loose", "free"))
    value += f"; targets {_TARGETS} of {1e3 * table.slowest:.3f} ms, at most {100 * off:.0f} % off"
    return experiment.judge(value, off <= 0.12 and good and tight < loose, tight < loose <= free)
