"""Volume of fronts: known ones, and against counting points of a grid."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.search.hypervolume import hypervolume


def test_known_fronts():
    assert hypervolume([[0.25]], [1.0]) == 0.75
    assert hypervolume([[0, 0.5], [0.5, 0]], [1, 1]) == pytest.approx(0.75)
    assert hypervolume([[0, 0, 0.5], [0.5, 0.5, 0]], [1, 1, 1]) == pytest.approx(0.5 + 0.25 * 0.5)
    assert hypervolume([], [1, 1]) == 0
    assert hypervolume([[1, 0], [2, -1]], [1, 1]) == 0  # not better than the reference everywhere


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[st.integers(0, 5)] * n), min_size=1, max_size=8)))
def test_it_is_the_count_of_cells_that_a_point_covers(points):
    cells = np.array(list(itertools.product(range(5), repeat=len(points[0]))))
    covered = np.any([np.all(cells >= p, axis=1) for p in np.array(points)], axis=0).sum()
    assert hypervolume(points, [5] * len(points[0])) == pytest.approx(covered)
