"""How a latency predictor is meta-learned: the paper's settings (HELP, arXiv 2106.08630), and quicker ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from hasten.errors import HastenError

LEARNERS = ("HELP", "Meta-SGD", "MAML")
"""Learners that `quick_settings` knows."""
EPISODES = {"vectors": 150, "graphs": 75}
"""Episodes of `quick_settings` for networks given as vectors and as graphs, whose steps take thrice as long."""


@dataclass(frozen=True)
class MetaSettings:
    """How the predictor is meta-learned; the defaults are the paper's, other than where said.

    Args:
        hidden: width L of the layers.
        embed: whether the network sees the device's embedding.
        modulate: whether the embedding modulates the initial weights.
        learn_rates: whether every weight has its own learned inner rate (Meta-SGD), or the fixed one (MAML).
        second_order: whether the outer gradient passes through the inner gradients.
        steps: inner gradient steps, in training and in use.
        inner_rate: the first, or fixed, inner rate.
        scale: of the modulation.
        kl: weight of the modulation's divergence from a standard normal.
        episodes, devices, support, query: outer steps; devices of one; measured and asked networks of a device.
        support_from: ``references`` (the ten networks that make the embedding are the measurements: ten in all) or
            ``random`` (others: twenty in all).
        rate: of Adam, the outer optimizer.
        cosine: whether that rate falls to 0 along a cosine, in the warm steps and again in the episodes; the paper's
            stays.
        samples: of the modulation that a prediction averages.
        every: episodes between looks at the validation devices; the best state stays.
        trim: share of the fastest and of the slowest networks that training leaves out.
        mix: share of an episode's devices that are two in one, latencies added at random weights; not in the paper.
            Sums of two devices' latencies are a device too, and there are few devices to learn from.
        warm: outer steps before the episodes that leave the inner loop and the modulation out, which take a fraction of
            the time; not in the paper.
    """

    hidden: int = 100
    embed: bool = True
    modulate: bool = True
    learn_rates: bool = True
    second_order: bool = True
    steps: int = 2
    inner_rate: float = 1e-3
    scale: float = 0.01
    kl: float = 0.1
    episodes: int = 2000
    devices: int = 8
    support: int = 10
    query: int = 200
    support_from: Literal["references", "random"] = "references"
    rate: float = 1e-4
    cosine: bool = False
    samples: int = 10
    every: int = 50
    trim: float = 0.1
    mix: float = 0.0
    warm: int = 0

    def __post_init__(self) -> None:
        if min(self.hidden, self.episodes, self.devices, self.support, self.query, self.samples, self.every) < 1:
            raise HastenError("every count of the predictor's settings must be at least 1")
        if min(self.steps, self.warm) < 0 or not 0 <= self.trim < 0.5 or not 0 <= self.mix <= 1:
            raise HastenError("steps and warm are not negative, trim is a share under a half, and mix one up to 1")

    def share_of_rate(self, step: int) -> float:
        """Share of ``rate`` at an outer step, warm ones first, along the cosines."""
        done = step / self.warm if step < self.warm else (step - self.warm) / self.episodes
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def meta_sgd(self) -> MetaSettings:
        """The same learner without embedding and modulation (Li et al., arXiv 1707.09835)."""
        return replace(self, embed=False, modulate=False)

    def maml(self) -> MetaSettings:
        """And with one fixed inner rate (Finn et al., arXiv 1703.03400)."""
        return replace(self, embed=False, modulate=False, learn_rates=False)


def quick_settings(learner: str, episodes: int, hidden: int = 64) -> MetaSettings:
    """Each learner's best of a sweep, judged by devices for validation, at no less time than HELP's.

    Narrower layers, higher rates, fewer episodes, a warm start for HELP and mixed devices are ours, for minutes in
    place of hours. The other two cannot tell devices apart before they adapt: a warm start makes them worse.

    Args:
        learner: one of `LEARNERS`.
        episodes: of HELP; the others have twelve times as many.
        hidden: width of the layers.

    Raises:
        HastenError: an unknown learner.
    """
    if learner not in LEARNERS:
        raise HastenError(f"no learner {learner!r}: take one of {', '.join(LEARNERS)}")
    common = MetaSettings(
        hidden=hidden, inner_rate=1e-2, episodes=episodes, query=64, rate=3e-3, cosine=True,
        every=max(1, episodes // 8), mix=0.5, warm=40 * episodes,
    )  # fmt: skip
    if learner == "HELP":
        return common
    other = replace(common, warm=0, episodes=12 * episodes, every=max(1, 12 * episodes // 8), inner_rate=0.1)
    return other.meta_sgd() if learner == "Meta-SGD" else other.maml()
