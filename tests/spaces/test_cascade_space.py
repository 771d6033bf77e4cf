"""The space of cascades: every point is a cascade or a model alone, and the optimum lies between."""

from __future__ import annotations

import numpy as np
import pytest

from hasten import spaces
from hasten.cost.flows.cascade import CascadeStage, ScoredEvents, cascade_flow
from hasten.cost.flows.measured_cascade import MeasuredPair
from hasten.errors import HastenError
from hasten.search import Study


def pair() -> MeasuredPair:
    generator = np.random.default_rng(0)
    relevant = generator.random(20_000) < 0.2
    noise = generator.normal(size=(2, 20_000))
    events = ScoredEvents.of(relevant, cheap=3 * relevant + noise[0], costly=5 * relevant + noise[1])
    return MeasuredPair(events, {"cheap": 1.0, "costly": 100.0})


def test_points_are_cascades_and_models_alone() -> None:
    problem = spaces.build("cascade", pair=pair(), points=9)
    assert problem.space.size == 18
    grid = problem.space.enumerate()
    found = {(p["first"], p["reduction"]): problem.score(p) for p in grid}
    alone = cascade_flow(pair().events, [CascadeStage("costly", 100.0, 50.0)], relevant=0.02)
    for same in (("cheap", 1.0), ("costly", 50.0)):
        assert found[same][0]["productivity"] == pytest.approx(alone.cost.productivity)
        assert found[same][2]["energy"] == pytest.approx(100)
        assert list(found[same][2]["thresholds"]) == ["costly"]
    best = max(found, key=lambda key: found[key][0]["productivity"])
    assert best[0] == "cheap"
    assert 1 < best[1] <= 50
    assert found[best][0]["productivity"] > 3 * found["cheap", 1.0][0]["productivity"]


def test_its_optimum_is_found_within_a_floor_of_recall() -> None:
    problem = spaces.build("cascade", pair=pair(), points=9, recall=0.9, reduction=20)
    result = Study().run(problem, sampler="exhaustive", trials=18)
    front = result.pareto()
    assert front
    assert all(t.details["recall"] >= 0.9 for t in front)
    assert any(not t.feasible for t in result.trials)


def test_what_cannot_be_sought_is_told() -> None:
    for options in ({"relevant": 0.0}, {"recall": 1.1}, {"reduction": 1.0}, {"points": 1}):
        with pytest.raises(HastenError):
            spaces.build("cascade", pair=pair(), **options)
    events = pair().events
    three = ScoredEvents.of(events.relevant, a=events.scores[:, 0], b=events.scores[:, 1], c=events.scores[:, 0])
    for wrong in (MeasuredPair(three, dict.fromkeys("abc", 1.0)), MeasuredPair(events, {"cheap": 1.0})):
        with pytest.raises(HastenError, match="of two models"):
            spaces.build("cascade", pair=wrong)
