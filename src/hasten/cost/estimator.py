"""The one contract of whatever estimates a cost: `fit` on what is known, `adapt` to something new, `predict`.

Analytic models, predictors of latency that were learned over devices (`hasten.cost.latency.predictor`), and surrogates
of synthesised circuits (`hasten.train.resource_surrogates`) all follow it, so that any of them serves a search as an
objective or as a limit (`hasten.search.estimated`). A prediction says how sure it is, and whether the design lies
within what the estimator has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hasten.errors import HastenError

A = TypeVar("A", bound=Hashable)
A_contra = TypeVar("A_contra", contravariant=True)
V_contra = TypeVar("V_contra", contravariant=True)
Values = NDArray[np.float64]


class PredictedValues(Sequence[float]):
    """One target of several designs, in their order: a sequence of numbers that knows how sure it is of each.

    Args:
        values: (count,) in the target's unit.
        deviation: (count,) one standard deviation in the same unit, NaN where it is not known; None for nowhere.
        inside: (count,) whether each design lies within what the estimator is valid for; None for all.

    >>> made = PredictedValues([3.0, 4.0], [0.5, 1.0], [True, False])
    >>> made[1], made.deviation[1], bool(made.inside[1])
    (4.0, 1.0, False)
    """

    def __init__(self, values: ArrayLike, deviation: ArrayLike | None = None, inside: ArrayLike | None = None) -> None:
        self.values: Values = np.asarray(values, dtype=np.float64)
        count = len(self.values)
        self.deviation: Values = np.asarray(np.full(count, np.nan) if deviation is None else deviation, np.float64)
        self.inside: NDArray[np.bool_] = np.asarray(np.ones(count) if inside is None else inside, np.bool_)
        if not self.values.shape == self.deviation.shape == self.inside.shape == (count,):
            raise HastenError("a prediction has a value, a deviation and a word on its range for each design")

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, at: int) -> float: ...
    @overload
    def __getitem__(self, at: slice) -> PredictedValues: ...
    def __getitem__(self, at: int | slice) -> float | PredictedValues:
        if isinstance(at, slice):
            return PredictedValues(self.values[at], self.deviation[at], self.inside[at])
        return float(self.values[at])

    def __iter__(self) -> Iterator[float]:
        return iter(self.values.tolist())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.values, dtype=dtype, copy=copy is not False)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"PredictedValues({self.values.tolist()})"

    def at_most(self, deviations: float) -> Values:
        """(count,) values that are exceeded only by more than so many deviations; the values where none is known."""
        found: Values = self.values + deviations * np.nan_to_num(self.deviation, nan=0.0)
        return found


class Predicts(Protocol[A_contra]):
    """What answers for designs on one device."""

    @property
    def targets(self) -> Mapping[str, str]:
        """What is predicted, with units; the first is meant where none is named."""

    def predict(self, designs: Sequence[A_contra], target: str = "", /) -> PredictedValues:
        """One target of designs.

        Raises:
            HastenError: there is no such target.
        """


class Estimator(Protocol[A, V_contra]):
    """What learns a cost, of designs ``A`` whose measurements are ``V`` (a number, or numbers by target)."""

    def fit(self, devices: Mapping[str, Mapping[A, V_contra]], /) -> Estimator[A, V_contra]:
        """Learns from what is known: device -> design -> measurement.

        Raises:
            HastenError: there is too little, or a measurement that cannot be.
        """

    def adapt(self, measurements: Mapping[A, V_contra], /) -> Predicts[A]:
        """What answers for one device, known by a few measurements.

        Raises:
            HastenError: as `fit`.
        """


def target_of(targets: Mapping[str, str], name: str) -> str:
    """The target that is meant: the first where none is named.

    Raises:
        HastenError: there is no such target.
    """
    if name and name not in targets:
        raise HastenError(f"no target {name!r} is estimated: there are {', '.join(targets)}")
    return name or next(iter(targets))


@dataclass(frozen=True, eq=False)
class FeatureRange:
    """A box of what was seen.

    Args:
        low, high: (features,).
    """

    low: Values
    high: Values

    @classmethod
    def of(cls, features: Values) -> FeatureRange:
        """The least box around (count, features)."""
        return cls(features.min(0), features.max(0))

    def holds(self, features: Values) -> NDArray[np.bool_]:
        """(count,) whether each is within it."""
        slack = 1e-6 * (1 + np.abs(self.high - self.low))
        within = (features >= self.low - slack) & (features <= self.high + slack)
        return np.asarray(within.all(1), np.bool_)


@dataclass(frozen=True)
class LogLine:
    """What corrects a prediction of something positive: ``exp(start) * value ** slope``, and what is left of error.

    Args:
        start, slope: of the line through logarithms.
        spread: standard deviation of measured over corrected, as a logarithm; NaN where it is not known.
    """

    start: float = 0.0
    slope: float = 1.0
    spread: float = math.nan

    @classmethod
    def through(cls, predicted: ArrayLike, measured: ArrayLike, lines_from: int = 5) -> LogLine:
        """The line through pairs: a factor for few of them, a slope too from ``lines_from`` on where it helps.

        Pairs with a zero say nothing.
        """
        p, m = np.asarray(predicted, np.float64), np.asarray(measured, np.float64)
        use = (p > 0) & (m > 0)
        if not use.any():
            return cls()
        x, y = np.log(p[use]), np.log(m[use])
        start, slope = float(np.median(y - x)) if len(x) > 2 else float((y - x).mean()), 1.0
        if len(x) >= lines_from and float(np.ptp(x)) > 0.1:
            slope, start = (float(v) for v in np.polyfit(x, y, 1))
            if not 0.2 < slope < 5:  # worse than none
                start, slope = float(np.median(y - x)), 1.0
        left = y - start - slope * x
        return cls(start, slope, float(np.sqrt((left**2).sum() / max(1, len(x) - 1))) if len(x) > 1 else math.nan)

    def apply(self, values: Values) -> Values:
        """Corrected values; what is not positive stays."""
        safe = np.where(values > 0, values, 1.0)
        found: Values = np.where(values > 0, math.exp(self.start) * safe**self.slope, values)
        return found


def measured_rows(
    measurements: Mapping[A, float | Mapping[str, float]], targets: Mapping[str, str]
) -> list[tuple[A, Mapping[str, float]]]:
    """Designs with what was measured by target; a number alone is the first target's.

    Raises:
        HastenError: a measurement is of no target, or no number from 0 on.
    """
    found = []
    for design, given in measurements.items():
        row = given if isinstance(given, Mapping) else {next(iter(targets)): given}
        for name, value in row.items():
            target_of(targets, name)
            if not math.isfinite(value) or value < 0:
                raise HastenError(f"{name} of {str(design)[:60]} is measured as {value}: it is a number from 0 on")
        found.append((design, row))
    return found


def measured_lines(predicts: Predicts[A], rows: Sequence[tuple[A, Mapping[str, float]]]) -> dict[str, LogLine]:
    """A `LogLine` for every target of which there are measurements."""
    found = {}
    for name in predicts.targets:
        known = [(design, row[name]) for design, row in rows if name in row]
        if known:
            said = predicts.predict([design for design, _ in known], name).values
            found[name] = LogLine.through(said, [value for _, value in known])
    return found


@dataclass(frozen=True, eq=False)
class AnalyticEstimator(Generic[A]):
    """A formula as an estimator: what it says, corrected by a factor that measurements give.

    Args:
        formula: design -> target -> value in the target's unit.
        units: target -> unit.
        valid: whether the formula is meant for a design.
        lines: of each target; none before anything was measured, and the deviation is then not known.

    >>> made = AnalyticEstimator(lambda n: {"latency": 1e-3 * n}, {"latency": "s"})
    >>> list(made.predict([1, 2]))
    [0.001, 0.002]
    >>> [round(v, 6) for v in made.adapt({1: {"latency": 2e-3}, 3: {"latency": 6e-3}}).predict([2])]
    [0.004]
    """

    formula: Callable[[A], Mapping[str, float]]
    units: Mapping[str, str]
    valid: Callable[[A], bool] = lambda design: True
    lines: Mapping[str, LogLine] = field(default_factory=dict)

    @property
    def targets(self) -> Mapping[str, str]:
        return self.units

    def fit(self, devices: Mapping[str, Mapping[A, float | Mapping[str, float]]]) -> AnalyticEstimator[A]:
        """With a factor for every target, through all measurements of all devices."""
        rows = [row for table in devices.values() for row in measured_rows(table, self.units)]
        if not rows:
            raise HastenError("an estimator is fitted to at least one measurement")
        return replace(self, lines=measured_lines(replace(self, lines={}), rows))

    def adapt(self, measurements: Mapping[A, float | Mapping[str, float]]) -> AnalyticEstimator[A]:
        """With a factor for every target that was measured on this device."""
        found = measured_lines(replace(self, lines={}), measured_rows(measurements, self.units))
        return replace(self, lines={**self.lines, **found})

    def predict(self, designs: Sequence[A], target: str = "") -> PredictedValues:
        name = target_of(self.units, target)
        line = self.lines.get(name, LogLine())
        values = line.apply(np.array([float(self.formula(d)[name]) for d in designs], dtype=np.float64))
        return PredictedValues(values, line.spread * values, [self.valid(d) for d in designs])


def latency_estimator(seconds: Callable[[A], float]) -> AnalyticEstimator[A]:
    """Any function that says a latency, such as a table of parts or `hasten.cost.estimate`, as an estimator of it.

    Args:
        seconds: of a design.
    """
    return AnalyticEstimator(lambda design: {"latency": seconds(design)}, {"latency": "s"})


__all__ = [
    "AnalyticEstimator", "Estimator", "FeatureRange", "LogLine", "PredictedValues", "Predicts", "latency_estimator",
    "measured_lines", "measured_rows", "target_of",
]  # fmt: skip
