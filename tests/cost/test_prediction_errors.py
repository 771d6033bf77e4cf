"""Errors of predictions: bounds, and what a constant is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hasten.cost.prediction_errors import prediction_errors
from hasten.errors import HastenError


def test_what_is_exact_has_no_error() -> None:
    truth = np.array([0.0, 1.0, 50.0, 1e6])
    found = prediction_errors(truth, truth)
    assert (found.r2, found.rmse, found.smape, found.within) == (1, 0, 0, 0)


def test_smape_is_bounded_and_a_constant_explains_nothing() -> None:
    random = np.random.default_rng(0)
    truth = random.uniform(0, 1000, 200)
    for predicted in (np.zeros(200), np.full(200, 1e9), random.uniform(0, 1000, 200)):
        assert 0 <= prediction_errors(predicted, truth).smape <= 200
    for constant in (0.0, truth.mean(), 500.0, 900.0):
        assert prediction_errors(np.full(200, constant), truth).r2 <= 1e-12
    assert math.isnan(prediction_errors([1, 2], [3, 3]).r2)


def test_percentiles_are_of_the_signed_error() -> None:
    found = prediction_errors([0, 1, 4, 9], [1, 1, 1, 1])
    assert found.relative == (-212.5, -75.0, 12.5)
    assert found.within == 212.5
    with pytest.raises(HastenError):
        prediction_errors([1], [1, 2])
