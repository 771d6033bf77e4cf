"""Cascades of scored events: their graph beside a stream that is counted, and what conditions do to scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hasten.cost.flows.cascade import CascadeStage, ScoredEvents, cascade_flow, stream_gaps, streamed
from hasten.errors import HastenError


def events(count: int, seed: int) -> ScoredEvents:
    """Two stages that err alike: part of their noise is the same."""
    generator = np.random.default_rng(seed)
    relevant = generator.random(count) < 0.2
    common, own = generator.normal(size=count), generator.normal(size=(2, count))
    return ScoredEvents.of(
        relevant, weak=2 * relevant + common + own[0], strong=5 * relevant + 1.2 * common + 0.5 * own[1]
    )


HELD, NEW = events(60_000, 0), events(60_000, 1)
STAGES = [CascadeStage("weak", 1.0, 5.0), CascadeStage("strong", 50.0, 10.0)]


def test_the_graph_says_what_a_stream_does() -> None:
    flow = cascade_flow(HELD, STAGES, relevant=0.02)
    stream = streamed(NEW, STAGES, list(flow.thresholds.values()), relevant=0.02, count=400_000)
    assert stream_gaps(flow, stream).worst < 0.05
    assert stream.received[0].sum() == 400_000
    assert flow.joules == pytest.approx(1.0 + 50 / 5)
    assert flow.cost.stored == pytest.approx(1 / 50)
    assert stream.f1 == pytest.approx(flow.cost.f1, rel=0.03)
    assert stream.productivity == pytest.approx(flow.cost.productivity, rel=0.05)


def test_stages_that_err_alike_are_not_independent() -> None:
    exact, apart = (cascade_flow(HELD, STAGES, relevant=0.02, independent=i) for i in (False, True))
    stream = streamed(NEW, STAGES, list(apart.thresholds.values()), relevant=0.02, count=400_000)
    assert stream_gaps(apart, stream).worst > 0.1
    assert exact.thresholds["weak"] == apart.thresholds["weak"]
    assert exact.thresholds["strong"] != apart.thresholds["strong"]


def test_a_stage_that_passes_all_changes_nothing_but_energy() -> None:
    alone = cascade_flow(HELD, [STAGES[1]], relevant=0.02)
    after = cascade_flow(HELD, [CascadeStage("weak", 1.0, 1.0), STAGES[1]], relevant=0.02)
    assert after.cost.contingency == pytest.approx(alone.cost.contingency)
    assert after.joules == pytest.approx(alone.joules + 1)


def test_links_cost_what_passes_over_them() -> None:
    flow = cascade_flow(HELD, STAGES, relevant=0.02, size=10.0, joules_per_bit=0.1)
    assert flow.joules == pytest.approx(1 + 50 / 5 + 8 * (1 + 1 / 5 + 1 / 50))


def test_gaps_of_what_costs_nothing_and_of_no_stream() -> None:
    stages = [CascadeStage("weak", 0.0, 5), CascadeStage("strong", 0.0, 10)]
    flow = cascade_flow(HELD, stages, relevant=0.02)
    thresholds = list(flow.thresholds.values())
    assert stream_gaps(flow, streamed(HELD, stages, thresholds, relevant=0.02, count=5000)).joules == 0
    costly = cascade_flow(HELD, STAGES, relevant=0.02)
    assert stream_gaps(costly, streamed(HELD, STAGES, thresholds, relevant=0.02, count=0)).worst == math.inf


def test_too_few_events_and_wrong_shapes_are_told() -> None:
    few = ScoredEvents.of([0, 0, 0, 1], weak=[3, 2, 1, 0], strong=[0, 0, 0, 1])
    with pytest.raises(HastenError, match="no scored event of a kind reaches strong"):
        cascade_flow(few, STAGES, relevant=0.02)
    for make, told in (
        (lambda: ScoredEvents.of([0, 1], a=[1.0]), "one score each"),
        (lambda: ScoredEvents.of([0, 0], a=[1, 2]), "relevant events"),
        (lambda: ScoredEvents.of([0, 1], a=[1, float("nan")]), "finite"),
        (lambda: ScoredEvents(("a", "a"), np.zeros((2, 2)), np.array([False, True])), "one name"),
        (lambda: few.column("other"), "no stage is called 'other'"),
        (lambda: cascade_flow(few, [], relevant=0.02), "a stage at least"),
        (lambda: cascade_flow(few, STAGES, relevant=0.0), "between 0 and 1"),
        (lambda: streamed(few, STAGES, [0.0, 0.0], relevant=0.5, count=-1), "a stream of -1 events"),
        (lambda: streamed(few, STAGES, [0.0, 0.0], relevant=1.5, count=1), "a share"),
        (lambda: cascade_flow(few, [CascadeStage("weak", 1.0, 0.5)], relevant=0.1), "from 1"),
    ):
        with pytest.raises(HastenError, match=told):
            make()
