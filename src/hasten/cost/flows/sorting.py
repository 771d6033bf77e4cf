"""What a classifier rejects: its scores' distributions, and the threshold that passes one event in so many."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten.errors import HastenError
from hasten.hardware.chips.flow_graph import (
    Classifier,
    GaussianScores,
    SampledScores,
    TriggerPaths,
    TriggerSum,
    TurnOn,
)

Values = NDArray[np.float64]
_erf: Callable[[Any], Any] = np.frompyfunc(math.erf, 1, 1)
# Halvings of an interval of scores, after which it is as narrow as numbers are.
_HALVINGS = 70


class Sorted(NamedTuple):
    """What a threshold makes of events.

    Args:
        rejected, passed: shares of irrelevant and of relevant events, (2,) each; they sum to 1.
        threshold: of the score; -inf where all pass.
    """

    rejected: Values
    passed: Values
    threshold: float

    @property
    def matrix(self) -> Values:
        """(2, 2): rejected and passed, of irrelevant and relevant events."""
        return np.stack([self.rejected, self.passed])


class ScoreModel(Protocol):
    """Distributions of scores, those of relevant events moved up by a boost."""

    def at_most(self, score: float, boost: float) -> Values:
        """Shares of irrelevant and of relevant events with no higher score, (2,)."""

    def below(self, score: float, boost: float) -> Values:
        """Shares with a lower score, (2,)."""

    def span(self, boost: float) -> tuple[float, float]:
        """Scores between which nearly all lie."""

    def next(self, score: float, boost: float) -> float:
        """The lowest score above this one that an event can have."""


@dataclass(frozen=True)
class _Normal:
    skill: float
    deviation: float

    def at_most(self, score: float, boost: float) -> Values:
        moved = (score - self.skill - boost) / self.deviation
        return np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in (score, moved)])

    below = at_most

    def span(self, boost: float) -> tuple[float, float]:
        middle, reach = self.skill + boost, 40 * self.deviation
        return min(-40.0, middle - reach), max(40.0, middle + reach)

    def next(self, score: float, boost: float) -> float:
        return score


class EmpiricalScores:
    """Scores that were seen.

    Args:
        irrelevant, relevant: of events, (count,) each.

    Raises:
        HastenError: none of a kind, or a score that is no number.
    """

    def __init__(self, irrelevant: ArrayLike, relevant: ArrayLike) -> None:
        self.irrelevant, self.relevant = (np.sort(np.asarray(s, float).ravel()) for s in (irrelevant, relevant))
        for kind, scores in (("irrelevant", self.irrelevant), ("relevant", self.relevant)):
            if not len(scores) or not np.isfinite(scores).all():
                raise HastenError(f"scores of {kind} events: give at least one, and finite numbers only")

    def at_most(self, score: float, boost: float) -> Values:
        return self._shares(score, boost, "right")

    def below(self, score: float, boost: float) -> Values:
        return self._shares(score, boost, "left")

    def _shares(self, score: float, boost: float, side: Any) -> Values:
        return np.array(
            [
                np.searchsorted(self.irrelevant, score, side) / len(self.irrelevant),
                np.searchsorted(self.relevant + boost if boost else self.relevant, score, side) / len(self.relevant),
            ]
        )

    def span(self, boost: float) -> tuple[float, float]:
        low = min(self.irrelevant[0], self.relevant[0] + boost)
        return float(low) - 1.0, float(max(self.irrelevant[-1], self.relevant[-1] + boost))

    def next(self, score: float, boost: float) -> float:
        found = []
        for scores in (self.irrelevant, self.relevant + boost):
            place = int(np.searchsorted(scores, score, "right"))
            found += [float(scores[place])] if place < len(scores) else []
        return min(found, default=score)


def sort_out(model: ScoreModel, events: Sequence[float] | Values, reduction: float, boost: float = 0.0) -> Sorted:
    """What is rejected where exactly one event in ``reduction`` passes.

    The paper's program minimises how far the rate is off, which is unsure where distributions have steps; here the
    threshold is the exact quantile. Of events that score the threshold itself, so many pass at random that the rate is
    met.

    Args:
        model: of scores.
        events: irrelevant and relevant ones, or rates of them.
        reduction: from 1.
        boost: added to the scores of relevant events.

    Raises:
        HastenError: a reduction below 1, or no events.
    """
    irrelevant, relevant = map(float, events)
    total = irrelevant + relevant
    if not 1 <= reduction < math.inf:
        raise HastenError(f"a stage passes one event in {reduction:g}: a reduction is a number from 1")
    if not 0 < total < math.inf or min(irrelevant, relevant) < 0:
        raise HastenError("nothing is sorted without events: give a rate above 0")
    weights, wanted = np.array([irrelevant, relevant]) / total, 1 - 1 / reduction
    if wanted <= 0:
        return Sorted(np.zeros(2), np.ones(2), -math.inf)
    low, high = model.span(boost)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if weights @ model.at_most(middle, boost) < wanted:
            low = middle
        else:
            high = middle
    # Where scores were seen, the threshold is one of them: the first at which enough lie below or at it.
    threshold = model.next(low, boost)
    before, upto = model.below(threshold, boost), model.at_most(threshold, boost)
    first, last = float(weights @ before), float(weights @ upto)
    part = min(1.0, max(0.0, (wanted - first) / (last - first))) if last > first else 1.0
    rejected = before + part * (upto - before)
    return Sorted(rejected, 1 - rejected, threshold)


def score_model(classifier: Classifier, seed: int = 0) -> ScoreModel:
    """The distributions of a classifier's scores; triggers are simulated with a seed."""
    if isinstance(classifier, GaussianScores):
        return _Normal(classifier.skill, classifier.deviation)
    if isinstance(classifier, SampledScores):
        return EmpiricalScores(classifier.irrelevant, classifier.relevant)
    return _simulated(classifier, seed)


@lru_cache(maxsize=16)
def _simulated(classifier: TriggerSum | TriggerPaths, seed: int) -> EmpiricalScores:
    generator = np.random.default_rng(seed)
    if isinstance(classifier, TriggerSum):
        return _summed(classifier, generator)
    return _paths(classifier, generator)


def _summed(classifier: TriggerSum, generator: np.random.Generator) -> EmpiricalScores:
    triggers, count = classifier.triggers, classifier.samples
    decays = np.array([decay(t) for t in triggers])
    seen = -np.expm1(-decays * np.array([t.threshold for t in triggers]))  # share of momenta below the threshold
    shares = np.array([o.share for o in classifier.outcomes])
    fired = np.array([[t.name in o.fired for t in triggers] for o in classifier.outcomes])
    drawn = fired[generator.choice(len(shares), count, p=shares / shares.sum())]
    low, high = generator.random((2, count, len(triggers)))

    def scores(quantiles: Values) -> Values:
        momenta = -np.log1p(-quantiles) / decays
        return np.sum([efficiency(t, momenta[:, i]) for i, t in enumerate(triggers)], axis=0)

    return EmpiricalScores(scores(low * seen), scores(np.where(drawn, seen + high * (1 - seen), high * seen)))


def _paths(classifier: TriggerPaths, generator: np.random.Generator) -> EmpiricalScores:
    shares = np.array([p.share for p in classifier.paths])
    made = []
    for relevant in (False, True):
        chosen = generator.choice(len(shares), classifier.samples, p=shares / shares.sum())
        part, scores = generator.random(classifier.samples), np.empty(classifier.samples)
        for number, path in enumerate(classifier.paths):
            own = part[chosen == number] * -math.expm1(-decay(path) * path.threshold)
            momenta = -np.log(own if relevant else 1 - own) / decay(path)
            inside = efficiency(path, momenta)
            scores[chosen == number] = np.where(
                momenta > path.highest, 1.0, np.where(momenta < path.lowest, 0.0, inside)
            )
        made.append(scores)
    return EmpiricalScores(*made)


def efficiency(trigger: TurnOn, momenta: ArrayLike) -> Values:
    """How often a trigger fires, by the momenta."""
    if trigger.points:
        return np.interp(np.asarray(momenta, float), *np.array(trigger.points).T)
    reach = (np.asarray(momenta, float) - trigger.midpoint) / (math.sqrt(2) * trigger.width)
    return np.asarray(trigger.plateau / 2 * (1 + _erf(reach).astype(float)))


@lru_cache(maxsize=64)
def decay(trigger: TurnOn) -> float:
    """The decay of momenta: given, or the greatest with which the trigger fires at its rate.

    Where no decay makes it fire so often, the one at which it fires most.
    """
    if trigger.decay is not None:
        return trigger.decay
    assert trigger.rate is not None
    momenta = np.linspace(trigger.lowest, trigger.highest, 4_001)
    fires = efficiency(trigger, momenta) * (momenta[1] - momenta[0])
    fires[[0, -1]] /= 2  # the trapezoidal rule

    def fired(decays: ArrayLike) -> Values:
        return np.array([float(d) * np.exp(-float(d) * momenta) @ fires for d in np.atleast_1d(np.asarray(decays))])

    tried = np.geomspace(trigger.most_decay / 2000, trigger.most_decay, 120)
    rates = fired(tried)
    enough = np.flatnonzero(rates >= trigger.rate)
    if not len(enough):
        best = int(rates.argmax())
        fine = np.linspace(tried[max(best - 1, 0)], tried[min(best + 1, len(tried) - 1)], 101)
        return float(fine[fired(fine).argmax()])
    low, high = tried[enough[-1]], tried[min(enough[-1] + 1, len(tried) - 1)]
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if fired(middle)[0] >= trigger.rate else (low, middle)
    return float(low)
