"""Agents as Optuna samplers: told of what was tried, whoever chose it."""

from __future__ import annotations

from typing import Any

import pytest

from hasten.search import Objective, Problem, Space, Study, categorical, integer
from hasten.search.agents.registry import agents
from hasten.search.agents.sampler import AgentSampler

optuna = pytest.importorskip("optuna")

SPACE = Space(
    [integer("x", 0, 99), integer("y", 0, 99), categorical("k", ["a", "b"]), integer("z", 1, 3, when={"k": "b"})]
)


def sampler(name: str, told: list[Any]) -> AgentSampler:
    made = AgentSampler(SPACE, name, 0)
    learn = made.agent.tell

    def tell(point: Any, reward: float, metrics: Any = ()) -> None:
        told.append((made.codec.decode(point), reward))
        learn(point, reward, metrics)

    made.agent.tell = tell  # type: ignore[method-assign]
    return made


def cost(trial: Any) -> float:
    params = SPACE.suggest(trial)
    if params["y"] == 77:
        raise optuna.TrialPruned
    return float(params["x"])


@pytest.mark.parametrize("name", agents())
@pytest.mark.parametrize(
    "fixed", [{"x": 5}, {"x": 5, "k": "b"}, {"x": 5, "y": 7, "k": "a"}, {"x": 5, "y": 7, "k": "b", "z": 2}, {}]
)
def test_an_agent_is_told_of_the_point_that_was_tried(name: str, fixed: dict[str, Any]) -> None:
    told: list[Any] = []
    study = optuna.create_study(sampler=sampler(name, told))
    study.enqueue_trial(fixed)
    study.optimize(cost, n_trials=3)
    assert [point for point, _ in told] == [t.params for t in study.trials]
    assert told[0][0].items() >= fixed.items()
    assert [reward for _, reward in told] == [-t.value for t in study.trials]


@pytest.mark.parametrize("name", agents())
def test_a_failure_is_told_of_the_point_that_was_tried(name: str) -> None:
    told: list[Any] = []
    study = optuna.create_study(sampler=sampler(name, told))
    study.enqueue_trial({"x": 5})

    def fails(trial: Any) -> float:
        trial.suggest_int("x", 0, 99)
        trial.suggest_int("y", 0, 99)
        raise ValueError

    study.optimize(fails, n_trials=1, catch=ValueError)
    assert told[0][0]["x"] == 5


@pytest.mark.parametrize("name", agents())
def test_points_that_a_study_tries_first_are_told_as_they_are(name: str) -> None:
    told: list[Any] = []
    problem = Problem("p", SPACE, (Objective("e"),), lambda params: {"e": float(params["x"])})
    first = {"x": 3, "y": 4, "k": "a"}
    Study().run(problem, sampler=sampler(name, told), trials=2, first=[first])
    assert told[0] == (first, -3.0)
