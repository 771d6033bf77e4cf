"""What cannot be had is told to samplers as a broken constraint, with how far it is from what can."""

from __future__ import annotations

import pickle

import optuna
import pytest
from optuna.trial import TrialState

from hasten import spaces
from hasten.search import Infeasible, Objective, Problem, Space, Study, integer, samplers
from hasten.search.environments import environment
from hasten.search.trial_records import INFEASIBLE, REASON
from hasten.search.workers import evaluate

SPACE = Space([integer("x", 0, 19), integer("y", 0, 19)])


def score(params):
    if params["x"] + params["y"] > 12:
        raise Infeasible("too much", params["x"] + params["y"] - 12)
    return {"cost": float(abs(params["x"] - 5)), "over": params["y"] - 9.0}


PROBLEM = Problem("little", SPACE, (Objective("cost"),), score, constraints=("over",))


def test_a_distance_is_above_0_and_travels() -> None:
    for given, kept in ((3, 3.0), (0, 1.0), (-1, 1.0), (float("inf"), 1.0), (float("nan"), 1.0)):
        assert Infeasible("why", given).distance == kept
    sent = pickle.loads(pickle.dumps(Infeasible("why", 4.0)))
    assert (str(sent), sent.distance) == ("why", 4.0)
    done = pickle.loads(pickle.dumps(evaluate(PROBLEM, {"x": 9, "y": 9})))  # as a worker sends it
    assert (done.reason, done.distance, done.values) == ("too much", 6.0, {})


def test_it_is_kept_as_a_broken_constraint_of_a_finished_trial() -> None:
    study = Study()
    found = study.run(PROBLEM, sampler="random", trials=12)
    assert study.read(PROBLEM).trials == found.trials
    kept = [t for t in optuna.load_study(study_name="little", storage=study._memory).trials if t.params]
    assert {t.state for t in kept} == {TrialState.COMPLETE}
    told = [t for t in kept if REASON in t.user_attrs]
    assert told
    for t in told:
        assert t.constraints == {INFEASIBLE: t.params["x"] + t.params["y"] - 12, "over": 0.0}
        assert t.values == [float("inf")]
    for t in kept:
        if t not in told:
            assert t.constraints == {INFEASIBLE: t.params["y"] - 9, "over": t.params["y"] - 9}
    for t in found.trials:
        assert (t.distance > 0) == bool(t.reason) == (not t.values)


def test_a_study_of_before_goes_on_as_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    study, far = Study(), {"x": 19, "y": 19}
    with monkeypatch.context() as old:
        old.setattr("hasten.search.study_loop.tells_infeasible", lambda study: False)
        study.run(PROBLEM, sampler="random", trials=12, first=[far])
    before = study.read(PROBLEM).trials
    assert before[0].reason == "too much"
    pytest.importorskip("scipy")
    after = study.run(PROBLEM, sampler="gp", trials=13).trials
    assert after[:12] == before
    kept = optuna.load_study(study_name="little", storage=study._memory).trials
    assert {t.state for t in kept if REASON in t.user_attrs} == {TrialState.FAIL}
    assert not any(INFEASIBLE in t.constraints for t in kept)


@pytest.mark.parametrize("name", [n for n in samplers() if n != "gp"])
def test_every_sampler_takes_a_study_in_which_nothing_can_be_had(name: str) -> None:
    def never(params):
        raise Infeasible("never", 1 + params["x"])

    problem = Problem("never", SPACE, (Objective("cost"), Objective("other", "maximize")), never)
    found = Study().run(problem, sampler=name, trials=25, seed=0)
    assert len(found.trials) == 25
    assert found.pareto() == []


@pytest.mark.parametrize("sampler", ["nsga2", "tpe"])
def test_samplers_learn_to_avoid_what_cannot_be_had(sampler: str) -> None:
    """Of 100 designs of a chip chance finds 10 that can be had; as trials that failed told these samplers nothing, so
    did they."""
    problem = spaces.build("soc")
    shares = {
        name: sum(t.feasible for t in Study().run(problem, sampler=name, trials=100, seed=0).trials)
        for name in ("random", sampler)
    }
    assert shares["random"] < 20
    assert shares[sampler] > 2 * shares["random"]


@pytest.mark.parametrize("name", ["mapper", "soc"])
def test_a_step_towards_what_can_be_had_is_paid_more(name: str) -> None:
    problem = spaces.build(name)
    env = environment(problem, fitness=lambda values: 0.0)
    env.action_space.seed(0)
    seen = []
    for _ in range(200):
        env.reset()
        action = env.action_space.sample()
        _, reward, _, _, info = env.step(action)
        if not info["feasible"]:
            with pytest.raises(Infeasible) as told:
                problem.score(info["params"])
            seen.append((told.value.distance, reward))
    assert len({d for d, _ in seen}) > 2
    assert [d for d, _ in sorted(seen, key=lambda one: (-one[1], one[0]))] == sorted(d for d, _ in seen)
