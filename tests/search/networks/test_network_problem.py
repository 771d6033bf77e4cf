"""Accuracy after a short training against latency, within a limit, of a space of networks."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.vision.ascan import AsCANConfig, StageLayout
from hasten.processes import torch_threads
from hasten.search import Infeasible, Study
from hasten.search.networks import network_problem as network_problem_module
from hasten.search.networks.architecture_space import open_space
from hasten.search.networks.members.ascan import LayoutSpace
from hasten.search.networks.network_problem import network_problem, within


def test_a_limit_is_kept_before_anything_is_trained() -> None:
    assert within(1e-3, None) == within(1e-3, 1e-3) == 1e-3
    with pytest.raises(Infeasible, match="3 ms, over the limit of 2 ms") as told:
        within(3e-3, 2e-3)
    assert told.value.distance == pytest.approx(1.5)


def test_a_study_finds_networks_within_a_limit() -> None:
    cells = type(open_space("cell")).for_images(1, 16, 10)
    free = network_problem(cells, "pi5", epochs=0.1)
    point = free.space.sample(3)
    found: Any = free.evaluate(point)
    assert found == free.evaluate(point)  # from seeds
    arch = cells.from_params(point)
    assert (found["parameters"], found["products"]) == (cells.parameters(arch), cells.products(arch))
    assert cells.from_json(found["network"]) == arch
    limited = network_problem(cells, "pi5", limit=found["latency"] * 0.9, epochs=0.1)
    with pytest.raises(Infeasible, match="over the limit"):
        limited.evaluate(point)
    result = Study().run(limited, sampler="random", trials=4)
    assert all(t.values["latency"] <= found["latency"] * 0.9 for t in result.trials if t.feasible)
    assert free.fingerprint != limited.fingerprint


def test_latency_is_measured_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def table(space: Any) -> Any:
        def seconds(arch: Any) -> float:
            threads.append(torch.get_num_threads())
            return 1.0

        return seconds

    monkeypatch.setattr(network_problem_module, "measured", table)
    cells = type(open_space("cell")).for_images(1, 16, 10)
    problem = network_problem(cells, limit=0.5)
    with torch_threads(2), pytest.raises(Infeasible, match="over the limit"):
        problem.evaluate(problem.space.sample(0))
    assert threads == [1]


def test_points_that_break_the_space_s_rules_are_not_had() -> None:
    config = AsCANConfig(StageLayout(("C", "C")), (8, 8), 8, head_size=8, image=16, channels=1)
    problem = network_problem(LayoutSpace(config, ruled=True), "pi5", epochs=0.1)
    with pytest.raises(Infeasible, match="a smaller share of transformer layers"):
        problem.evaluate({"transformers-1": 1, "transformers-2": 0})


def test_ruled_layouts_are_drawn_by_their_rules() -> None:
    space, rng = LayoutSpace(AsCANConfig(StageLayout(("CC", "CCC", "CCC"))), ruled=True), random.Random(0)
    drawn = [space.sample(rng) for _ in range(20)]
    drawn += [space.mutate(a, rng, 0.5) for a in drawn] + [space.cross(a, b, rng) for a, b in itertools.pairwise(drawn)]
    assert not any(a.why_uneven() for a in drawn)
    assert len(set(drawn)) > 3


def test_what_is_wrong_is_told_before_anything_is_made() -> None:
    cells = open_space("cell")
    for options, message in (
        ({"device": "abacus"}, "abacus"),
        ({"source": "cats"}, "no images are called 'cats'"),
        ({"epochs": 0}, "above 0"),
        ({"limit": -1.0}, "above 0"),
    ):
        with pytest.raises(HastenError, match=message):
            network_problem(cells, **options)
