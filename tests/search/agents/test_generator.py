"""A generator of points: seeds, conditions, bytes, and that it learns what scores."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hasten.errors import HastenError
from hasten.search.agents.generator import GeneratorAgent, GeneratorTraining, PointGenerator

SIZES = (3, 2, 4)


def utility(point: tuple[int, ...]) -> float:
    """Its best point is (2, 0, 3), beside which each single change is worse."""
    return point[0] - 2.0 * point[1] * (point[0] == 2) + point[2] * (1.0 if point[0] == 2 else -0.5)


def test_a_seed_is_a_point() -> None:
    generator = PointGenerator(SIZES, seed=1)
    points = generator.points(range(40))
    assert points == generator.points(range(40)) == [generator.points([i])[0] for i in range(40)]
    assert all(0 <= v < n for p in points for v, n in zip(p, SIZES, strict=True))
    assert len(set(points)) > 10
    assert len(set(generator.near((1, 1, 1), 9.0).points(range(20)))) == 1


def test_chances_are_those_of_the_draw() -> None:
    generator = PointGenerator(SIZES, seed=1)
    every = list(itertools.product(*map(range, SIZES)))
    chances, spread = generator.log_chances(every, [7] * len(every))
    assert float(chances.detach().sum(1).exp().sum()) == pytest.approx(1, abs=1e-5)
    assert torch.isfinite(spread).all()
    # No value beyond a parameter's own has any chance.
    drawn = set(generator.points(range(300)))
    assert drawn <= set(every)


def test_it_learns_the_best_point_of_all() -> None:
    generator = PointGenerator(SIZES, seed=0)
    training = GeneratorTraining(generator, entropy=0.0)
    for step in range(40):
        seeds = list(range(16 * step, 16 * step + 16))
        points = generator.points(seeds)
        training.update(points, seeds, [utility(p) for p in points])
    best = max(itertools.product(*map(range, SIZES)), key=utility)
    assert generator.points([0, 1, 2], heat=0) == [best] * 3


def test_a_condition_says_what_is_asked_for() -> None:
    generator = PointGenerator((5, 5), condition=1, seed=0)
    training = GeneratorTraining(generator)
    for step in range(50):
        for asked in (0.0, 1.0):
            seeds = list(range(16 * step, 16 * step + 16))
            points = generator.points(seeds, [asked])
            training.update(points, seeds, [-abs(sum(p) - 8 * asked) for p in points], [asked])
    small, large = (sum(map(sum, generator.points(range(20), [asked]))) / 20 for asked in (0.0, 1.0))
    assert small < 2
    assert large > 6
    with pytest.raises(HastenError, match="asked by 1 numbers"):
        generator.points([0])


def test_what_is_not_admissible_is_the_worst() -> None:
    generator = PointGenerator((4,), seed=0)
    training = GeneratorTraining(generator)
    for step in range(40):
        seeds = list(range(16 * step, 16 * step + 16))
        points = generator.points(seeds)
        training.update(points, seeds, [-math.inf if p[0] == 3 else float(p[0]) for p in points])
    assert generator.points([0], heat=0) == [(2,)]
    assert all(math.isfinite(score) for score, _ in training.best.values())
    training.update([(3,)], [0], [-math.inf])  # nothing to learn, and nothing broken
    assert generator.points([0], heat=0) == [(2,)]


def test_bytes_come_back() -> None:
    generator = PointGenerator(SIZES, condition=2, hidden=8, seed=3)
    again = PointGenerator.from_bytes(generator.to_bytes())
    assert again.points(range(9), (0.5, 1)) == generator.points(range(9), (0.5, 1))
    for wrong in (b"", b"12345678abc", generator.to_bytes()[:-4]):
        with pytest.raises(HastenError, match="hold no generator"):
            PointGenerator.from_bytes(wrong)
    with pytest.raises(HastenError, match="at least one parameter"):
        PointGenerator(())


def test_an_agent_asks_it_and_teaches_it() -> None:
    agent = GeneratorAgent(SIZES, seed=2)
    for _ in range(200):
        point = agent.ask()
        agent.tell(point, utility(point))
    assert agent.best == (2, 0, 3)
    late = [utility(agent.ask()) for _ in range(30)]
    assert sum(late) / 30 > 2
    with pytest.raises(HastenError, match="two points or more"):
        GeneratorAgent(SIZES, batch=1)
