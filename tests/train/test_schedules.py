"""Schedules: where they rise and fall, in steps and in seconds."""

from __future__ import annotations

import pytest

from hasten.train.schedules import Constant, Cosine, Linear, Moment, Product, Schedule, Warmup, WarmupCosine


def shares(schedule: Schedule, steps: int = 10) -> list[float]:
    return [schedule(Moment(i, i / steps, steps)) for i in range(steps)]


def timed(schedule: Schedule, steps: int = 10) -> list[float]:
    return [schedule(Moment(i, i / steps)) for i in range(steps)]


@pytest.mark.parametrize("told", [shares, timed])
def test_shapes(told) -> None:
    assert told(Constant()) == [1.0] * 10
    assert told(Linear(0.35)) == pytest.approx([1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.35, 0.35])
    fall = told(Cosine(0.2))
    assert fall[0] == 1.0
    assert fall[5] == pytest.approx(0.6)
    assert fall == sorted(fall, reverse=True)
    assert min(told(WarmupCosine(0.2, 0.0, least=0.3))[2:]) == 0.3


def test_a_rise_in_steps_reaches_the_whole_rate_with_its_last_step() -> None:
    assert shares(WarmupCosine(0.3, 0.5))[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert shares(WarmupCosine(0.0))[:2] == [1.0, 1.0]
    assert shares(Warmup(0.5)) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1, 1])


def test_a_rise_in_seconds_begins_at_nothing() -> None:
    assert timed(WarmupCosine(0.2))[:3] == pytest.approx([0, 0.5, 1])
    assert timed(WarmupCosine(0.0))[0] == 1.0
    assert timed(Warmup(0.2))[:3] == pytest.approx([0, 0.5, 1])
    assert timed(Warmup(0.0))[0] == 1.0


def test_a_product_rises_while_it_falls() -> None:
    both = shares(Product(Warmup(0.5), Cosine()))
    assert both == pytest.approx([a * b for a, b in zip(shares(Warmup(0.5)), shares(Cosine()), strict=True)])
