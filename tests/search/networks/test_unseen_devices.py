"""Devices and networks are parted, nothing that is asked is learned, and ranks and targets are what they are."""

from __future__ import annotations

import itertools
import random
from functools import cache

import numpy as np
import pytest

from hasten.cost.latency.meta_settings import quick_settings
from hasten.cost.latency.regimes import MeasuredRegimes, Regime
from hasten.errors import HastenError
from hasten.search.networks.architecture_space import latency_predictor, modelled_latencies, open_space
from hasten.search.networks.new_device import (
    NewDeviceCost,
    TargetsMet,
    largest_within,
    measured_against,
    new_device_cost,
    seconds_of_part_table,
    seconds_to_measure,
    targets_met,
)
from hasten.search.networks.unseen_devices import (
    DevicePool,
    Learned,
    Roles,
    array,
    comparable,
    estimated,
    few_roles,
    held_out_ranks,
    learned_from,
    learning_curves,
    measurements_needed,
    meta_trained,
    meta_trainings,
    reach,
    reached_from,
    this_machine_and_others,
    well_measured,
)

ROLES = Roles((Regime(), array("dla", 64, 8)), (array("rs", 64, 16),), (Regime(batch=2), array("shi", 64, 2)))


def measurements(count: int, short: int = 0) -> MeasuredRegimes:
    """Seconds in proportion to products, as if measured; the second regime got to ``short`` networks where given."""
    space, rng = open_space("cell"), random.Random(0)
    archs = tuple(dict.fromkeys(space.sample(rng) for _ in range(count)))
    seconds = np.array([1e-9 * (1e5 + space.products(a)) for a in archs])
    halves = {r.name: (1 + r.batch) * np.stack([seconds, seconds], 1) for r in ROLES.regimes}
    if short:
        halves[ROLES.regimes[1].name][short:] = np.nan
    return MeasuredRegimes(archs, tuple(ROLES.regimes), halves, 1.0)


@cache
def pool() -> DevicePool:
    space, measured = open_space("cell"), measurements(40)
    return DevicePool.parted(
        space, ROLES, measured.archs, measured, modelled_latencies(space, measured.archs, ROLES.modelled)
    )


@cache
def learned() -> Learned:
    made, names = pool().references(6), ("HELP", "MAML")
    given = (pool().to_learn(pool().train, made), pool().to_learn(pool().valid, made))
    trained = {name: meta_trained(pool().space, name, 1, 0, made, *given) for name in names}
    arms = meta_trainings(pool(), names, 1, {0: made})
    assert arms == {f"{name} 0": (pool().space, name, 1, 0, made, *given) for name in names}
    (loaded,) = learned_from(pool(), names, 1, {0: made}, {f"{name} 0": state for name, state in trained.items()})
    assert loaded.references == tuple(made)
    assert set(loaded.predictors) == set(names)
    return loaded


def test_a_device_has_one_role() -> None:
    with pytest.raises(HastenError, match="has two roles"):
        Roles((Regime(),), (Regime(batch=4),), (Regime(),))
    roles = this_machine_and_others()
    for one, other in itertools.combinations(({d.name for d in r} for r in (roles.train, roles.valid, roles.test)), 2):
        assert not one & other
    known = [d for d in (*roles.train, *roles.valid) if isinstance(d, Regime)]
    for regime in (d for d in roles.test if isinstance(d, Regime)):
        assert regime.dtype not in {r.dtype for r in known} or regime.isa not in {r.isa for r in known}
    assert len(roles.train) >= 9
    assert len(few_roles().all) == 5
    assert len(few_roles().regimes) == 2
    assert estimated("pi5").name == "pi5-b1-fused"


def test_what_is_asked_is_not_learned() -> None:
    made = pool()
    assert not set(made.learn) & set(made.ask)
    assert len(made.ask) == len(made.measured.archs) - len(made.learn)
    references = made.references(6)
    assert len(set(references)) == 6
    assert set(references) <= set(made.learn)
    assert references == made.references(6) != made.references(6, seed=1)
    for table in made.to_learn(made.train, references).values():
        assert not set(table) & set(made.ask)
    assert len(made.asked(made.test[0])) == len(made.ask) - 2 * round(0.1 * len(made.ask))
    assert (made.train, made.test) == (("cpu-1t-b1-fp32", "dla-64pe-8GBs"), ("cpu-1t-b2-fp32", "shi-64pe-2GBs"))


def test_a_regime_with_few_networks_is_no_device() -> None:
    short = measurements(40, short=10)
    assert list(well_measured(short)) == ["cpu-1t-b1-fp32"]
    assert comparable(short, ROLES) == 0  # it is held out
    assert comparable(measurements(40, short=30), ROLES) == 30
    assert comparable(measurements(40), ROLES) == len(measurements(40).archs)


def test_ranks_of_held_out_devices() -> None:
    found = held_out_ranks(pool(), [learned()], steps=2)
    assert set(found) == set(pool().test)
    assert found["cpu-1t-b2-fp32"]["noise ceiling"] == pytest.approx(1)
    assert "noise ceiling" not in found["shi-64pe-2GBs"]
    # There latency is a line through products.
    assert found["cpu-1t-b2-fp32"]["FLOPs"] == pytest.approx(1)
    assert all({"HELP", "MAML", "MLP", "GNN", "best proxy"} <= set(row) for row in found.values())


def test_loaded_predictors_are_those_that_learned() -> None:
    made = learned()
    given = (pool().to_learn(pool().train, made.references), pool().to_learn(pool().valid, made.references))
    own = latency_predictor(pool().space, made.references, quick_settings("HELP", 1), 0).fit(*given)
    device = pool().test[0]
    both = [pool().adapted(device, p).scores(pool().ask) for p in (own, made.predictors["HELP"])]
    assert np.allclose(*both)
    assert made.seconds["HELP"] > 0


def test_curves_of_learning() -> None:
    curves = learning_curves(pool(), learned(), (6, 12, 900), steps=2, most=6)
    assert set(curves) == {"measured", "modelled"}
    assert set(curves["measured"]["MLP"]) == {6, 12}  # nobody has 900
    assert set(curves["measured"]["HELP"]) == {6}


def test_what_a_predictor_alone_needs() -> None:
    curve = {"HELP": {10: 0.9, 20: 0.99}, "MLP": {10: 0.5, 50: 0.91, 100: 0.95}, "GNN": {10: 0.2, 50: 0.3}}
    assert measurements_needed(curve) == {"MLP": 50, "GNN": None}
    assert reach(curve) == "HELP 0.900 at 10, reached by MLP at 50, GNN not at 50"


def test_where_no_predictor_alone_reaches_nobody_knows_beyond_the_curves() -> None:
    """Where nobody asked beyond 400 measurements, nobody knows of 900."""
    assert reached_from({"modelled": {"HELP": {10: 0.9}, "MLP": {10: 0.1, 400: 0.2}}}) == 401
    both = {"modelled": {"HELP": {10: 0.9}, "MLP": {50: 0.95}}, "measured": {"HELP": {10: 0.5}, "GNN": {20: 0.6}}}
    assert reached_from(both) == 20


def test_the_largest_within_a_limit_and_how_far_it_is() -> None:
    made, references = pool(), learned().references
    adapted = made.adapted("cpu-1t-b2-fp32", learned().predictors["HELP"])
    predicted = dict(zip(made.ask, adapted.predict(made.ask), strict=True))
    middle = sorted(predicted.values())[len(predicted) // 2]
    first, fastest = largest_within(made.space, adapted, made.ask, [middle, -1.0])
    within = [a for a in made.ask if predicted[a] <= middle]
    assert made.space.products(first) == max(made.space.products(a) for a in within)
    assert predicted[fastest] == min(predicted.values())
    off, drift = measured_against(made, Regime(batch=2), [first], [1e9], references, rounds=2, runs=1)
    assert off == [pytest.approx(-1)]
    assert drift > 0


def test_seconds_to_know_a_device() -> None:
    space, archs = pool().space, pool().learn[:2]
    assert seconds_to_measure(space, archs, Regime(), rounds=2, runs=1) > 0
    seconds, parts = seconds_of_part_table(space, archs, Regime(), rounds=2, runs=1)
    assert seconds > 0
    assert parts == len({key for a in archs for key, _, _ in space.parts(a)})


def test_targets_are_met_or_not_on_held_out_regimes() -> None:
    told: list[str] = []
    found = targets_met(pool(), learned(), pool().learn, (0.2, 0.8), progress=told.append, rounds=2, runs=1)
    assert list(found) == told == ["cpu-1t-b2-fp32"]  # modelled devices cannot be measured
    low, high = found["cpu-1t-b2-fp32"].targets
    assert low < high
    assert len(found["cpu-1t-b2-fp32"].hits()) == 2
    assert TargetsMet((1.0, 1.0, 1.0), (0.1, -0.2, 0.0), 1.0).hits() == [True, False, True]


def test_what_a_new_device_costs() -> None:
    cost = new_device_cost(pool(), learned(), Regime(batch=2), pool().learn[:2], rounds=2, runs=1)
    assert cost.references == 6
    assert min(cost.measuring, cost.adapting, cost.table) > 0
    assert NewDeviceCost(10, 2.0, 0.5, 30.0, 4).predictor == 2.5
    assert NewDeviceCost(10, 2.0, 0.5, 30.0, 4).network == 0.2
