"""How a study's trials are written in Optuna's tables, and read from them."""

from __future__ import annotations

import json
from typing import Any

from optuna.trial import TrialState

from hasten.errors import HastenError
from hasten.search.problem import Problem, Trial

# Attributes of hasten in Optuna's tables; a user's details stand beside them without the prefix.
MARK = "hasten:"
FINGERPRINT, DESCRIPTION = MARK + "fingerprint", MARK + "problem"
SECONDS, REASON, REPEAT, BROKEN_OFF = (MARK + n for n in ("seconds", "reason", "repeat_of", "broken_off"))
SAMPLER, ELAPSED = MARK + "sampler", MARK + "elapsed"
CONSTRAINTS, INFEASIBLE = "constraints", "0"
"""Where Optuna keeps a list of constraints, and what it calls the first: how far a point is from one that can be had.

Optuna's samplers look at no trial that failed; from a broken constraint they learn. Those with a name of their own
(`Trial.set_constraint`) its dashboard does not read up to 0.21, so that each trial has this one in a list.
"""


def read_trials(study: Any, problem: Problem) -> list[Trial]:
    """The different points that the study has tried, in order."""
    found: list[Trial] = []
    names = {problem.title(name): name for name in problem.units}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        attributes = trial.user_attrs
        reason = attributes.get(REASON, "")
        if REPEAT in attributes or (trial.state == TrialState.FAIL and not reason):
            continue
        limits = {names.get(key, key): limit for key, limit in trial.constraints.items()}
        values = {} if reason else dict(zip((o.name for o in problem.objectives), trial.values or ()))
        found.append(
            Trial(
                trial.number,
                problem.space.validate(problem.space.from_trial(trial.params)),
                values,
                {} if reason else {name: limits[name] for name in problem.constraints if name in limits},
                {names.get(k, k): v for k, v in attributes.items() if not k.startswith(MARK)},
                attributes.get(SECONDS, 0.0),
                reason,
                attributes.get(SAMPLER, ""),
                limits.get(INFEASIBLE, 1.0) if reason else 0.0,
            )
        )
    return found


def tell_infeasible(study: Any, trial: Any, tried: Trial) -> None:
    """Writes how far a trial's point is from a feasible one; as far below 0 where it is one, as its constraints are."""
    over = tried.distance if tried.reason else max(tried.constraints.values(), default=-1.0)
    study._storage.set_trial_system_attr(trial._trial_id, CONSTRAINTS, [over])


def tells_infeasible(study: Any) -> bool:
    """Whether its trials have the constraint `INFEASIBLE`: one of before it was kept goes on as it began.

    Optuna's samplers refuse trials of which some have a constraint that others have not.
    """
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return all(INFEASIBLE in trial.constraints for trial in done)


def read_chosen(study: Any) -> dict[str, list[int]]:
    """Who chose which of the points tried, each once, in order."""
    chosen: dict[str, dict[int, None]] = {}
    for trial in study.get_trials(deepcopy=False):
        if SAMPLER in trial.user_attrs and trial.state.is_finished():
            numbers = chosen.setdefault(trial.user_attrs[SAMPLER], {})
            numbers[trial.user_attrs.get(REPEAT, trial.number)] = None
    return {name: list(numbers) for name, numbers in chosen.items()}


def attributes(problem: Problem, details: dict[str, Any]) -> dict[str, Any]:
    """Details as attributes of a trial, each beside its unit; numbers within one also by themselves, so that the
    dashboard can sort by them."""

    def within(name: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {k: v for key, one in value.items() for k, v in within(f"{name}.{key}", one).items()}
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {MARK + problem.title(name): value} if number else {}

    found: dict[str, Any] = {}
    for name, detail in details.items():
        found[problem.title(name)] = detail
        if isinstance(detail, dict):
            found |= within(name, detail)
    return found


def plain(details: dict[str, Any]) -> dict[str, Any]:
    """Details as the storage will give them back."""

    def number(value: Any) -> Any:
        if hasattr(value, "tolist"):  # NumPy and torch scalars and arrays
            return value.tolist()
        raise TypeError(f"{type(value).__name__} is not plain data")

    try:
        plain: dict[str, Any] = json.loads(json.dumps({str(k): v for k, v in details.items()}, default=number))
    except (TypeError, ValueError) as error:
        raise HastenError(f"evaluate returned details that cannot be stored: {error}") from None
    return plain
