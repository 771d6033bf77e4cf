"""Checks of Once-for-All: Train One Network and Specialize it for Efficient Deployment."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hasten.papers.experiment import Experiment, Seen, check, shared, succeeded

if TYPE_CHECKING:
    from hasten.models.vision.once_for_all import Architecture
    from hasten.search.networks.specialize import AccuracyPredictor
    from hasten.spaces.once_for_all import Corners

# Seconds of the budget from which the trainings are long enough to judge. Shrinking's six phases need time more than its
# average needs repeating: a long run has three seeds. One is half a point up or down, which is as much as is claimed: of
# the two trainings' order it says the direction at most.
_NEEDS = 300.0
# Training images: in three minutes of a thread each is seen about 120 times, in the paper's schedule 500 times. Of all
# 55,000 each would be seen 9 times, where every sub-network lacks steps, whatever the order of the phases.
_IMAGES = 4000
_SECONDS = 180.0  # processor time of a training
# V100 hours of the baselines for each device, and of the paper's own schedule (table 1).
_MNASNET, _PROXYLESS, _PAPER, _PREDICTOR = 40_000, 200 + 300, 1200, 40


def _seeds(experiment: Experiment) -> list[int]:
    return experiment.seeds(1, long=3)


def _source(experiment: Experiment) -> str:
    return experiment.at(quick="digits", normal="fashion-mnist")


@shared(weight=360)
def _arms(experiment: Experiment) -> dict[str, list[Corners]]:
    """``shrinking``, ``joint`` with the same teacher, and the small and large corners alone in an eighth of the time
    each: an arm for a seed, in equal processor time, the teacher's training and passes included."""
    from hasten.spaces.once_for_all import trained_corners
    from hasten.train.shrinking import JOINT_TAUGHT, SHRINKING

    experiment.require(_NEEDS)
    seeds, source = _seeds(experiment), _source(experiment)
    seconds = experiment.at(quick=0.06, normal=_SECONDS * experiment.scale / len(seeds))
    # Those trained alone are two arms of half the length, so that two cores end together.
    kinds = {
        "shrinking": (SHRINKING, slice(8)),
        "joint": (JOINT_TAUGHT, slice(8)),
        "small": (None, slice(4)),
        "large": (None, slice(4, 8)),
    }
    arms = {f"{kind} {s}": (*one, seconds, s, _IMAGES, source) for s in seeds for kind, one in kinds.items()}
    experiment.tell("training by shrinking, jointly, alone")
    found, _ = succeeded(experiment.arms(trained_corners, arms), needed=arms)
    return {kind: [found[f"{kind} {s}"] for s in seeds] for kind in kinds}


def _corner_means(experiment: Experiment) -> dict[str, list[float]]:
    """Of ``shrinking``, ``joint`` and ``alone``: percent of each corner."""
    means = {
        kind: [sum(c) / len(arms) for c in zip(*(a.accuracies for a in arms), strict=True)]
        for kind, arms in experiment.once(_arms).items()
    }
    return {**means, "alone": means["small"] + means["large"]}


@shared(weight=60)
def _sampled(experiment: Experiment) -> tuple[dict[Architecture, float], dict[Architecture, float]]:
    """Different sub-networks of the first shrunk network and their accuracies: to learn from, and to be judged by."""
    from hasten.spaces.once_for_all import SMALL, part_accuracies

    state = experiment.once(_arms)["shrinking"][0].state
    rng, count = random.Random(experiment.seed), experiment.at(quick=8, normal=experiment.steps(300, least=20))
    archs: list[Architecture] = []
    while len(archs) < count:
        if (drawn := SMALL.sample(rng)) not in archs:
            archs.append(drawn)
    pieces = 4
    arms = {str(i): (state, archs[i::pieces], _source(experiment)) for i in range(pieces)}
    experiment.tell("measuring sub-networks")
    found, _ = succeeded(experiment.arms(part_accuracies, arms), needed=arms)
    known = {a: value for i in range(pieces) for a, value in zip(archs[i::pieces], found[str(i)], strict=True)}
    cut = round(0.7 * count)
    return {a: known[a] for a in archs[:cut]}, {a: known[a] for a in archs[cut:]}


@shared(weight=1)
def _predictor(experiment: Experiment) -> AccuracyPredictor[Architecture]:
    """Learned from 70 % of the measured sub-networks."""
    from hasten.search.networks.specialize import AccuracyPredictor
    from hasten.spaces.once_for_all import SMALL

    known, _ = experiment.once(_sampled)
    steps = experiment.at(quick=5, normal=600)
    return AccuracyPredictor(SMALL, seed=experiment.seed).fit(list(known), list(known.values()), steps=steps)


@check("c1", needs=_NEEDS)
def _small_one(experiment: Experiment) -> Seen:
    """Multiply-accumulates of the paper's network; accuracy of its small sister against joint training."""
    import torch

    from hasten.models.vision.once_for_all import OFAConfig, SubNetwork, macs
    from hasten.spaces.once_for_all import SMALL
    from hasten.train.shrinking import corners

    config = OFAConfig()
    with torch.device("meta"):
        count = macs(SubNetwork(config, config.architecture(3, 3, 4)), 224)
    at = corners(SMALL).index(SMALL.architecture(SMALL.kernels[0], SMALL.expands[0], SMALL.depths[-1]))
    means = _corner_means(experiment)
    gain = means["shrinking"][at] - means["joint"][at]
    exact, several = round(count / 1e6) == 226, len(_seeds(experiment)) > 1
    value = (
        f"{count / 1e6:.2f} M MACs; the deepest, narrowest, small-kernel sub-network on {_IMAGES} images of {_source(experiment)}: "
        f"{means['shrinking'][at]:.2f} %, jointly with the same teacher {means['joint'][at]:.2f} % ({gain:+.2f} points)"
    )
    return experiment.judge(value, several and exact and gain >= 74.8 - 71.5, exact and gain > 0)


@check("c2", needs=_NEEDS)
def _shrinking(experiment: Experiment) -> Seen:
    """All eight corners above joint training, by half a point on average and one on the smallest.

    Joint training has the same teacher and goes on from its weights: they differ in the order and the sorting alone.
    """
    means = _corner_means(experiment)
    gains = [a - b for a, b in zip(means["shrinking"], means["joint"], strict=True)]
    mean, count = sum(gains) / 8, len(_seeds(experiment))
    value = (
        f"{mean:+.2f} points on average ({sum(means['shrinking']) / 8:.2f} against {sum(means['joint']) / 8:.2f} %), "
        f"{gains[0]:+.2f} on the smallest, {min(gains):+.2f} to {max(gains):+.2f}; "
        f"{count} seed{'s' * (count > 1)}, equal processor time, the same teacher"
    )
    holds = count > 1 and min(gains) > 0 and mean >= 0.5 and gains[0] >= 1
    return experiment.judge(value, holds, mean > 0)


@check("c3", weight=0.1)
def _count(experiment: Experiment) -> Seen:
    from hasten.models.vision.once_for_all import OFAConfig

    count = OFAConfig().count
    return experiment.judge(f"(9^2 + 9^3 + 9^4)^5 = {count:.4g} at each resolution", count > 1e19 and count == 7371**5)


@check("c6", weight=3)
def _hours(experiment: Experiment) -> Seen:
    """The schedule's V100 hours by the analytic model, a training pass as three forward ones, beside the published
    hours of searches that are paid for each device."""
    from hasten.hardware import load_device
    from hasten.models.vision.once_for_all import OFAConfig
    from hasten.spaces.once_for_all import SMALL
    from hasten.train.shrinking_hours import schedule_hours

    config = experiment.at(quick=SMALL, normal=OFAConfig())
    hours = sum(schedule_hours(load_device("v100"), config, seed=experiment.seed).values()) + _PREDICTOR
    # From how many devices on it is cheaper.
    from_mnasnet, from_proxyless = (1 + int(hours / each) for each in (_MNASNET, _PROXYLESS))
    value = (
        f"{hours:.0f} V100 hours for any number of devices ({_PAPER + _PREDICTOR} published), less than MnasNet from "
        f"{from_mnasnet} device on, than ProxylessNAS from {from_proxyless}; {40 * _PROXYLESS / hours:.0f}x less for 40"
    )
    near = 0.5 <= hours / (_PAPER + _PREDICTOR) <= 2
    return experiment.judge(value, near and from_mnasnet == 1 and from_proxyless <= 3, hours < 40 * _PROXYLESS)


@check("c7", needs=_NEEDS)
def _predicted(experiment: Experiment) -> Seen:
    """Judged on the sub-networks that it has not learned from."""
    from hasten.cost.latency.correlation import kendall

    known, rest = experiment.once(_sampled)
    found, truth = experiment.once(_predictor).predict(list(rest)), list(rest.values())
    error = (sum((a - b) ** 2 for a, b in zip(found, truth, strict=True)) / len(truth)) ** 0.5
    order = kendall(found, truth)
    value = (
        f"RMSE {error:.2f} points, Kendall's tau {order:.2f}, {len(known)} sub-networks learned and {len(truth)} judged, "
        f"{min(truth):.1f} to {max(truth):.1f} %"
    )
    return experiment.judge(value, error <= 0.21 and order >= 0.7, order >= 0.7)


@check("c8", weight=20, needs=_NEEDS)
def _searched(experiment: Experiment) -> Seen:
    """Corners within 1.5 points of training alone; and under three latency limits the pick is as good as the best of
    50 random sub-networks less 0.3 points, and the whole network, measured, at most 10 % over the limit."""
    from hasten.search.networks.members.once_for_all import OnceForAllSpace
    from hasten.search.networks.specialize import picks_within
    from hasten.spaces.once_for_all import SMALL, part_accuracies

    means = _corner_means(experiment)
    lead = sum(a - b for a, b in zip(means["shrinking"], means["alone"], strict=True)) / 8
    _, rest = experiment.once(_sampled)
    population, generations = experiment.at(quick=(8, 2), normal=(100, 50))
    options = {"population": population, "generations": generations, "seed": experiment.seed}
    # Only sub-networks that the predictor has not seen stand for random search.
    score = experiment.once(_predictor).predict
    picks = picks_within(OnceForAllSpace(SMALL), score, rest, (0.6, 0.75, 0.9), **options)
    state = experiment.once(_arms)["shrinking"][0].state
    assert state is not None
    found = part_accuracies(state, [p.arch for p in picks], _source(experiment))
    gains = [a - p.random for a, p in zip(found, picks, strict=True)]
    value = (
        f"{lead:+.2f} points over the corners trained alone for an eighth of the time each; within "
        + ", ".join(f"{1e3 * p.limit:.2f}" for p in picks)
        + " ms: "
        + ", ".join(f"{g:+.2f}" for g in gains)
        + " points over the best of 50 random, whole networks "
        + ", ".join(f"{p.over:+.0%}" for p in picks)
        + " from the limit"
    )
    # Shares of 5,000 images are whole fiftieths of a point: rounding takes away the difference's error alone.
    holds = lead >= -1.5 and round(min(gains), 2) >= -0.3 and max(p.over for p in picks) <= 0.1
    return experiment.judge(value, holds, lead >= -1.5)
