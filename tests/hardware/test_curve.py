from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hasten.hardware import Curve


def curve(**changes: object) -> Curve:
    fields: dict[str, object] = {
        "operation": "mm",
        "dtype": "fp32",
        "axes": ("m", "n"),
        "grid": ((1, 100), (10, 1000)),
        "seconds": (1e-6, 1e-4, 1e-5, 1e-3),
        "source": "measured",
    }
    return Curve(**{**fields, **changes})


def test_meets_every_measured_point():
    known = curve()
    assert known.at(1, 10) == pytest.approx(1e-6)
    assert known.at(1, 1000) == pytest.approx(1e-4)
    assert known.at(100, 10) == pytest.approx(1e-5)
    assert known.at(100, 1000) == pytest.approx(1e-3)


def test_a_power_law_is_met_between_the_points():
    # 1e-6 at n=10 and 1e-4 at n=1000: proportional to n.
    assert curve().at(1, 100) == pytest.approx(1e-5)
    # Half-way in the logarithm of m, from 1e-6 to 1e-5.
    assert curve().at(10, 10) == pytest.approx(math.sqrt(1e-6 * 1e-5))


def test_above_the_grid_time_grows_with_volume_and_below_it_stays():
    assert curve().at(300, 2000) == pytest.approx(6e-3)
    assert curve().at(0, 1) == pytest.approx(1e-6)


def test_times_without_a_launch_shrink_below_the_grid():
    assert curve().at(1, 5, shrinks=True) == pytest.approx(0.5e-6)
    assert curve().at(50, 10, shrinks=True) == curve().at(50, 10)


@given(st.floats(1, 1e5), st.floats(1, 1e5), st.floats(1, 10))
def test_never_falls_along_an_axis_where_the_measurements_do_not(m: float, n: float, factor: float):
    known = curve()
    assert known.at(m * factor, n) >= known.at(m, n) * (1 - 1e-9)
    assert known.at(m, n * factor) >= known.at(m, n) * (1 - 1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": ("m",)}, "one list of sizes an axis"),
        ({"grid": ((100, 1), (10, 1000))}, "ascending"),
        ({"grid": ((0, 1), (10, 1000))}, "ascending"),
        ({"seconds": (1e-6, 1e-4, 1e-5)}, "one time a point"),
        ({"seconds": (1e-6, 1e-4, 1e-5, float("nan"))}, "positive finite"),
        ({"seconds": (1e-6, 1e-4, 1e-5, 0.0)}, "positive finite"),
        ({"source": " "}, "no source"),
    ],
)
def test_refuses_what_is_no_curve(changes: dict[str, object], message: str):
    with pytest.raises(ValidationError, match=message):
        curve(**changes)
