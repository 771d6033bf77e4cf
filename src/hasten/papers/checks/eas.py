"""Checks of EAS: Efficient Architecture Search by Network Transformation."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from typing import Any

import torch

from hasten.cost.growing import calibrate
from hasten.cost.preserving import difference
from hasten.models.vision.densenet import FIRST, PUBLISHED, DenseLayers, DenseNet
from hasten.models.vision.plain import PlainLayers, PlainNet
from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded
from hasten.processes import one_thread
from hasten.search.networks.growing_space import Grown, moved_at_random
from hasten.search.networks.members.plain import PlainSpace
from hasten.search.networks.searches.growing import GrowthSearch
from hasten.search.networks.searching import NetworkTrials
from hasten.tasks.images import Digits

_SIDE = 16  # pixels that the digits are brought to
# Networks and epochs of the paper's two stages and of the two networks that it grew from and ended with; networks and
# epochs of the search by reinforcement that it is beside (arXiv 1611.01578).
_EAS_EPOCHS = 450 * 20 + 150 * 20 + 100 + 300
_NAS_EPOCHS = 12_800 * 50
_GPU_DAYS = (800 * 28, 10)


def _space() -> PlainSpace:
    return PlainSpace.for_images(1, _SIDE, 10)


def _trials(experiment: Experiment, seed: int, steps: int) -> NetworkTrials[Any]:
    space = _space()
    # A cap on the sizes, so that no network takes many times as long as another.
    task = Digits(experiment.at(quick=(128, 64, 64), normal=(900, 597, 300)))
    return NetworkTrials(
        task,
        space,
        space.products,
        6e6,
        trainings=10**6,
        seed=seed,
        steps=experiment.at(quick=2, normal=steps),
        rate=3e-3,
    )


@check("c1", weight=60)
def _preserved(experiment: Experiment) -> Seen:
    """The paper's accuracy takes GPUs; its moves are run: 200 random sequences of nine on plain and dense networks change
    no output by 1e-6 in float64, and with the paper's noise a trained network loses less than a point."""
    rng, worst = random.Random(experiment.seed), torch.zeros((), dtype=torch.float64)
    count = experiment.at(quick=2, normal=200)
    starts: list[Any] = [
        PlainNet(PlainLayers((((3, 4),), ((3, 6),)), (8,)), 1, 10), DenseNet(DenseLayers(6, ((2, 2), (3,))), 1, 10)
    ]  # fmt: skip
    with one_thread():
        for i in range(count):
            experiment.tell("moves", i / count)
            start = starts[i % 2].double().train()
            torch.manual_seed(i)
            start(torch.randn(32, 1, 8, 8, dtype=torch.float64))  # statistics of its own
            x = torch.randn(8, 1, 8, 8, dtype=torch.float64)
            grown = moved_at_random(start.eval(), 9, rng)
            calibrate(grown, (x,))
            with torch.no_grad():
                worst = torch.maximum(worst, (start(x) - grown.eval()(x)).abs().max())  # NaN stays
        trials = _trials(experiment, experiment.seed, 150)
        search: Any = GrowthSearch(trials, learned=False, networks=experiment.at(quick=2, normal=8))
        first = search.start()
        grown_ones, _ = search.grow(first)
        images = trials.task.parts["validation"][0]  # type: ignore[attr-defined]
        images = torch.nn.functional.interpolate(images, (_SIDE, _SIDE), mode="bilinear", antialias=True)
        labels = trials.task.parts["validation"][1]  # type: ignore[attr-defined]
        before, *after = (
            float((n.eval()(images).argmax(1) == labels).float().mean())
            for n in (first.network, *(g.network for g in grown_ones))
        )
        apart = max(difference(first.network, g.network, (images,)) for g in grown_ones)
    drop = 100 * (before - statistics.mean(after))
    value = (
        f"{count} sequences of nine moves: at most {worst:.1e} apart in float64; with noise, {len(after)} networks grown"
        f" from one of {100 * before:.1f} %: {drop:+.2f} points lost in the mean, logits {apart:.2f} of the largest apart"
    )
    return experiment.judge(value, bool(worst < 1e-6) and drop < 1, bool(worst < 1e-6))


@check("c3", weight=2)
def _sizes(experiment: Experiment) -> Seen:
    """The dense start grown by 18 layers, at most 20 a block, is of depth 76: the paper's size lies among the sizes that
    such networks have with growths of 40 to 48, and DenseNet-BC's published sizes are exact."""
    start, wide = PUBLISHED["densenet-bc-40-40"], PUBLISHED["densenet-bc-190-40"]
    with torch.device("meta"):
        exact = sum(p.numel() for p in DenseNet(wide).parameters()) == wide.parameters(3, 10) == 25_624_430
    sizes = [
        DenseLayers(FIRST * growth, tuple((growth,) * (6 + more) for more in places)).parameters(3, 10) / 1e6
        for growth in (40, 48)
        for places in itertools.product(range(15), repeat=len(start.growths))
        if sum(places) == 18
    ]
    least, most = min(sizes), max(sizes)
    value = (
        f"depth 76 from the start L=40, k=40: {least:.1f} to {most:.1f} M weights (paper 10.7 M), {25.62 / most:.2f} to"
        f" {25.62 / least:.2f} times fewer than DenseNet-BC 190-40's {wide.parameters(3, 10) / 1e6:.2f} M (paper 2.39)"
    )
    return experiment.judge(value, exact and least <= 10.7 <= most, exact and most < 25.6)


@check("c5", weight=60, needs=120)
def _reused(experiment: Experiment) -> Seen:
    """Grown networks after three epochs from their transferred weights and from random ones, in pairs."""
    epoch = experiment.at(quick=1, normal=900 // 64)
    trials = _trials(experiment, experiment.seed, 20 * epoch)
    scratch = _trials(experiment, experiment.seed, 3 * epoch)
    search: Any = GrowthSearch(trials, learned=False, networks=experiment.at(quick=2, normal=12), further=3 / 20)
    with one_thread():
        grown, _ = search.grow(search.start())
        pairs = []
        for i, one in enumerate({g.arch: g for g in grown}.values()):
            experiment.tell("pairs", i / len(grown))
            pairs.append((search.score(one), scratch.score(one.arch)))
    better = sum(a > b for a, b in pairs) / len(pairs)
    gap = 100 * statistics.mean(a - b for a, b in pairs)
    value = (
        f"{len(pairs)} grown networks after three epochs: {100 * statistics.mean(a for a, _ in pairs):.1f} % from"
        f" transferred weights, {100 * statistics.mean(b for _, b in pairs):.1f} % from random ones; better in"
        f" {100 * better:.0f} % of pairs, by {gap:.1f} points in the mean"
    )
    return experiment.judge(value, better >= 0.8 and gap >= 2, gap > 0)


def _run(
    experiment_quick: bool, learned: bool, episodes: int, networks: int, stages: int, seed: int
) -> tuple[float, float, int]:
    """Mean accuracy of the networks of the last five episodes, the best one's, and trainings."""
    space = _space()
    task = Digits((128, 64, 64) if experiment_quick else (900, 597, 300))
    steps = 2 if experiment_quick else 10 * (900 // 64)  # of the first network; those that are grown train two epochs
    trials: Any = NetworkTrials(task, space, space.products, 6e6, trainings=10**6, seed=seed, steps=steps, rate=3e-3)
    search: Any = GrowthSearch(trials, learned=learned, networks=networks, further=0.2, stages=1)
    for episode in range(episodes):
        if stages > 1 and episode == episodes // 2:
            _, arch, network = trials.best
            search.grow_from(Grown(arch, network))
        with one_thread():
            search.episode()
    return statistics.mean(search.means[-5:]), trials.best[0], trials.trained


@shared(weight=180)
def _growths(experiment: Experiment) -> dict[str, list[tuple[float, float, int]]]:
    episodes, networks = experiment.at(quick=(1, 2), normal=(experiment.steps(10), 6), long=(60, 10))
    stages = experiment.at(quick=1, normal=1, long=2)
    plan = {
        f"{kind} {seed}": (experiment.quick, kind == "controller", episodes, networks, stages, seed)
        for seed in experiment.seeds(3)
        for kind in ("controller", "random")
    }
    found, _ = succeeded(experiment.arms(_run, plan), plan)
    return {kind: [row for name, row in found.items() if name.startswith(kind)] for kind in ("controller", "random")}


@check("c4", weight=1, needs=240)
def _learned(experiment: Experiment) -> Seen:
    """As many networks of as many moves: the last five episodes' mean accuracy, 0.3 points or more above random growth."""
    arms = experiment.once(_growths)
    means = {kind: [100 * mean for mean, _, _ in rows] for kind, rows in arms.items()}
    gain = statistics.mean(means["controller"]) - statistics.mean(means["random"])
    spread = max(statistics.pstdev(row) for row in means.values())
    value = "; ".join(
        f"{kind} {statistics.mean(means[kind]):.2f} % ({min(means[kind]):.2f} to {max(means[kind]):.2f}), best"
        f" {100 * max(best for _, best, _ in rows):.1f} %, {sum(n for *_, n in rows)} trainings"
        for kind, rows in arms.items()
    )
    within = " (within the spread of seeds)" if abs(gain) < spread else ""
    return experiment.judge(f"{value}: {gain:+.2f} points{within}", gain >= 0.3, gain > 0)


@check("c6", weight=1)
def _cost(experiment: Experiment) -> Seen:
    """In epochs of training, from the published counts of networks; the paper's ratio is of GPU-days."""
    ratio, days = _NAS_EPOCHS / _EAS_EPOCHS, _GPU_DAYS[0] / _GPU_DAYS[1]
    value = (
        f"{_EAS_EPOCHS:,} epochs beside {_NAS_EPOCHS:,}: {ratio:.0f}x fewer; GPU-days {days:.0f}x fewer, of which epochs"
        f" alone are {100 * math.log(ratio) / math.log(days):.0f} % (of the logarithm)"
    )
    return experiment.judge(value, ratio >= days, ratio > 1)
