"""The contract of estimators: predictions that say how sure they are, formulas that measurements correct, ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hasten.cost.estimator import (
    AnalyticEstimator,
    FeatureRange,
    LogLine,
    PredictedValues,
    latency_estimator,
    target_of,
)
from hasten.errors import HastenError


def test_a_prediction_is_a_sequence() -> None:
    made = PredictedValues([3.0, 1.0, 2.0], [0.1, 0.2, math.nan], [True, False, True])
    assert list(made) == [3.0, 1.0, 2.0]
    assert made == [3.0, 1.0, 2.0]
    assert sorted(made) == [1.0, 2.0, 3.0]
    assert (len(made), made[-1], made[1:].inside.tolist()) == (3, 2.0, [False, True])
    assert np.asarray(made).dtype == np.float64
    assert made.at_most(2).tolist() == [3.2, 1.4, 2.0]
    assert np.isnan(PredictedValues([1.0]).deviation).all()
    assert PredictedValues([1.0]).inside.all()
    with pytest.raises(HastenError, match="for each design"):
        PredictedValues([1.0, 2.0], [0.1])


def test_a_formula_is_corrected_by_measurements() -> None:
    estimator = AnalyticEstimator(lambda n: {"time": n, "area": n * n}, {"time": "s", "area": "m^2"}, lambda n: n < 10)
    assert np.isnan(estimator.predict([2]).deviation[0]), "nothing was measured yet"
    fitted = estimator.fit({"a": {1: {"time": 3.0, "area": 5.0}, 2: {"time": 6.0}, 4: {"time": 12.3}}})
    assert fitted.predict([10], "time")[0] == pytest.approx(30, rel=0.02)
    assert fitted.predict([10], "area")[0] == pytest.approx(500)
    assert 0 < fitted.predict([10]).deviation[0] < 2
    assert fitted.predict([10, 2]).inside.tolist() == [False, True]
    other = fitted.adapt({3: 30.0})
    assert (other.predict([10])[0], other.predict([10], "area")[0]) == (pytest.approx(100), pytest.approx(500))
    with pytest.raises(HastenError, match="no target 'energy' is estimated: there are time, area"):
        estimator.predict([1], "energy")
    with pytest.raises(HastenError, match="a number from 0 on"):
        estimator.adapt({1: -1.0})
    with pytest.raises(HastenError, match="no target"):
        estimator.adapt({1: {"energy": 1.0}})
    with pytest.raises(HastenError, match="at least one measurement"):
        estimator.fit({"a": {}})


def test_any_function_of_a_latency_is_an_estimator() -> None:
    made = latency_estimator(lambda n: 1e-3 * n)
    assert target_of(made.targets, "") == "latency"
    assert list(made.adapt({2: 4e-3}).predict([3])) == [pytest.approx(6e-3)]


def test_a_line_through_logarithms() -> None:
    x = np.array([1.0, 2.0, 5.0, 9.0, 20.0, 0.0])
    line = LogLine.through(x, 3 * x**1.5)
    assert (math.exp(line.start), line.slope) == (pytest.approx(3), pytest.approx(1.5))
    assert line.spread == pytest.approx(0, abs=1e-9)
    assert line.apply(np.array([4.0, 0.0])).tolist() == [pytest.approx(24), 0.0]
    assert LogLine.through([1, 2], [10, 20]).slope == 1
    assert math.isnan(LogLine.through([0, 0], [1, 2]).spread), "pairs with a zero say nothing"
    # A line that falls is worse than a factor.
    assert LogLine.through(x, [9, 8, 7, 6, 5, 4]).slope == 1


def test_a_range_is_what_was_seen() -> None:
    seen = FeatureRange.of(np.array([[0.0, 5.0], [2.0, 3.0]]))
    assert seen.holds(np.array([[1.0, 4.0], [3.0, 4.0], [0.0, 3.0]])).tolist() == [True, False, True]
