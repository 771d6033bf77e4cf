"""Arms run side by side, keep their order, and pass errors on."""

from __future__ import annotations

import math

import pytest

from hasten.train.arms import run_arms


@pytest.mark.parametrize("processes", [1, 2])
def test_results_keep_their_order(processes: int) -> None:
    told: list[float] = []
    kept: dict[int, float] = {}
    arms = [(2, 3), (3, 2), (5, 1)]
    assert run_arms(math.pow, arms, progress=told.append, each=kept.__setitem__, processes=processes) == [8, 9, 5]
    assert told[-1] == 1.0
    assert kept == {0: 8, 1: 9, 2: 5}


def test_an_arms_error_comes_through() -> None:
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        run_arms(math.sqrt, [(1.0,), (-1.0,)], processes=2)
