"""Every space in Gymnasium, PettingZoo and Stable-Baselines3, every sampler in Optuna; a table has what fails."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from hasten import spaces
from hasten.cost.chips.dataflow import ConvShape
from hasten.errors import HastenError
from hasten.search import (
    Infeasible,
    Objective,
    Problem,
    Space,
    Study,
    categorical,
    integer,
    make_sampler,
    ordinal,
    real,
    samplers,
)
from hasten.search.environments import environment, parallel_environment

from .exemptions import expected, rows

PAGE = Path(__file__).parents[2] / "docs" / "environments.md"
FORMS = ("indices", "box", "box-rounded", "turns", "discrete")

# -- spaces -------------------------------------------------------------------------------------------

SMALL: dict[str, dict[str, Any]] = {
    "asic": {"workload": [[ConvShape(8, 8, 3, 3, 8, 8)]]},
    "dram": {"requests": 100},
    "engines": {"estimator": "ridge"},  # as its environment has it: another takes seconds to learn
}
LISTED = [name for name in spaces.names() if spaces.needs(name) == ""]


@functools.cache
def problem_of(name: str) -> Problem:
    return spaces.build(name, **SMALL.get(name, {}))


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spaces without bounds, and of what Optuna calls experimental
        yield


def test_every_row_of_the_table_is_of_something_that_is_there() -> None:
    known = {*spaces.names(), *samplers(), *OPTUNAS}
    habits = {"listed", "gymnasium", "vector", "wrappers", "pettingzoo", "sb3"}
    habits |= {"study", "threads", "enqueued", "ended", "stored", "taken"}
    for name, habit in rows(PAGE):
        assert name in known
        assert habit in habits


@pytest.mark.parametrize("name", spaces.names())
def test_it_is_listed(name: str) -> None:
    pytest.importorskip("gymnasium")
    with expected(name, "listed", PAGE):
        assert f"hasten/{name}-v0" in spaces.register_environments()


@pytest.mark.parametrize("actions", FORMS)
@pytest.mark.parametrize("name", LISTED)
def test_gymnasiums_own_check(name: str, actions: str) -> None:
    checker = pytest.importorskip("gymnasium.utils.env_checker")
    with expected(name, "gymnasium", PAGE):
        checker.check_env(environment(problem_of(name), actions=actions, steps=3), skip_render_check=True)


@pytest.mark.parametrize("name", LISTED)
def test_several_at_once(name: str) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    with expected(name, "vector", PAGE):
        many = gymnasium.vector.SyncVectorEnv([lambda: environment(problem_of(name), steps=2)] * 3)
        many.reset(seed=0)
        many.action_space.seed(0)
        for _ in range(4):
            seen, rewards, *_ = many.step(many.action_space.sample())
        assert seen.shape == (3, len(problem_of(name).objectives))
        assert rewards.shape == (3,)


@pytest.mark.parametrize("name", LISTED)
def test_gymnasiums_wrappers(name: str) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    wrap = gymnasium.wrappers
    with expected(name, "wrappers", PAGE):
        env = environment(problem_of(name), actions="box", steps=50)
        env = wrap.RescaleAction(wrap.TimeLimit(env, 3), 0.0, 1.0)
        env = wrap.RecordEpisodeStatistics(wrap.DtypeObservation(wrap.NormalizeObservation(env), "float32"))
        env.reset(seed=0)
        env.action_space.seed(0)
        ends = [env.step(env.action_space.sample()) for _ in range(3)]
        assert [e[3] for e in ends] == [False, False, True]
        assert ends[-1][4]["episode"]["l"] == 3


@pytest.mark.parametrize("name", LISTED)
def test_pettingzoos_own_checks(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tests = pytest.importorskip("pettingzoo.test")
    from pettingzoo.utils import parallel_to_aec

    with expected(name, "pettingzoo", PAGE):
        tests.parallel_api_test(parallel_environment(problem_of(name), steps=2), num_cycles=4)
        tests.api_test(parallel_to_aec(parallel_environment(problem_of(name), steps=2)), num_cycles=20)


@pytest.mark.parametrize("name", LISTED)
def test_stable_baselines_own_check(name: str) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with expected(name, "sb3", PAGE):
        for actions in FORMS:
            checker.check_env(environment(problem_of(name), actions=actions, steps=3))


@pytest.mark.parametrize(("algorithm", "actions"), [("DQN", "discrete"), ("PPO", "indices"), ("SAC", "box")])
def test_stable_baselines_trains(algorithm: str, actions: str) -> None:
    baselines = pytest.importorskip("stable_baselines3")
    options = {"n_steps": 32, "batch_size": 32} if algorithm == "PPO" else {"learning_starts": 16, "batch_size": 8}
    env = environment(problem_of("soc"), actions=actions)
    model = getattr(baselines, algorithm)(
        "MlpPolicy", env, seed=0, device="cpu", policy_kwargs={"net_arch": [16]}, **options
    )
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    model.learn(40)
    assert any(not v.equal(before[k]) for k, v in model.policy.state_dict().items())
    seen, _ = env.reset(seed=0)
    assert env.action_space.contains(model.predict(seen, deterministic=True)[0])


# -- samplers -----------------------------------------------------------------------------------------

SPACE = Space(
    [
        integer("n", 0, 9),
        ordinal("size", [1, 2, 4, 8]),
        categorical("kind", ["a", "b"]),
        integer("m", 1, 3, when={"kind": "b"}),
    ]
)
OPTUNAS: dict[str, Callable[[], Any]] = {
    name: getattr(optuna.samplers, name)
    for name in (
        "RandomSampler", "TPESampler", "GPSampler", "CmaEsSampler", "NSGAIISampler", "NSGAIIISampler", "QMCSampler",
        "BruteForceSampler",
    )
}  # fmt: skip
OPTUNAS["GridSampler"] = lambda: optuna.samplers.GridSampler({"n": [0, 1], "size": [0, 1], "kind": ["a", "b"]})
OPTUNAS["PartialFixedSampler"] = lambda: optuna.samplers.PartialFixedSampler({"n": 3}, optuna.samplers.RandomSampler())


def _score(params: Any) -> dict[str, float]:
    if params["n"] + params["size"] > 12:
        raise Infeasible("too much", params["n"] + params["size"] - 12)
    return {"cost": float((params["n"] - 7) ** 2 + params.get("m", 2)), "over": params["size"] - 6.0}


PROBLEM = Problem("tools", SPACE, (Objective("cost"),), _score, constraints=("over",))


def _cost(trial: Any) -> float:
    params = SPACE.suggest(trial)
    return float((params["n"] - 7) ** 2 + params["size"])


@pytest.fixture(autouse=True)
def _silent() -> Any:
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    yield
    optuna.logging.set_verbosity(verbosity)


def _lacks(make: Callable[[], Any]) -> None:
    """Skips where a package that a sampler stands on is not installed, which hasten says in a line."""
    from hasten.search.samplers import checked_sampler

    try:
        checked_sampler(make())
    except HastenError as error:
        pytest.skip(str(error))


@pytest.fixture(params=samplers())
def sampler(request: pytest.FixtureRequest) -> str:
    _lacks(lambda: make_sampler(request.param, SPACE, 0))
    return str(request.param)


def test_a_study_of_hasten(sampler: str) -> None:
    with expected(sampler, "study", PAGE):
        study = Study()
        first = study.run(PROBLEM, sampler=sampler, trials=6, seed=0)
        more = study.run(PROBLEM, sampler=sampler, trials=9, seed=0)
        assert more.trials[:6] == first.trials
        assert all(SPACE.validate(t.params) == t.params for t in more.trials)


def test_several_threads(sampler: str) -> None:
    with expected(sampler, "threads", PAGE):
        study = optuna.create_study(sampler=make_sampler(sampler, SPACE, 0))
        study.optimize(_cost, n_trials=14, n_jobs=2)
        assert [t.state.name for t in study.trials] == ["COMPLETE"] * 14


def test_a_part_of_a_point(sampler: str) -> None:
    with expected(sampler, "enqueued", PAGE):
        study = optuna.create_study(sampler=make_sampler(sampler, SPACE, 0))
        for fixed in ({"n": 5}, {"kind": "b"}, {"n": 1, "size": 2, "kind": "a"}):
            study.enqueue_trial(fixed)
        study.optimize(_cost, n_trials=4)
        assert study.trials[0].params["n"] == 5
        assert study.trials[1].params["kind"] == "b"
        assert SPACE.from_trial(study.trials[2].params) == {"n": 1, "size": 4, "kind": "a"}


def test_trials_that_end_early(sampler: str) -> None:
    def ends(trial: Any) -> float:
        cost = _cost(trial)
        if trial.number % 3 == 1:
            raise optuna.TrialPruned
        if trial.number % 3 == 2:
            raise ValueError
        return cost

    with expected(sampler, "ended", PAGE):
        study = optuna.create_study(sampler=make_sampler(sampler, SPACE, 0), pruner=optuna.pruners.NopPruner())
        study.optimize(ends, n_trials=9, catch=ValueError)
        assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "FAIL"] * 3


@pytest.mark.slow_except(every=3)
def test_a_storage_of_optunas(sampler: str, tmp_path: Path) -> None:
    with expected(sampler, "stored", PAGE):
        kept = optuna.storages.RDBStorage("sqlite://")
        for again in (0, 1):
            study = optuna.create_study(
                storage=kept, study_name="kept", load_if_exists=True, sampler=make_sampler(sampler, SPACE, again)
            )
            study.optimize(_cost, n_trials=3)
        assert len(study.trials) == 6
        kept.engine.dispose()


@pytest.mark.parametrize("name", OPTUNAS)
def test_samplers_of_optunas_in_a_study_of_hasten(name: str) -> None:
    _lacks(OPTUNAS[name])
    with expected(name, "taken", PAGE):
        found = Study().run(PROBLEM, sampler=OPTUNAS[name](), trials=12)
        assert len(found.trials) == 12


def test_a_continuous_space_is_searched_by_all_but_the_exhaustive() -> None:
    line = Problem("line", Space([real("x", 0.0, 1.0)]), (Objective("y"),), lambda p: {"y": float(p["x"])})
    for name in ("random", "tpe", "genetic", "ppo-box"):
        assert len(Study().run(line, sampler=name, trials=4, seed=0).trials) == 4
    with pytest.raises(HastenError, match="infinitely many points"):
        Study().run(line, sampler="exhaustive", trials=4)
