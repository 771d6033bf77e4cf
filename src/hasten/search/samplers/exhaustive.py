"""Every point of a small space, each once, in order, as an Optuna sampler."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from optuna.trial import TrialState

from hasten.errors import HastenError
from hasten.search.parameter import Params
from hasten.search.samplers import register
from hasten.search.space import Space
from hasten.search.whole_points import WholePointSampler

EXHAUSTIVE_LIMIT = 10_000


class ExhaustiveSampler(WholePointSampler):
    """Hands out the points of a `Space` that the study does not have yet; starts over when it has them all.

    Unlike Optuna's brute-force sampler it knows the whole space, conditions included, before the first trial,
    so a trial costs one step and not a rebuilt tree.
    """

    def __init__(self, space: Space) -> None:
        super().__init__(space)
        self._points: Iterator[Params] = iter(())
        self._given: set[str] = set()

    def choose(self, study: Any, trial: Any) -> Params:
        if not self._given:  # what an earlier run has done, or another worker is doing
            states = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING)
            for known in study.get_trials(deepcopy=False, states=states):
                params = known.params or known.system_attrs.get("fixed_params", {})
                with suppress(HastenError):  # somebody fixed some of the parameters only
                    self._given.add(self.space.key(self.space.from_trial(params)))
        for _ in range(2):
            for params in self._points:
                if (key := self.space.key(params)) not in self._given:
                    self._given.add(key)
                    return dict(params)
            self._points = self.space.enumerate()
        self._given.clear()
        return dict(next(self.space.enumerate()))


@register("exhaustive", "every point once, in order: spaces of at most 10,000 points")
def exhaustive(space: Space, seed: int | None, limit: int = EXHAUSTIVE_LIMIT) -> ExhaustiveSampler:
    if space.size > limit:
        how_many = "infinitely many" if space.size == math.inf else f"{int(space.size):,}"
        raise HastenError(
            f"the space has {how_many} points and exhaustive search stops at {limit:,}:"
            " use the sampler tpe or nsga2, or a smaller space"
        )
    return ExhaustiveSampler(space)
