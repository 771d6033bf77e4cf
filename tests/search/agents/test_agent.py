"""Agents: each finds the best of a separable space, the same with the same seed; as samplers of a study too."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from hasten.errors import HastenError
from hasten.search import Infeasible, Objective, Problem, Space, Study, categorical, integer, real
from hasten.search.agents import registry
from hasten.search.agents.agent import Agent, AntColony, Genetic, RandomWalk
from hasten.search.agents.policies import Continuous, Multi, Single, SoftActorCritic, TimeDivision, _Learner
from hasten.search.agents.registry import agents, make_agent
from hasten.search.agents.sampler import AgentSampler
from hasten.search.codec import Codec
from hasten.search.samplers import describe, make_sampler, register, samplers

make_agent("ppo", [2])  # the policies are known from here on
NAMES = list(agents())
SIZES = (4, 3, 3, 2)
LEARNERS = {"ppo", "reinforce", "multi-agent", "ppo-box", "sac-box", "time-division"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks this small only wait for each other
    yield
    torch.set_num_threads(threads)


def worths(sizes, seed):
    rng = np.random.default_rng(seed)
    return [rng.permutation(n) / max(1, n - 1) for n in sizes]


def explore(agent: Agent, worth, samples, metrics=3):
    points = []
    for _ in range(samples):
        point = agent.ask()
        assert len(point) == len(worth)
        assert all(0 <= i < len(w) for i, w in zip(point, worth, strict=True))
        reward = float(sum(w[i] for w, i in zip(worth, point, strict=True)))
        agent.tell(point, reward, [reward] * metrics)
        points.append(point)
    return points


def options(name):
    return {"rate": 1e-2, "batch": 16, "entropy": 0.1} if name in LEARNERS else {}


@pytest.mark.slow_except(every=3)
@pytest.mark.parametrize("name", NAMES)
def test_finds_the_best_of_a_separable_space_with_200_samples(name):
    found = []
    for seed in (1, 2):
        worth = worths(SIZES, seed)
        agent = make_agent(name, SIZES, seed, **options(name))
        explore(agent, worth, 200)
        found.append(agent.best == tuple(int(w.argmax()) for w in worth))
    assert all(found)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_takes_the_same_way(name):
    worth = worths(SIZES, 3)
    first, second, other = (explore(make_agent(name, SIZES, seed, **options(name)), worth, 40) for seed in (5, 5, 6))
    assert first == second
    assert first != other


@pytest.mark.parametrize("name", NAMES)
def test_takes_what_is_no_number_and_points_of_others(name):
    agent = make_agent(name, SIZES, 0, **options(name))
    for i in range(60):
        point = agent.ask()
        agent.tell(point, -math.inf if i % 3 else 1.0, [math.nan, math.inf])
        agent.tell((0, 0, 0, 0), 0.5, ())
    assert agent.best_reward == 1.0


def test_bad_options_are_one_line():
    for name, given, match in [
        ("witch", {}, "no agent 'witch'"),
        ("ants", {"legs": 6}, "legs"),
        ("ants", {"ants": 0}, "ants from 1"),
        ("ants", {"start": 2.0}, "a start above 0"),
        ("genetic", {"population": 1}, "population of 2"),
        ("genetic", {"mutation": math.nan}, "chances from 0 to 1"),
        ("random-walk", {"back": 2}, "back from 0 to 1"),
        ("parzen", {"share": 0}, "share between"),
        ("ppo", {"rate": 0}, "positive rate"),
        ("multi-agent", {"algorithm": "magic"}, "ppo or reinforce"),
    ]:
        with pytest.raises(HastenError, match=match) as caught:
            make_agent(name, SIZES, 0, **given)
        assert "\n" not in str(caught.value)
    for sizes in ([], [3, 0]):
        with pytest.raises(HastenError, match="at least one parameter"):
            RandomWalk(sizes)


def test_a_walk_changes_as_many_as_it_is_told():
    walk = RandomWalk((50,) * 6, 0, change=2)
    points = explore(walk, [np.zeros(50)] * 6, 50)
    steps = [sum(a != b for a, b in zip(p, q, strict=True)) for p, q in itertools.pairwise(points)]
    assert max(steps) <= 2
    assert np.mean(steps) > 1.8


def test_the_best_of_a_generation_stays():
    agent = Genetic((9,) * 5, 0, population=6, mutation=0.5)
    explore(agent, worths((9,) * 5, 0), 100)
    assert any(point == agent.best for _, point in agent.parents)


def test_ants_follow_what_was_strong():
    colony = AntColony((6,) * 4, 0, ants=4, evaporation=0.3, greediness=0.0)
    worth = worths((6,) * 4, 1)
    late = explore(colony, worth, 400)[-100:]
    best = [int(w.argmax()) for w in worth]
    # Drawn by strength alone, at most 1 / (1 + 5 * 0.1) of the ants have the best of six values; by chance, a sixth.
    assert 3 / 6 < np.mean([[i == b for i, b in zip(p, best, strict=True)] for p in late]) < 1 / 1.5


def test_pheromone_stays_between_start_and_deposit():
    """What keeps values in reach that no good ant has had yet."""
    colony = AntColony((6,) * 4, 0, ants=2, evaporation=0.5)
    explore(colony, worths((6,) * 4, 1), 400)
    trail = np.concatenate(colony.trail)
    assert trail.min() >= colony.start
    assert trail.max() <= colony.deposit


def test_a_child_has_about_one_mutation_whatever_the_parameters():
    for count in (4, 25):
        agent = Genetic((1000,) * count, 0, population=2)
        for point in ((1,) * count,) * 2:
            agent.tell(point, 0.0)
        changed = [sum(v != 1 for v in agent._child()) for _ in range(500)]
        assert np.mean(changed) == pytest.approx(1.0, abs=0.2)


# -- policies ----------------------------------------------------------------------------------------


def test_greedy_actions_are_each_parameters_own_best():
    sizes = (5, 4, 3)
    worth = worths(sizes, 4)
    agent = Multi(sizes, 0, rate=1e-2, batch=32, entropy=0.1)
    explore(agent, worth, 1300)
    assert agent.greedy() == tuple(int(w.argmax()) for w in worth)


def test_with_one_parameter_many_agents_are_one_policy():
    worth = worths((6,), 0)
    one, many = Single((6,), 3, batch=8), Multi((6,), 3, batch=8)
    assert explore(one, worth, 200) == explore(many, worth, 200)
    for a, b in zip(one.actors.parameters(), many.actors.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_learners_share_nothing():
    agent = Multi((4, 3, 2), 0)
    observation = torch.randn(5, 3)
    for chosen in range(3):
        agent.optimizer.zero_grad()
        agent.actors(observation)[chosen].sum().backward()
        for parameter in agent.actors.parameters():
            assert parameter.grad is not None
            touched = parameter.grad.flatten(1).abs().sum(1) > 0
            assert touched.tolist() == [i == chosen for i in range(3)]
    assert agent.critics.weights[0].shape[0] == 3
    assert Multi((4, 3, 2), 0, central=True).critics.weights[0].shape[0] == 1


def test_unclipped_the_gradient_of_a_joint_policy_is_that_of_many():
    """Before the first step all ratios are 1: sums of log-chances make both losses' gradients the same."""
    agent = Multi((4, 3, 2), 0, clip=1e9)
    observation = torch.randn(16, 3)
    choices = torch.stack([torch.randint(n, (16,)) for n in agent.sizes])
    advantage = torch.randn(16)

    def gradient(policy_loss):
        agent.optimizer.zero_grad()
        logits = agent._logits(observation).log_softmax(-1)
        now = logits.gather(-1, choices[..., None])[..., 0]
        policy_loss(agent, now, now.detach(), advantage).mean(-1).sum().backward()
        return [p.grad.clone() for p in agent.actors.parameters()]

    for a, b in zip(gradient(Multi._policy_loss), gradient(_joint_loss), strict=True):
        torch.testing.assert_close(a, b)


def _joint_loss(agent, now, before, advantage):
    return Multi._policy_loss(agent, now.sum(0, keepdim=True), before.sum(0, keepdim=True), advantage)


def test_own_ratios_are_clipped_and_not_that_of_the_whole():
    many, one = Multi((2, 2), 0), Single((2, 2), 0)
    before = torch.zeros(2, 1)
    # One has moved far beyond the clip, the other has not: alone the second still learns.
    for agent, learns in ((many, [False, True]), (one, [False, False])):
        now = torch.tensor([[0.9], [0.05]], requires_grad=True)
        agent._policy_loss(now, before, torch.ones(1)).sum().backward()
        assert [bool(g != 0) for g in now.grad[:, 0]] == learns


def test_rounding_reaches_three_values_only():
    rounded, whole = Continuous((8, 4), 0, rounded=True), Continuous((8, 4), 0)
    with torch.no_grad():
        rounded.spread.fill_(1.0)
        whole.spread.fill_(1.0)
    seen = {agent: set(explore(agent, worths((8, 4), 0), 400)) for agent in (rounded, whole)}
    assert {p[0] for p in seen[rounded]} == {0, 4, 7}
    assert {p[1] for p in seen[rounded]} == {0, 2, 3}
    assert {p[0] for p in seen[whole]} == set(range(8))
    sac = SoftActorCritic((8, 4), 0, rounded=True)
    assert {p[0] for p in explore(sac, worths((8, 4), 0), 30)} <= {0, 4, 7}


def test_time_division_sets_one_parameter_at_a_time():
    agent = TimeDivision((9, 9, 9), 0)
    points = explore(agent, worths((9, 9, 9), 0), 30)
    for i, (p, q) in enumerate(itertools.pairwise(points), 1):
        assert all(a == b for j, (a, b) in enumerate(zip(p, q, strict=True)) if j != i % 3)


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_learners_come_to_prefer_what_pays(name):
    worth = worths((4, 4), 2)
    agent = make_agent(name, (4, 4), 0, **(options(name) | {"entropy": 0.02}))
    assert isinstance(agent, _Learner)
    points = explore(agent, worth, 500)
    paid = [sum(w[i] for w, i in zip(worth, p, strict=True)) for p in points]
    assert np.mean(paid[-100:]) > np.mean(paid[:50]) + 0.25


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_metrics_of_the_point_before_lead_to_nothing(name):
    """A policy that saw them could be pinned out of range by one bad sample, and stay there."""
    worth = worths(SIZES, 1)
    plain, wild = (make_agent(name, SIZES, 3, **options(name)) for _ in range(2))
    points = []
    for i in range(80):
        for agent, metrics in ((plain, ()), (wild, (1e30, math.nan, -(10.0**i)))):
            points.append(agent.ask())
            agent.tell(points[-1], float(sum(w[j] for w, j in zip(worth, points[-1], strict=True))), metrics)
    assert points[::2] == points[1::2]


def test_what_has_converged_stays_so():
    """Independent learners on separable tables: none of the seeds loses a tenth of what it had reached."""
    sizes = (4, 3, 3, 4)
    for seed in range(4):
        worth = worths(sizes, seed)
        agent = Multi(sizes, seed, rate=1e-2)
        points = explore(agent, worth, 1600)
        paid = np.array([sum(w[i] for w, i in zip(worth, p, strict=True)) for p in points])
        means = paid.reshape(-1, 100).mean(1)
        assert means[-1] > 0.9 * means.max()
        assert means[-1] > 0.9 * len(sizes)


def test_an_agent_and_the_environment_begin_alike():
    """The observation that a policy of hasten chooses by is that of the one-step environment, at each point."""
    gymnasium = pytest.importorskip("gymnasium")
    assert gymnasium
    from hasten.search.environments import environment

    problem = _problem(objectives=("far", "large", "limit"))
    env = environment(problem)
    agent = make_agent("multi-agent", Codec(problem.space).sizes, 0)
    for _ in range(5):
        observation, _ = env.reset()
        np.testing.assert_array_equal(agent._observation().numpy(), observation)
        point = agent.ask()
        metrics, reward, terminated, _, info = env.step(np.array(point))
        assert terminated
        assert Codec(problem.space).encode(info["params"]) == point
        agent.tell(point, reward, metrics)


# -- coding ------------------------------------------------------------------------------------------

CONDITIONAL = Space(
    [
        categorical("kind", ["a", "b", None]),
        integer("wide", 2, 10, step=2, when={"kind": "a"}),
        real("share", 0.1, 10.0, log=True, when={"kind": ["a", "b"]}),
        integer("count", 1, 3),
    ]
)


def test_points_and_indices_are_the_same_thing():
    codec = Codec(CONDITIONAL, bins=5)
    assert codec.sizes == (3, 5, 5, 3)
    points = [codec.decode(p) for p in np.ndindex(codec.sizes)]
    for point in points:
        assert codec.decode(codec.encode(point)) == point
        assert CONDITIONAL.validate(point) == point
        assert ("wide" in point) == (point["kind"] == "a")
    assert len({tuple(p.items()) for p in points}) == 3 * (5 * 5 + 5 + 1)
    with pytest.raises(HastenError, match="kind = 'c' is not among"):
        codec.encode({"kind": "c", "count": 1})


def test_coordinates_are_the_middle_of_their_bins():
    codec = Codec(CONDITIONAL, bins=5)
    for point in np.ndindex(codec.sizes):
        assert codec.bin(codec.center(point)) == point
    assert codec.bin([-1, 1, 5, -math.inf]) == (0, 4, 4, 0)
    assert codec.bin([-0.4, 0.4, 0.6, 0], rounded=True) == (1, 2, 4, 1)
    for wrong in ([math.nan, 0, 0, 0], [0, 0, 0]):
        with pytest.raises(HastenError, match="4 coordinates"):
            codec.bin(wrong)


# -- as samplers -------------------------------------------------------------------------------------


def _problem(evaluate=None, objectives=("far",), constraints=()):
    space = Space([integer("x", 0, 9), integer("y", 0, 9), categorical("z", ["p", "q"])])

    def plain(params):
        far = (params["x"] - 3) ** 2 + (params["y"] - 8) ** 2 + (params["z"] == "q")
        return {"far": far, "large": params["x"] + params["y"], "limit": params["x"] - 5}

    return Problem("bowl", space, tuple(Objective(o) for o in objectives), evaluate or plain, constraints)


@pytest.mark.parametrize("name", NAMES)
def test_every_agent_samples_a_study(name):
    problem = _problem()
    result = Study().run(problem, sampler=name, trials=30, seed=0)
    assert len(result.trials) == 30
    assert all(problem.space.validate(t.params) == t.params for t in result.trials)


def test_a_study_goes_on_where_its_agent_left_off(tmp_path):
    path, problem = tmp_path / "s.db", _problem()
    first = Study(path).run(problem, sampler="genetic", trials=8, seed=0)
    told = []

    class Listening(Genetic):
        def _learn(self, point, reward, metrics):
            told.append((point, reward))
            super()._learn(point, reward, metrics)

    sampler = AgentSampler(problem.space, Listening(Codec(problem.space).sizes, 0))
    more = Study(path).run(problem, sampler=sampler, trials=12)
    assert [t.params for t in more.trials[:8]] == [t.params for t in first.trials]
    codec = Codec(problem.space)
    # What a sampler chose again it is told again.
    assert list(dict.fromkeys(told))[:12] == [(codec.encode(t.params), -t.values["far"]) for t in more.trials]


@pytest.mark.parametrize("name", ["genetic", "ants", "parzen"])
def test_an_agent_beats_chance_in_a_study(name):
    def best(sampler):
        return sum(Study().run(_problem(), sampler=sampler, trials=40, seed=s).best().values["far"] for s in range(4))

    assert best(name) <= best("random")


def test_what_cannot_be_had_or_breaks_a_limit_is_paid_least():
    paid = {}

    class Listening(RandomWalk):
        def _learn(self, point, reward, metrics):
            paid[point] = reward

    def evaluate(params):
        if params["z"] == "q":
            raise Infeasible("no q")
        return {"far": params["x"], "large": params["y"], "limit": params["x"] - 5}

    problem = _problem(evaluate, ("far", "large"), ("limit",))
    codec = Codec(problem.space)
    result = Study().run(problem, sampler=AgentSampler(problem.space, Listening(codec.sizes, 0)), trials=40)
    assert {t.feasible for t in result.trials} == {True, False}
    good = [paid[codec.encode(t.params)] for t in result.trials[20:] if t.feasible]
    bad = [paid[codec.encode(t.params)] for t in result.trials[20:] if not t.feasible]
    assert max(bad) < min(good)
    assert result.pareto()


def test_what_is_not_finite_does_not_set_the_scale():
    paid = []

    class Listening(RandomWalk):
        def _learn(self, point, reward, metrics):
            paid.append(reward)

    def evaluate(params):
        return {"far": math.inf if params["z"] == "q" else params["x"], "large": params["y"], "limit": 0}

    for objectives in (("far",), ("far", "large")):
        problem = _problem(evaluate, objectives)
        codec = Codec(problem.space)
        paid.clear()
        result = Study().run(problem, sampler=AgentSampler(problem.space, Listening(codec.sizes, 0)), trials=40)
        worst = [math.isinf(t.values["far"]) for t in result.trials]
        assert 0 < sum(worst) < 40
        assert min(paid) > -100
        assert len(set(paid)) > 5


def test_an_agent_of_another_space_is_refused():
    with pytest.raises(HastenError, match="another space"):
        AgentSampler(_problem().space, RandomWalk((2, 2)))


def test_agents_are_told_without_being_loaded():
    """Names come from the folder's source: nothing that needs torch is imported for them."""
    told = subprocess.run(
        [sys.executable, "-c", "import sys; from hasten.search.agents.registry import agents; print(*agents());"
         "assert 'hasten.search.agents.policies' not in sys.modules"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert {"ants", "genetic", "ppo", "sac-box"} <= set(told.stdout.split())


def test_an_agent_of_one_s_own_is_a_sampler_too(monkeypatch):
    monkeypatch.setattr(registry, "_makers", dict(registry._makers))
    monkeypatch.setattr(registry, "_about", dict(registry._about))

    @registry.register_agent("first", "agent: always the first")
    class First(Agent):
        def ask(self):
            return (0,) * len(self.sizes)

        def _learn(self, point, reward, metrics):
            pass

    assert make_agent("first", (3, 2)).ask() == (0, 0)
    assert "first" in samplers()
    assert describe("first") == "agent: always the first"
    made = make_sampler("first", Space([categorical("x", [1, 2])]), 0)
    assert isinstance(made.agent, First)
    with pytest.raises(HastenError, match="already there"):
        registry.register_agent("first", "another")(RandomWalk)
    with pytest.raises(HastenError, match="already there"):
        register("first")(lambda space, seed: None)
