"""Agents at equal samples, sweeps of their settings, and models in a simulator's place."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from hasten import spaces
from hasten.errors import HastenError
from hasten.search.agents.agent import Agent
from hasten.search.agents.registry import agents, make_agent
from hasten.search.environments import Log, environment, to_target
from hasten.search.exploring import SETTINGS, Explorer, Proxy, Sweep, better_setting, sweep
from hasten.search.parameter import integer
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Space
from hasten.spaces import dram

GOAL = to_target(power=1.0, time=2.5e-6)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    knobs = dram.space((1, 8), (8,), (16,))
    return Explorer(dram.problem("cloud-2", requests=200, knobs=knobs), GOAL)


def test_known_and_unknown_points_give_the_same_curve():
    """Values are kept by point: with and without, an agent goes the same way."""
    problem = dram.problem("random", requests=200)
    kept: dict = {}
    first, second, third = (
        Explorer(problem, GOAL, scores=scores).run(make_agent("multi-agent", (4, 3, 3, 8, 2, 2, 4, 4, 3, 8), 0), 60)
        for scores in (kept, kept, {})
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    assert 0 < len(kept) <= 60


def test_everything_is_the_best_there_is(explorer):
    best = explorer.everything()
    points = [explorer.codec.encode(p) for p in explorer.problem.space.enumerate()]
    assert len(points) == explorer.problem.space.size == len(explorer.scores)
    assert best == max(map(explorer.reward, points))
    with pytest.raises(HastenError, match="more than"):
        Explorer(dram.problem("stream"), GOAL).everything()


def _tabled(seed: int, conditions: bool = False) -> Problem:
    """72 points: a sum of random tables of neighbouring parameters, so that none is good by itself (Kauffman's NK)."""
    sizes = (4, 3, 3, 2)
    rng = np.random.default_rng(seed)
    tables = [rng.random((n, sizes[(i + 1) % 4])) for i, n in enumerate(sizes)]
    when = [None, None, None, {"p0": [0, 1]} if conditions else None]
    space = Space([integer(f"p{i}", 0, n - 1, when=when[i]) for i, n in enumerate(sizes)])

    def evaluate(params):
        at = [int(params.get(f"p{i}", 0)) for i in range(4)]
        if conditions and at[1] == 2:
            raise Infeasible("no 2")
        return {"cost": -float(sum(t[at[i], at[(i + 1) % 4]] for i, t in enumerate(tables)))}

    return Problem("tables", space, (Objective("cost"),), evaluate)


@pytest.mark.parametrize("name", agents())
def test_an_agent_with_as_many_samples_as_points_tries_each_once(name):
    """No agent is then worse than random search: what is known is told again, and not counted."""
    problem, log = _tabled(0, conditions=True), Log()
    explorer = Explorer(problem, lambda v: -v["cost"])
    rewards = explorer.run(make_agent(name, explorer.codec.sizes, 0), 10**4, log, distinct=True)
    assert len(rewards) == problem.space.size == 54
    tried = [{k.removeprefix("param."): v for k, v in row.items() if k.startswith("param.")} for row in log.rows]
    assert {problem.space.key(p) for p in tried} == {problem.space.key(p) for p in problem.space.enumerate()}
    assert rewards.max() == explorer.everything()


@pytest.mark.parametrize("name", agents())
def test_an_agent_with_half_as_many_samples_is_no_worse_than_chance(name):
    """m of N points drawn without repetition leave (N - m) / (m + 1) better than their best, on average.

    That count is about geometric, its spread below sqrt(2); over 20 landscapes its mean is within 3 of its standard
    errors, 0.95, of the 0.97 of random search. Agents may be better.
    """
    better = []
    for seed in range(20):
        explorer = Explorer(_tabled(seed), lambda v: -v["cost"])
        best = explorer.run(make_agent(name, explorer.codec.sizes, seed), 36, distinct=True).max()
        every = [explorer.reward(p) for p in np.ndindex(explorer.codec.sizes)]
        better.append(sum(r > best for r in every))
    assert np.mean(better) <= 36 / 37 + 3 * math.sqrt(2 / 20)


def test_points_asked_for_again_count_unless_told_otherwise():
    class Stubborn(Agent):
        asked = 0

        def ask(self):
            self.asked += 1
            return (0, 0, 0, 0)

        def _learn(self, point, reward, metrics):
            pass

    explorer = Explorer(_tabled(0), lambda v: -v["cost"])
    agent = Stubborn(explorer.codec.sizes)
    assert len(set(explorer.run(agent, 12))) == 1
    assert agent.asked == 12
    fresh = Explorer(_tabled(0), lambda v: -v["cost"])
    agent = Stubborn(fresh.codec.sizes)
    assert len(fresh.run(agent, 12, distinct=True)) == len(fresh.scores) == 12
    assert agent.asked == 1 + 11 * 5


def test_every_agent_is_swept_with_as_many_settings_at_the_same_samples(explorer):
    assert {len(s) for s in SETTINGS.values()} == {12}
    assert set(SETTINGS) == {"random-walk", "genetic", "ants", "parzen", "ppo"}
    log, shares = Log(), []
    found = sweep(explorer, "ants", (10, 40), seeds=(0, 1), log=log, progress=shares.append)
    assert found.best.shape == (12, 2, 2)
    assert len(log.rows) == 12 * 2 * 40
    assert (found.best[..., 1] >= found.best[..., 0]).all()
    assert found.tuned(40) <= explorer.everything()
    assert found.spread(10) >= 0
    assert shares[-1] == 1
    for name, settings in SETTINGS.items():
        for setting in settings:
            make_agent(name, (2, 2), 0, **setting)


def test_a_spread_is_that_of_settings_and_not_of_seeds():
    rng = np.random.default_rng(0)
    noise = 1 + rng.random((12, 3, 1))
    seeds_alone = Sweep("any", noise, (50,))
    assert np.subtract(*np.percentile(noise, [75, 25])) / np.median(noise) > 0.25
    assert seeds_alone.spread(50) < 0.2
    assert seeds_alone.chance(50) > 0.05
    settings = Sweep("any", np.linspace(1, 2, 12)[:, None, None] + 0.01 * noise, (50,))
    assert settings.spread(50) == pytest.approx(0.5 / 1.5, rel=0.05)
    assert settings.chance(50) == 0
    assert Sweep("any", np.linspace(1, 2, 12)[:, None, None], (50,)).chance(50) == 1


def test_agents_are_told_apart_beyond_seeds():
    rng = np.random.default_rng(1)
    noise = rng.random((12, 5, 1))
    better, same = Sweep("a", noise + 0.5, (50,)), Sweep("b", rng.random((12, 5, 1)), (50,))
    assert better.beyond_noise(same, 50) > 2
    assert same.beyond_noise(better, 50) < -2
    assert abs(Sweep("c", rng.random((12, 5, 1)), (50,)).beyond_noise(same, 50)) < 2
    assert same.beyond_noise(same, 50) == 0
    one = Sweep("d", noise[:, :1], (50,))
    assert one.beyond_noise(Sweep("e", noise[:, 1:2], (50,)), 50) == 0


def test_a_forest_is_more_than_one_tree_and_explains_more():
    ensemble = pytest.importorskip("sklearn.ensemble")
    tree = pytest.importorskip("sklearn.tree")
    # A measure that is not the same twice: what a single tree learns by heart, many even out.
    space = Space([integer(n, 0, 7) for n in "abcd"])
    rng, known, asked = random.Random(0), slice(0, 400), slice(400, None)
    points = [space.sample(rng) for _ in range(700)]
    values = [{"power": 10 + p["a"] * p["b"] / 7 - p["c"] + rng.gauss(0, 1.5)} for p in points]
    proxy = Proxy(space, ("power",), trees=40).fit(points[known], values[known])
    x = proxy.features(points)
    forest = proxy._forests["power"]
    alone = np.array([t.predict(x[asked]) for t in forest.estimators_])
    assert alone.std(0).mean() > 0  # repeated trees agree everywhere
    y = np.array([v["power"] for v in values])

    def determination(model):
        return float(1 - np.mean((model.fit(x[known], y[known]).predict(x[asked]) - y[asked]) ** 2) / y[asked].var())

    ours = proxy.determination(points[asked], values[asked])["power"]
    assert ours > determination(tree.DecisionTreeRegressor(random_state=0)) + 0.08
    peer = ensemble.RandomForestRegressor(40, max_features=0.7, random_state=0)
    assert ours == pytest.approx(determination(peer), abs=5e-3)  # ties fall otherwise: values are scaled


def test_a_proxy_comes_near_what_it_learned_and_stands_in():
    pytest.importorskip("sklearn")
    problem = dram.problem("cloud-2", requests=200)
    rng = random.Random(0)
    points = list({problem.space.key(p): p for p in (problem.space.sample(rng) for _ in range(400))}.values())
    values = [problem.score(p)[0] for p in points]
    proxy = Proxy(problem.space, ("time", "power", "energy"), logarithm=("time",), trees=10).fit(points, values)
    # Each tree has seen two thirds of the points: the forest comes near them, nearer than to others.
    fresh = [problem.space.sample(rng) for _ in range(200)]
    errors = proxy.errors(fresh, [problem.score(p)[0] for p in fresh])
    assert 0 < max(errors.values()) < 0.5
    assert all(e < errors[n] for n, e in proxy.errors(points, values).items())
    # In the simulator's place: the same units, the same environment.
    stand_in = proxy.problem(problem)
    assert [o.unit for o in stand_in.objectives] == [o.unit for o in problem.objectives]
    assert stand_in.fingerprint != problem.fingerprint
    pytest.importorskip("gymnasium")
    true, model = environment(problem, fitness=GOAL), environment(stand_in, fitness=GOAL)
    action = Explorer(problem, GOAL).codec.encode(points[0])
    true.reset()
    model.reset()
    np.testing.assert_allclose(true.step(action)[0], model.step(action)[0], rtol=0.5)


def test_a_proxy_learns_from_a_log():
    pytest.importorskip("sklearn")
    problem = dram.problem("stream", requests=200)
    explorer, log = Explorer(problem, GOAL), Log()
    explorer.run(make_agent("random-walk", explorer.codec.sizes, 0), 100, log)
    proxy = Proxy(problem.space, ("time",), trees=5).fit_log(log)
    assert proxy.predict([problem.space.sample(0)])[0]["time"] > 0
    with pytest.raises(HastenError, match="call fit first"):
        Proxy(problem.space, ("time",)).predict([])
    with pytest.raises(HastenError, match="cannot learn time"):
        Proxy(problem.space, ("time",)).fit([problem.space.sample(0)], [{"time": float("nan")}])
    with pytest.raises(HastenError, match="needs points"):
        Proxy(problem.space, ("time",)).fit_log(Log())


def test_the_setting_counts_whose_last_samples_pay_most(explorer):
    settings = ({"mutation": 0.05}, {"mutation": 0.9})
    found = better_setting(explorer, "genetic", settings, 40, (0, 1), last=10, population=8)
    each = [better_setting(explorer, "genetic", [one], 40, (0, 1), population=8) for one in settings]
    assert found.shape == (2, 40)
    best = max(each, key=lambda rewards: rewards[:, -10:].mean())
    np.testing.assert_array_equal(found, best)


def _pipeline(space, names, seed, **forest):
    """scikit-learn's own forest behind its own encoders: the same method, none of our code."""
    compose, ensemble, preprocessing = (
        pytest.importorskip(f"sklearn.{part}") for part in ("compose", "ensemble", "preprocessing")
    )
    pipeline = pytest.importorskip("sklearn.pipeline")
    words = [i for i, p in enumerate(space) if any(isinstance(v, str | bool) for v in p.values())]
    numbers = [i for i in range(len(names)) if i not in words]
    return compose.TransformedTargetRegressor(
        pipeline.make_pipeline(
            compose.ColumnTransformer(
                [("words", preprocessing.OneHotEncoder(handle_unknown="ignore"), words),
                 ("numbers", preprocessing.MinMaxScaler(), numbers)]
            ),
            ensemble.RandomForestRegressor(40, random_state=seed, **forest),
        ),
        func=np.log, inverse_func=np.exp,
    )  # fmt: skip


def test_the_forest_of_a_memory_controller_explains_as_much_as_scikit_learns_own():
    """The data of archgym's proxies: points that agents tried, judged on points drawn evenly."""
    problem = dram.problem("cloud-1", requests=500)
    explorer = Explorer(problem, to_target(power=1.0, time=2.5e-6))
    mixed = Log()
    for seed, agent in enumerate(("ants", "genetic", "random-walk")):
        explorer.run(make_agent(agent, explorer.codec.sizes, seed), 500, mixed)
    rng = random.Random(99)
    points = [problem.space.sample(rng) for _ in range(800)]
    truth = [problem.score(p)[0] for p in points]
    names = [p.name for p in problem.space]
    rows = [[p[n] for n in names] for p in points]

    def explained(model, log, value):
        x = np.array([[r[f"param.{n}"] for n in names] for r in log.rows], object)
        y = np.array([r[f"value.{value}"] for r in log.rows])
        true = np.array([t[value] for t in truth])
        left = model.fit(x, y * 1e6).predict(np.array(rows, object)) / 1e6 - true
        return float(1 - np.mean(left**2) / true.var())

    values = ("time", "power", "energy")
    ours = Proxy(problem.space, values, logarithm=values, trees=40).fit_log(mixed).determination(points, truth)
    for value in values:
        theirs = explained(_pipeline(problem.space, names, 0, max_features=0.7), mixed, value)
        default = explained(_pipeline(problem.space, names, 0), mixed, value)
        assert ours[value] == pytest.approx(theirs, abs=0.02)
        assert ours[value] == pytest.approx(default, abs=0.02)
        assert ours[value] > 0.9


def test_the_forest_of_a_mapper_explains_far_more_than_one_tree():
    ensemble = pytest.importorskip("sklearn.ensemble")
    problem = spaces.build("mapper")
    rng, points, values = random.Random(0), [], []
    while len(points) < 900:
        point = problem.space.sample(rng)
        try:
            values.append(problem.score(point)[0])
        except Infeasible:
            continue
        points.append(point)
    proxy = Proxy(problem.space, ("energy",), trees=40)
    ours = proxy.fit(points[:500], values[:500]).determination(points[500:], values[500:])["energy"]
    x, y = proxy.features(points), np.array([v["energy"] for v in values]) * 1e6

    def explained(**forest):
        model = ensemble.RandomForestRegressor(40, random_state=1, **forest).fit(x[:500], y[:500])
        return 1 - np.mean((model.predict(x[500:]) - y[500:]) ** 2) / y[500:].var()

    assert ours == pytest.approx(np.mean([explained(max_features=0.7), explained()]), abs=0.06)
    assert ours > explained(bootstrap=False) + 0.1
