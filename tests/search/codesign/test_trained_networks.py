"""Tables of accuracies stand for trained networks, and a search is charged for what it looks up."""

from __future__ import annotations

import pytest

from hasten.search.codesign.chips import Specs
from hasten.search.codesign.coexplore import Solution, mean_accuracy, meeting
from hasten.search.codesign.trained_networks import (
    by_width,
    every_network,
    limits_of_the_best,
    network_key,
    network_task,
    searched,
    small_chips,
)


def test_a_table_from_one_network_ranks_by_width() -> None:
    table = by_width(0.5)
    assert set(table) == {network_key(p) for p in every_network()}
    assert table[32, 2, 32, 2] > table[12, 2, 32, 2] > table[4, 0, 4, 0] > 0.5


def test_solutions_that_meet_the_limits_are_averaged() -> None:
    def solution(accuracy: float, meets: bool) -> Solution:
        return Solution((), {}, Specs(1, 1, 1), (accuracy,), accuracy, meets)

    found = [solution(0.5, True), None, solution(0.7, True), solution(0.9, False)]
    assert [s.accuracy for s in meeting(found)] == [0.5, 0.7]
    assert mean_accuracy(found) == pytest.approx(0.6)
    assert mean_accuracy([None, solution(0.9, False)]) == 0.0


def test_a_search_looks_accuracies_up_within_its_budget() -> None:
    table = {"digits": by_width(0.5)}
    limits, bounds = limits_of_the_best([network_task("digits", table["digits"])], small_chips(), 0.9)
    found = searched(("digits", "digits"), {}, limits, bounds, "monte-carlo", 0, table, (20, 3))
    assert found is None or len(found.networks) == 2
    again = searched(("digits", "digits"), {}, limits, bounds, "monte-carlo", 0, table, (20, 3))
    assert found == again
