"""The best point is worth 1, and an agent is asked until it pays enough or its samples are used up."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.search.agents.registry import make_agent
from hasten.search.separable import samples_until, separable


def test_the_best_point_is_worth_one() -> None:
    worth = separable(5, 8, seed=3)
    assert worth.shape == (5, 8)
    assert worth.max(1).sum() == pytest.approx(1)
    assert np.array_equal(worth, separable(5, 8, seed=3))
    assert not np.array_equal(worth, separable(5, 8, seed=4))


def test_samples_are_counted_until_enough_is_paid() -> None:
    class Best:
        asked = 0

        def ask(self) -> tuple[int, ...]:
            self.asked += 1
            return tuple(worth.argmax(1) if self.asked > 30 else worth.argmin(1))

        def tell(self, point: tuple[int, ...], reward: float, values: tuple[float, ...]) -> None:
            assert reward == values[0]

    worth = separable(4, 8)
    # Until the window holds nothing of what came first.
    assert samples_until(Best(), worth, 1000, share=0.999, window=10) == 40
    assert samples_until(Best(), worth, 20, window=10) == 20


def test_random_search_needs_all_samples() -> None:
    assert samples_until(make_agent("random-walk", [8] * 10, 0), separable(10, 8), 200) == 200
