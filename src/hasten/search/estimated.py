"""A search whose objectives and limits are estimated: any estimator of `hasten.cost.estimator` serves it."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from hasten.cost.estimator import Predicts, target_of
from hasten.errors import HastenError
from hasten.search.parameter import Params
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Space

A = TypeVar("A", bound=Hashable)


def estimated_problem(
    name: str,
    space: Space,
    design_of: Callable[[Params], A],
    estimators: Sequence[Predicts[A]],
    *,
    objectives: Sequence[str] = (),
    limits: Mapping[str, float] | None = None,
    deviations: float = 0.0,
    within: bool = True,
    scores: Sequence[Objective] = (),
    score: Callable[[A], Mapping[str, Any]] = lambda design: {},
    identity: Mapping[str, str] | None = None,
) -> Problem:
    """A problem of designs of which costs are estimated.

    Args:
        name, space: of the problem.
        design_of: point -> what the estimators take; it may raise `Infeasible`.
        estimators: each target is asked of the first that has it.
        objectives: targets that shall be small.
        limits: target -> the most that it may be.
        deviations: of the estimate that an objective's or a limit's value is taken above it: 0 for what is expected,
            2 for what is hardly exceeded.
        within: whether designs outside of what an estimator is valid for are refused; else they are marked.
        scores: further objectives, not estimated.
        score: design -> their values, and other details.
        identity: see `Problem`.

    Raises:
        HastenError: a target that nobody estimates, or no objective.

    >>> from hasten.cost.estimator import latency_estimator
    >>> from hasten.search import Study, integer
    >>> fast = latency_estimator(lambda n: 1e-3 * n)
    >>> problem = estimated_problem("toy", Space([integer("n", 1, 9)]), lambda p: p["n"], [fast],
    ...     limits={"latency": 5e-3}, scores=[Objective("n", "maximize")], score=lambda n: {"n": n})
    >>> Study().run(problem, trials=9).pareto()[0].params
    {'n': 5}
    """
    limits = dict(limits or {})
    if not math.isfinite(deviations):
        raise HastenError("an estimate is taken a finite number of deviations above its value")
    asked: dict[str, Predicts[A]] = {}
    for target in dict.fromkeys((*objectives, *limits)):
        known = [e for e in estimators if target in e.targets]
        if not known:
            everything = {name: unit for e in estimators for name, unit in e.targets.items()}
            target_of(everything, target) if everything else None
            raise HastenError("a search by estimates has at least one estimator")
        asked[target] = known[0]

    def evaluate(params: Params) -> Mapping[str, Any]:
        design = design_of(params)
        found: dict[str, Any] = dict(score(design))
        outside = []
        for target, estimator in asked.items():
            made = estimator.predict([design], target)
            value = float(made.at_most(deviations)[0])
            if not made.inside[0]:
                outside.append(target)
            if target in objectives:
                found[target] = value
            if target in limits:
                found[_over(target)] = value - limits[target]
                found.setdefault(target, value)
            if math.isfinite(made.deviation[0]):
                found[f"{target} deviation"] = float(made.deviation[0])
        if outside and within:
            raise Infeasible(f"outside of what {', '.join(outside)} was learned from")
        found["outside"] = outside
        return found

    units = {target: estimator.targets[target] for target, estimator in asked.items()}
    return Problem(
        name,
        space,
        (*(Objective(target, unit=units[target]) for target in objectives), *scores),
        evaluate,
        constraints=tuple(map(_over, limits)),
        identity={**(identity or {}), "limits": repr(limits), "deviations": repr(deviations)},
        units={**units, **{f"{t} deviation": unit for t, unit in units.items()}},
    )


def _over(target: str) -> str:
    return f"{target} over its limit"


__all__ = ["estimated_problem"]
