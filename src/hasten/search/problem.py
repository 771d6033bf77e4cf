"""What is sought: a space, what makes one of its points better than another, and what it must satisfy."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from hasten.errors import HastenError
from hasten.search.parameter import Params
from hasten.search.space import Space


class Infeasible(Exception):
    """Raised by ``evaluate`` for a point that cannot be had at all; not tried again.

    Args:
        reason: why, in a line.
        distance: how far it is from a point that can be had, in steps of the space where those can be counted. Samplers
            learn from it which way to go; 1 says nothing.
    """

    def __init__(self, reason: str = "", distance: float = 1.0) -> None:
        super().__init__(reason)
        self.distance = float(distance) if 0 < distance < math.inf else 1.0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.distance)


@dataclass(frozen=True)
class Objective:
    """A number to make small, or large.

    Args:
        name: the key under which ``evaluate`` returns it.
        direction: ``minimize`` or ``maximize``.
        unit: for people.
    """

    name: str
    direction: Literal["minimize", "maximize"] = "minimize"
    unit: str = ""

    def __post_init__(self) -> None:
        if self.direction not in ("minimize", "maximize"):
            raise HastenError(f"objective {self.name!r}: direction must be minimize or maximize")

    @property
    def sign(self) -> int:
        """1 to minimize, -1 to maximize: times a value, smaller is better."""
        return 1 if self.direction == "minimize" else -1


@dataclass(frozen=True)
class Problem:
    """A space with objectives, constraints, and the function that scores a point.

    Args:
        name: for people, and the study's name.
        space: what may be chosen.
        objectives: at least one.
        evaluate: point -> ``{objective or constraint name: number, ...}``. Further entries are kept
            beside the trial as its details, and must be plain data (numbers, strings, lists, dicts).
            Raises `Infeasible` for a point that cannot be had.
        constraints: names whose values must be at most 0 for a point to be feasible.
        identity: what else the scores depend on: the model's fingerprint, the machine, the workload. A study
            file belongs to one identity.
        units: of constraints and details, for people; of a number within a detail under ``detail.number``.

    Raises:
        HastenError: no objective, or a name used twice.
    """

    name: str
    space: Space
    objectives: tuple[Objective, ...]
    evaluate: Callable[[Params], Mapping[str, Any]]
    constraints: tuple[str, ...] = ()
    identity: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [o.name for o in self.objectives] + list(self.constraints)
        if not self.objectives:
            raise HastenError(f"problem {self.name!r} has no objective: give at least one")
        if len(set(names)) < len(names):
            raise HastenError(f"problem {self.name!r}: an objective or constraint is named twice: rename one")

    def unit(self, name: str) -> str:
        """Of an objective, a constraint or a detail; "" for none."""
        return next((o.unit for o in self.objectives if o.name == name), self.units.get(name, ""))

    def title(self, name: str) -> str:
        """A name with its unit, as in ``area, mm^2``."""
        return f"{name}, {unit}" if (unit := self.unit(name)) else name

    @property
    def description(self) -> dict[str, str]:
        """What makes two problems the same, by aspect."""
        return {
            "name": self.name,
            "space": json.dumps(self.space.to_dict(), sort_keys=True),
            "objectives": json.dumps([[o.name, o.direction] for o in self.objectives]),
            "constraints": json.dumps(list(self.constraints)),
            **{str(k): str(v) for k, v in self.identity.items()},
        }

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of `description`."""
        return hashlib.sha256(json.dumps(self.description, sort_keys=True).encode()).hexdigest()[:32]

    def score(self, params: Params) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
        """Evaluates a point: values of the objectives, of the constraints, and the details.

        Raises:
            HastenError: ``evaluate`` left one out, or returned something that is not a number.
            Infeasible: from ``evaluate``.
        """
        result = self.evaluate(params)
        if not isinstance(result, Mapping):
            raise HastenError(f"problem {self.name!r}: evaluate must return a dict of numbers by name")
        rest = dict(result)

        def take(name: str, role: str) -> float:
            if name not in rest:
                raise HastenError(f"problem {self.name!r}: evaluate returned no {name!r}, which is {role}")
            try:
                value = float(rest.pop(name))
            except (TypeError, ValueError):
                raise HastenError(f"problem {self.name!r}: evaluate returned no number as {name!r}") from None
            if math.isnan(value):
                raise Infeasible(f"{name} is not a number")
            return value

        values = {o.name: take(o.name, "an objective") for o in self.objectives}
        limits = {name: take(name, "a constraint") for name in self.constraints}
        return values, limits, rest


@dataclass(frozen=True)
class Trial:
    """A point that was tried.

    Args:
        number: in the study, from 0.
        params: the point.
        values: objective name -> value; empty when it could not be had.
        constraints: constraint name -> value; feasible when none is above 0.
        details: what else ``evaluate`` returned.
        seconds: that its evaluation took.
        reason: why it could not be had, else "".
        sampler: who chose it.
        distance: how far it is from a point that can be had (`Infeasible`); 0 for one that can.
    """

    number: int
    params: Params
    values: dict[str, float]
    constraints: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""
    sampler: str = ""
    distance: float = 0.0

    @property
    def feasible(self) -> bool:
        return bool(self.values) and all(c <= 0 for c in self.constraints.values())


def pareto(trials: Sequence[Trial], objectives: Sequence[Objective]) -> list[Trial]:
    """The feasible trials that no other feasible trial dominates, in the order given.

    One dominates another when it is at least as good in every objective and better in one; equals stay both.
    """
    candidates = [t for t in trials if t.feasible and not any(math.isnan(v) for v in t.values.values())]
    if not candidates:
        return []
    points = np.array([[o.sign * t.values[o.name] for o in objectives] for t in candidates], dtype=np.float64)
    keep: list[int] = []
    front = np.empty((0, len(objectives)))
    # A point can only be dominated by one that sorts before it, and then by one on the front.
    for index in np.lexsort(points.T[::-1]):
        point = points[index]
        dominated = np.all(front <= point, axis=1) & np.any(front < point, axis=1)
        if not dominated.any():
            keep.append(int(index))
            front = np.vstack([front, point])
    return [candidates[i] for i in sorted(keep)]
