"""Parameters: exact grids, both ends of a range, and numbers that come back as they were."""

import math
import random

import pytest

from hasten.errors import HastenError
from hasten.search import categorical, integer, real


def test_grid_is_exact_in_decimal():
    assert list(real("x", 0.0, 0.3, step=0.1).values()) == [0.0, 0.1, 0.2, 0.3]
    assert real("x", 0.0, 0.35, step=0.1).high == 0.3
    assert real("x", 0.0, 0.3, step=0.1).canonical(0.1 + 0.2) == 0.3


def test_log_integers_reach_both_ends():
    rng = random.Random(0)
    drawn = {integer("n", 1, 4, log=True).sample(rng) for _ in range(300)}
    assert drawn == {1, 2, 3, 4}


def test_whole_numbers_are_exact_or_refused():
    """Studies hold doubles: beyond 2**53 another number would come back (case: a 64-bit seed)."""
    largest = integer("n", 2**53 - 1000, 2**53)
    assert largest.canonical(2**53 - 1) == 2**53 - 1
    for outside in (2**53 + 1, 2**53 - 1001):
        with pytest.raises(HastenError, match="not a whole number in"):
            largest.canonical(outside)
    with pytest.raises(HastenError, match="is not"):
        integer("n", 0, 10**12, step=10).canonical(10**12 - 5)
    for low, high, step in ((2**60, 2**60 + 1000, 1), (-(2**60), 0, 1), (0, 2**53 + 2, 2)):
        with pytest.raises(HastenError, match=r"beyond 2\*\*53") as told:
            integer("seed", low, high, step=step)
        assert "\n" not in str(told.value)
    assert categorical("seed", [2**60 + 137, 2**60 + 138]).canonical(2**60 + 138) == 2**60 + 138
    with pytest.raises(HastenError, match="nan"):
        categorical("a", [math.nan, 1.0])
