"""Networks and chips together: the controller's gradients, penalties, budgets, and what the methods find."""

import itertools
import math

import numpy as np
import pytest
import torch

from hasten.cost.chips.dataflow import ConvShape, SubAccelerator
from hasten.errors import HastenError
from hasten.search import Infeasible, Space, Study, categorical
from hasten.search.codesign.chips import ChipSpace, Specs, chip_problem, map_chip, penalty
from hasten.search.codesign.coexplore import (
    METHODS,
    CoProblem,
    NetworkTask,
    _permitted,
    _random_chip,
    coexplore,
    limits_from,
)
from hasten.search.codesign.controller import Controller

CHIPS = ChipSpace(pes=(0, 32, 64, 128), bandwidths=(2, 4, 8), total_pes=160, total_bandwidth=12)


def task(name="a"):
    def layers(params):
        n = params["width"]
        return (ConvShape(n, 3, 3, 3, 16, 16),) + (ConvShape(n, n, 3, 3, 8, 8),) * params["depth"]

    return NetworkTask(
        name,
        Space([categorical("width", (8, 16, 32, 64)), categorical("depth", (1, 2, 3))]),
        layers,
        lambda params: 0.5 + 0.05 * math.log2(params["width"]) + 0.03 * params["depth"],
    )


def problem(**changed):
    tasks = (task("a"), task("b"))
    limits, bounds = limits_from(tasks, CHIPS, [{"width": 64, "depth": 3}] * 2, 0.6, samples=200)
    return CoProblem(tasks, CHIPS, limits, bounds, **changed)


def test_penalty_is_nothing_exactly_when_all_limits_hold():
    limits, bounds = Specs(10, 10, 10), Specs(20, 30, 40)
    assert penalty(limits, limits, bounds) == 0
    assert penalty(Specs(1, 1, 1), limits, bounds) == 0
    assert penalty(bounds, limits, bounds) == 3
    assert penalty(Specs(15, 10, 10), limits, bounds) == 0.5
    assert penalty(Specs(10, 10, 10 + 1e-9), limits, bounds) > 0


def test_the_reward_of_what_meets_all_is_the_weighted_accuracy():
    p = problem()
    networks = (0, 0, 1, 1)
    cost = Specs(p.limits.latency, p.limits.energy, p.limits.area)
    p.weights = [0.25, 0.75]
    mean = p.note(networks, (0, 1, 0, 0, 0, 0), cost)
    a, b = p.tasks[0].accuracy({"width": 8, "depth": 1}), p.tasks[1].accuracy({"width": 16, "depth": 2})
    assert mean - p.rho * p.penalty(cost) == 0.25 * a + 0.75 * b
    assert p.best.meets


def test_frozen_networks_leave_their_decisions_out_of_the_gradient():
    controller = Controller([3, 4, 3, 4, 2], networks=2)
    drawn, logs = controller((1, 2), count=3)
    assert all(chosen[:2] == (1, 2) for chosen in drawn)
    assert logs[:, :2].abs().sum() == 0
    logs.sum().backward()
    heads = [h.weight.grad for h in controller.heads]
    assert heads[0] is None
    assert heads[1] is None
    assert all(g is not None and g.abs().sum() > 0 for g in heads[2:])
    drawn, logs = controller(count=5)
    assert all(0 <= choice < size for chosen in drawn for choice, size in zip(chosen, controller.sizes, strict=True))
    assert logs.shape == (5, 5)
    assert (logs < 0).all()


def test_samples_drawn_together_are_as_likely_as_those_drawn_alone():
    controller = Controller([3, 2, 3], networks=1, seed=2)

    allowed = lambda chosen: [True, False, True] if len(chosen) == 2 else None  # noqa: E731
    drawn, logs = controller(allowed=allowed, count=64)
    alone = {}
    for _ in range(200):
        (point,), (log,) = controller(allowed=allowed)
        alone[point] = log
    assert len(alone) == 12
    for point, log in zip(drawn, logs, strict=True):
        torch.testing.assert_close(log, alone[point])
    assert all(point[2] != 1 for point in drawn)


def test_log_probabilities_sum_to_one():
    controller = Controller([2, 3, 2], networks=3, seed=4)
    totals = {}
    for chosen, log in zip(*controller(count=400), strict=True):
        totals[chosen] = float(log.detach().exp().prod())
    assert len(totals) == 12
    assert sum(totals.values()) == pytest.approx(1, abs=1e-5)


def test_chips_stay_within_their_limits():
    p = problem()
    rng = np.random.default_rng(0)
    for _ in range(200):
        chip = _random_chip(p, rng, (0, 0, 0, 0))
        units = CHIPS.chip(p.chip_codec.decode(chip))
        assert 1 <= len(units) <= 2
        assert sum(u.pes for u in units) <= 160
        assert sum(u.bandwidth for u in units) <= 12
    assert _permitted(p, [0] * 4) is None
    point = p.chip_codec.decode((0, 3, 0, 0, 2, 0))
    with pytest.raises(Infeasible, match="more than 160"):
        CHIPS.chip(point)
    with pytest.raises(Infeasible, match="without"):
        CHIPS.chip(p.chip_codec.decode((0, 0, 0, 0, 0, 0)))
    for wrong in ({"units": 0}, {"pes": (0,)}, {"total_bandwidth": 3}, {"pes": (-1, 4)}):
        with pytest.raises(HastenError):
            ChipSpace(**{"pes": (0, 32), "bandwidths": (2, 4), **wrong})


@pytest.mark.parametrize("method", METHODS)
def test_budgets_hold(method):
    p = problem(mapped=150, trained=5)
    coexplore(p, method, seed=1)
    # What is spent of one budget does not end the other.
    assert p.asked == 150
    for i in range(2):
        assert sum(k == i for k, _ in p.accuracies) <= 5
    with pytest.raises(HastenError, match="no method"):
        coexplore(p, "luck")


@pytest.mark.parametrize("method", METHODS)
def test_where_nothing_meets_the_limits_the_nearest_is_returned(method):
    p = problem(mapped=60, trained=3)
    p.limits = p.limits.scaled(1e-3)
    found = coexplore(p, method, seed=0)
    assert found is not None
    assert not found.meets
    mapped = [p.penalty(cost) for cost in p.costs.values() if cost is not None]
    assert p.penalty(found.cost) == min(mapped) > 0
    assert 0 < found.accuracy < 1
    # Nothing is trained beyond the budget, and what is not known is said to be so.
    p = problem(mapped=60, trained=0)
    p.limits = p.limits.scaled(1e-3)
    assert math.isnan(coexplore(p, "monte-carlo").accuracy)
    assert not p.accuracies
    assert coexplore(problem(mapped=0), "monte-carlo") is None


@pytest.mark.slow
def test_finds_networks_and_a_chip_that_networks_first_cannot():
    ours = problem(mapped=1500, trained=12)
    theirs = problem(mapped=1500, trained=12)
    found, first = coexplore(ours, seed=0), coexplore(theirs, "networks-first", seed=0)
    assert found.meets
    assert not first.meets
    assert first.accuracy >= found.accuracy
    assert penalty(found.cost, ours.limits, ours.bounds) == 0
    # The cost that was reported is that of mapping it again.
    codec = [c.encode(n) for c, n in zip(ours.codecs, found.networks)]
    layers = ours.layers(tuple(itertools.chain(*codec)))
    cost, _ = map_chip(layers, CHIPS.chip(found.chip), ours.limits.latency)
    assert Specs.of(cost) == found.cost


def test_more_bandwidth_never_costs_the_mapper_energy():
    layers = [(ConvShape(128, 128, 3, 3, 28, 28), ConvShape(64, 128, 3, 3, 28, 28))]
    narrow, _ = map_chip(layers, [SubAccelerator("shi", 256, 16)])
    for deadline in (math.inf, narrow.latency, 0.99 * narrow.latency):
        seen = [map_chip(layers, [SubAccelerator("shi", 256, b)], deadline)[0] for b in (16, 24, 32, 64)]
        within = [c.energy for c in seen if c.latency <= deadline]
        assert within == sorted(within, reverse=True)
        assert len(within) >= 3
    # Sooner than the pieces of least energy: only as much more energy as that asks for.
    tight, placed = map_chip(layers, [SubAccelerator("shi", 256, 24)], 0.0)
    assert tight.latency < narrow.latency
    assert placed.energy == tight.energy > narrow.energy


def test_the_chip_alone_is_a_search_like_any_other():
    layers = [task().layers({"width": 32, "depth": 2})]
    result = Study().run(chip_problem(layers, CHIPS), sampler="random", trials=40, seed=0)
    front = result.pareto()
    assert front
    assert all(t.values["area"] > 0 for t in front)


def test_gradients_reach_the_networks_too():
    controller = Controller([3, 3], networks=1)
    controller()[1].sum().backward()
    assert torch.isfinite(controller.heads[0].weight.grad).all()
