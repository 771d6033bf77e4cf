"""Experts partly on storage: the timeline by hand, there and back again, and what another model's rates say."""

from __future__ import annotations

import pytest

from hasten.cost.serving.expert_storage import ROUTES, LittleMemory, carried_over, predicted_step
from hasten.errors import HastenError

SMALL = LittleMemory(layers=4, experts=8, used=2, bundle=1e6, held=16, attention=0.25)


def test_the_timeline() -> None:
    assert predicted_step(2.0, 3.0, 1.0, prefetch=True) == 4.0
    assert predicted_step(2.0, 3.0, 1.0, prefetch=False) == 6.0


def test_a_rate_by_hand() -> None:
    """Ten tokens a second are 25 ms a layer, 6.25 of them attention: 10 ms of reading stall for 3.75 behind it."""
    whole, missing, storage = 10.0, 1e6, 100e6
    assert SMALL.rate(whole, storage, missing) == pytest.approx(1 / (4 * 0.02875))
    assert SMALL.rate(whole, storage, missing, prefetch=False) == pytest.approx(1 / (4 * 0.035))
    assert SMALL.rate(whole, 1e15, missing) == pytest.approx(whole)
    assert SMALL.rate(whole, storage, 0.6e6) == pytest.approx(whole), "what attention hides costs nothing"


def test_storage_that_two_rates_imply_gives_the_second_again() -> None:
    for little in (9.9, 5.0, 0.3):
        storage = SMALL.storage_needed(10.0, little, 7e5)
        assert SMALL.rate(10.0, storage, 7e5) == pytest.approx(little)
    with pytest.raises(HastenError, match="not below"):
        SMALL.storage_needed(10.0, 10.0, 7e5)
    with pytest.raises(HastenError, match="at least 1"):
        LittleMemory(4, 8, 2, 1e6, 0, 0.5)


def test_more_memory_and_more_lasting_routes_miss_less() -> None:
    missing = [LittleMemory(4, 8, 2, 1e6, held, 0.25).missing(100, 0) for held in (8, 16, 31)]
    assert missing == sorted(missing, reverse=True)
    assert SMALL.missing(100, 0, stays=0.9) < SMALL.missing(100, 0, stays=0.1)
    assert 0 < SMALL.missing(100, 0) < 2e6


def test_rates_carried_over_to_the_same_model_are_its_own() -> None:
    seen = carried_over(SMALL, (10.0, 6.0), SMALL, 10.0, 50, 0)
    assert [(one.stays, one.skew) for one in seen] == list(ROUTES)
    assert [one.rate for one in seen] == [pytest.approx(6.0)] * len(ROUTES)
    assert all(one.on_demand < one.rate for one in seen)
    # Where less is missed the same loss means slower storage.
    (often, seldom) = (
        next(one.storage for one in seen if (one.stays, one.skew) == r) for r in ((0.4, 0.5), (0.8, 1.0))
    )
    assert often > seldom
    # Twice the memory for the same model is faster, and never faster than with all of it.
    larger = LittleMemory(4, 8, 2, 1e6, 28, 0.25)
    assert all(6.0 < one.rate <= 10.0 for one in carried_over(SMALL, (10.0, 6.0), larger, 10.0, 50, 0))
