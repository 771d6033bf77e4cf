"""Growing a SimpleNet by its own principles: one more layer or one wider group at a time, whichever pays best.

The principles are SimpleNet's (arXiv 1608.06037; its authors number them in SimpNet's, 1802.06205); the procedure is
ours. Steps keep what a network computes, as the moves of EAS' searches do (`hasten.search.networks.searches.growing`),
but nothing is drawn: all are tried.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.cost.growing import DEEPER_NOISE, WIDER_NOISE, calibrate
from hasten.errors import HastenError
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.design_rules import design_rules, image_of
from hasten.models.vision.simplenet import SimpleNet, SimpleNetConfig
from hasten.processes import one_thread
from hasten.search.networks.searching import Progress, silent

GROWTH_RULES = ("gradual growth", "homogeneous groups", "late pooling", "balance")
"""Rules of `design_rules` that a network keeps while it grows."""
_MILLION = 1e6


@dataclass(frozen=True)
class GrowthStep:
    """A step that was taken.

    Args:
        move: ``deepen`` or ``widen``.
        group: of `SimpleNetConfig.groups`, before the step.
        config: of the network behind the step.
        products: its multiply-accumulates for one image.
        score: its score.
        gain: rise of the score for a million more multiply-accumulates.
    """

    move: str
    group: int
    config: SimpleNetConfig
    products: int
    score: float
    gain: float


@dataclass(frozen=True)
class GrownSimpleNet:
    """What a SimpleNet has grown into.

    Args:
        network: in evaluation mode, trained as far as its score says.
        score: its score.
        products: its multiply-accumulates for one image.
        steps: in order; none where there was nothing to take.
        ended: why there is no further one.
    """

    network: SimpleNet = field(repr=False)
    score: float
    products: int
    steps: tuple[GrowthStep, ...]
    ended: str


@dataclass(frozen=True)
class _Candidate:
    """A step that may be taken, and the network behind it."""

    move: str
    group: int
    config: SimpleNetConfig
    products: int

    def made_of(self, network: SimpleNet, noise: bool, seed: int) -> SimpleNet:
        if self.move == "deepen":
            return network.deepened(self.group, noise=noise * DEEPER_NOISE, seed=seed)
        return network.widened(self.group, noise=noise * WIDER_NOISE, seed=seed)


def grow(
    network: SimpleNet, score: Callable[[SimpleNet], float], examples: Tensor, *, gain: float, products: float,
    rules: Collection[str] = GROWTH_RULES, noise: bool = True, seed: int = 0, progress: Progress = silent,
) -> GrownSimpleNet:  # fmt: skip
    """Grows a network by the step that gains most for its multiply-accumulates, as long as one gains enough.

    A step puts one more convolution at the end of a group, or makes all of a group half as wide again. What would break
    a rule or take too many products is not tried. Weights are kept: a network computes behind a step what it did
    before, but for noise that lets copies part.

    Each round scores the network as it is and every network that is a step away, at most twice as many as there are
    groups; all are trained from the same weights, so that a gain is a step's and not that of a longer training.

    Args:
        network: to begin with, trained or not; stays as it is.
        score: trains a network that it is given in training mode, in place, and says how good it is on held-out data:
            higher is better. Where it trains ``SimpleNet(network.config)`` instead, from random weights, those of the
            result have not been trained.
        examples: real images (batch, channels, height, width), 64 in EAS: inserted normalizations get the statistics of
            what they read of these, and products are those of an image of their size.
        gain: the least rise of the score for a million more multiply-accumulates.
        products: the most multiply-accumulates for one image.
        rules: of `hasten.models.vision.design_rules`, which every network keeps.
        noise: whether new weights have that of `hasten.cost.growing`.
        seed: of copies and noise.
        progress: told each step, and the share of the products that are allowed.

    Raises:
        HastenError: a network to begin with that breaks a rule or takes too many products, a rule that there is not,
            examples that are no images of its channels, a gain below 0, or a network to grow whose score is no number.
    """
    image = image_of((examples,))
    if image[0] != network.config.channels:
        raise HastenError(f"this network is for {network.config.channels} channels, the examples have {image[0]}")
    if not gain >= 0:
        raise HastenError(f"the least gain for a million multiply-accumulates is from 0: got {gain:g}")
    used, broken = _judged(network.config, image, rules)
    if broken:
        raise HastenError(f"the network to begin with breaks a rule that it is to keep: {', '.join(broken)}")
    if not used <= products:
        raise HastenError(f"the network to begin with takes {used:,} multiply-accumulates of {products:,.0f} allowed")

    present, value, steps, tried = copy.deepcopy(network), math.nan, list[GrowthStep](), 0
    while True:
        candidates, ended = _candidates(present.config, image, rules, products)
        if not candidates:
            value = value if steps else _scored(score, present)
            break
        unchanged = copy.deepcopy(present)
        value = _scored(score, unchanged)
        best: tuple[float, float, _Candidate, SimpleNet] | None = None
        for candidate in candidates:
            with one_thread():  # what is beside the trainings is small operations
                grown = candidate.made_of(present, noise, seed + tried)
                calibrate(grown, (examples,))
            found, tried = float(score(grown.train())), tried + 1
            rise = (found - value) / (candidate.products - used) * _MILLION
            if math.isfinite(rise) and (best is None or rise > best[0]):
                best = (rise, found, candidate, grown)
        if best is None or best[0] < gain:
            most = "nothing that is a number" if best is None else f"{best[0]:.3g}"
            ended = f"the best step gains {most} for a million multiply-accumulates, {gain:g} is asked for"
            present = unchanged
            break
        rise, value, candidate, present = best
        used = candidate.products
        steps.append(GrowthStep(candidate.move, candidate.group, candidate.config, used, value, rise))
        progress(f"{candidate.move} group {candidate.group}: score {value:.4g}", used / products)
    return GrownSimpleNet(present.eval(), value, used, tuple(steps), ended)


def _judged(config: SimpleNetConfig, image: tuple[int, int, int], rules: Collection[str]) -> tuple[int, list[str]]:
    """Multiply-accumulates of a network for an image, and which of some rules it breaks."""
    with torch.device("meta"):
        network = SimpleNet(config)
    found = {f.rule: f.holds for f in design_rules(network, image)}
    if unknown := [rule for rule in rules if rule not in found]:
        raise HastenError(f"there is no rule {unknown[0]!r}: rules are {', '.join(found)}")
    return multiply_accumulates(network, image), [rule for rule in rules if not found[rule]]


def _candidates(
    config: SimpleNetConfig, image: tuple[int, int, int], rules: Collection[str], products: float
) -> tuple[list[_Candidate], str]:
    """Steps from a network that keep the rules within the limit, and why there are none where there are none."""
    found, broken, least = list[_Candidate](), set[str](), math.inf
    for group in range(len(config.groups)):
        for move, larger in (("deepen", config.deepened(group)), ("widen", config.widened(group))):
            if larger.layers == config.layers:
                continue  # so narrow that its scale rounds the difference away
            size, breaks = _judged(larger, image, rules)
            broken |= set(breaks)
            if not breaks:
                least = min(least, size)
                if size <= products:
                    found.append(_Candidate(move, group, larger, size))
    if math.isfinite(least):
        return found, f"the next step takes {least:,.0f} multiply-accumulates of {products:,.0f} allowed"
    return found, f"every step breaks a rule: {', '.join(rule for rule in rules if rule in broken)}"


def _scored(score: Callable[[SimpleNet], float], network: SimpleNet) -> float:
    value = float(score(network.train()))
    if not math.isfinite(value):
        raise HastenError(f"the score of the network to grow is {value}: give a number, higher where it is better")
    return value
