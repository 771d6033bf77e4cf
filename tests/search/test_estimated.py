"""Searches whose objectives and limits are estimated: a formula and a predictor of latency serve alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch

from hasten.cost.chips.synthesised import exact_estimator
from hasten.cost.estimator import AnalyticEstimator, Predicts, latency_estimator
from hasten.cost.latency.meta_settings import MetaSettings
from hasten.cost.latency.predictor import LatencyPredictor
from hasten.errors import HastenError
from hasten.hardware.hls.engines import EngineDesign, EngineLayer
from hasten.search.estimated import estimated_problem
from hasten.search.parameter import Params, integer, ordinal
from hasten.search.problem import Infeasible, Objective
from hasten.search.space import Space
from hasten.search.study import Study

Net = tuple[int, ...]
NETS: list[Net] = list(product((0, 1, 2), repeat=4))
SPACE = Space([integer(f"n{i}", 0, 2) for i in range(4)])


def net(params: Params) -> Net:
    return tuple(params[f"n{i}"] for i in range(4))


def seconds(n: Net) -> float:
    return 1.0 + sum(n) + 0.5 * n[3]


def codes(nets: Sequence[Net]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(nets), 3).flatten(1).float()


def formula() -> Predicts[Net]:
    return latency_estimator(seconds)


def learned() -> Predicts[Net]:
    settings = MetaSettings(
        hidden=24, warm=100, episodes=4, devices=3, query=30, rate=3e-3, inner_rate=1e-2, every=4, samples=2
    )
    predictor = LatencyPredictor[Net](codes, NETS[::9], settings=settings)
    predictor.fit({f"d{d}": {n: 1 + sum(n) + 0.1 * d * n[3] for n in NETS} for d in range(9)})
    return predictor.adapt({n: seconds(n) for n in NETS[::9]})


@pytest.mark.parametrize("make", [formula, learned])
def test_the_largest_network_within_a_limit_is_found(make: Callable[[], Predicts[Net]]) -> None:
    problem = estimated_problem(
        "nets", SPACE, net, [make()], limits={"latency": 4.6},
        scores=[Objective("size", "maximize")], score=lambda n: {"size": sum(n)},
    )  # fmt: skip
    found = Study().run(problem, sampler="exhaustive", trials=81)
    best = found.pareto()[0]
    assert abs(best.values["size"] - 3) <= 1
    assert seconds(net(best.params)) < 5.7
    assert "latency" in best.details


def test_being_sure_costs_something() -> None:
    measured = {n: (1.3 if i % 2 else 1.0) * seconds(n) for i, n in enumerate(NETS[::9])}
    rough = AnalyticEstimator(seconds_by_name, {"latency": "s"}).adapt(measured)
    values = {}
    for deviations in (0.0, 2.0):
        problem = estimated_problem("nets", SPACE, net, [rough], objectives=["latency"], deviations=deviations)
        values[deviations] = problem.evaluate(dict.fromkeys(("n0", "n1", "n2", "n3"), 1))["latency"]
    assert values[2.0] > 1.1 * values[0.0]


def seconds_by_name(n: Net) -> dict[str, float]:
    return {"latency": seconds(n)}


def test_what_lies_outside_is_refused_or_marked() -> None:
    narrow = AnalyticEstimator(seconds_by_name, {"latency": "s"}, lambda n: n[0] < 2)
    point = {"n0": 2, "n1": 0, "n2": 0, "n3": 0}
    with pytest.raises(Infeasible, match="outside of what latency"):
        estimated_problem("nets", SPACE, net, [narrow], objectives=["latency"]).evaluate(point)
    marked = estimated_problem("nets", SPACE, net, [narrow], objectives=["latency"], within=False)
    assert marked.evaluate(point)["outside"] == ["latency"]


def test_targets_that_nobody_estimates_are_told() -> None:
    with pytest.raises(HastenError, match="no target 'energy'"):
        estimated_problem("nets", SPACE, net, [formula()], objectives=["energy"])
    with pytest.raises(HastenError, match="at least one estimator"):
        estimated_problem("nets", SPACE, net, [], objectives=["energy"])


def test_circuits_are_searched_by_an_exact_rule() -> None:
    def design(params: Params) -> EngineDesign:
        return EngineDesign((EngineLayer(8, 4, params["reuse"]),), 8)

    problem = estimated_problem(
        "engine", Space([ordinal("reuse", [1, 2, 4, 8, 16, 32])]), design, [exact_estimator()],
        objectives=["cycles"], limits={"dsp": 4},
    )  # fmt: skip
    assert Study().run(problem, sampler="exhaustive", trials=6).pareto()[0].params == {"reuse": 8}
