"""Models of equal size."""

from __future__ import annotations

import pytest
from torch import nn

from hasten.errors import HastenError
from hasten.models.matching import matching_width, parameters_of


def square(width: int) -> nn.Module:
    return nn.Linear(width, width, bias=False)


def test_parameters_of_a_module_and_of_a_plan() -> None:
    assert parameters_of(nn.Linear(3, 4)) == 16
    assert parameters_of(lambda: nn.Linear(1_000_000, 1_000_000, bias=False)) == 10**12


def test_the_nearest_width_and_the_first_that_is_large_enough() -> None:
    assert matching_width(square, 50, range(1, 20)) == 7
    assert matching_width(square, 50, range(1, 20), at_least=True) == 8
    assert matching_width(square, 49, range(1, 20), at_least=True) == 7


def test_no_width_will_do() -> None:
    with pytest.raises(HastenError, match="50 parameters"):
        matching_width(square, 50, range(1, 5), at_least=True)
    with pytest.raises(HastenError, match="none of these widths"):
        matching_width(square, 50, ())
