"""Problems as environments and environments as problems."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import warnings

import numpy as np
import pytest

from hasten import spaces
from hasten.errors import HastenError
from hasten.search import Infeasible, Objective, Problem, Space, Study, categorical, integer
from hasten.search.agents.registry import make_agent
from hasten.search.codec import Codec
from hasten.search.environments import (
    CAP,
    Log,
    as_problem,
    environment,
    parallel_environment,
    to_budget,
    to_target,
)
from hasten.search.exploring import Explorer
from hasten.spaces import dram, register_environments

gymnasium = pytest.importorskip("gymnasium")

GOAL = to_target(power=1.0, time=2.5e-6)
FORMS = ("indices", "box", "box-rounded", "turns", "discrete")


@pytest.fixture(scope="module")
def memory() -> Problem:
    return dram.problem("cloud-2", requests=200)


def _bowl() -> Problem:
    space = Space([integer("x", 0, 4), categorical("kind", ["a", "b"]), integer("y", 1, 3, when={"kind": "b"})])

    def evaluate(params):
        if params["x"] == 4:
            raise Infeasible("too far")
        return {"cost": (params["x"] - 2) ** 2 + params.get("y", 9)}

    return Problem("bowl", space, (Objective("cost"),), evaluate)


@pytest.mark.parametrize("actions", FORMS)
@pytest.mark.parametrize("steps", [None, 3])
def test_gymnasiums_own_check(memory, actions, steps):
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spaces without bounds
        check_env(environment(memory, fitness=GOAL, actions=actions, steps=steps), skip_render_check=True)


@pytest.mark.parametrize("name", ["dram", "mapper", "soc"])
def test_known_spaces_are_registered(name):
    assert f"hasten/{name}-v0" in register_environments()
    env = gymnasium.make(f"hasten/{name}-v0").unwrapped
    env.action_space.seed(0)
    seen = [(env.reset(seed=0), env.step(env.action_space.sample()))[1] for _ in range(20)]
    assert all(s[0].shape == env.observation_space.shape and np.isfinite(s[0]).all() for s in seen)


@pytest.mark.parametrize("actions", FORMS)
def test_the_same_seed_gives_the_same_trajectory(memory, actions):
    def walk():
        env = environment(memory, fitness=GOAL, actions=actions, steps=20)
        env.action_space.seed(4)
        env.reset(seed=4)
        return [env.step(env.action_space.sample())[:2] for _ in range(20)]

    for (a, x), (b, y) in zip(walk(), walk(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert x == y


def test_a_step_depends_on_its_action_alone(memory):
    env = environment(memory, fitness=GOAL, steps=100)
    env.reset(seed=0)
    env.action_space.seed(1)
    action = env.action_space.sample()
    first = env.step(action)
    for _ in range(5):
        env.step(env.action_space.sample())
    again = env.step(action)
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1] == again[1]
    cost = first[4]["values"]
    assert cost["energy"] == pytest.approx(cost["power"] * cost["time"], rel=1e-9)
    assert first[1] == GOAL(cost)


def test_what_cannot_be_had_is_paid_the_penalty():
    env = environment(_bowl(), penalty=-50.0)
    env.reset()
    seen, reward, done, _, info = env.step([4, 0, 0])
    assert (reward, done, info["feasible"], seen.tolist()) == (-50.0, True, False, [0.0])
    env.reset()
    _, reward, _, _, info = env.step([2, 1, 2])
    assert info["params"] == {"x": 2, "kind": "b", "y": 3}
    assert reward == -3.0


@pytest.mark.parametrize("name", [n for n in spaces.names() if n in ("asic", "dram", "mapper", "soc")])
@pytest.mark.parametrize("scale", [1.0, 1e9, -1e9])
def test_what_cannot_be_had_is_paid_less_than_anything_before_it(name, scale):
    """By default, whatever fitness pays: designs that cannot be built are no way out for an agent."""
    problem = spaces.build(name)
    first = problem.objectives[0]
    env = environment(problem, fitness=lambda v: -scale * first.sign * v[first.name])
    env.action_space.seed(0)
    worst, seen = math.inf, 0
    for _ in range(150):
        env.reset()
        _, reward, _, _, info = env.step(env.action_space.sample())
        assert math.isfinite(reward)
        if info["feasible"]:
            worst = min(worst, reward)
        else:
            seen += 1
            assert reward < min(worst, 0)
    assert seen or name in ("dram", "asic")


@pytest.mark.parametrize("name", ["mapper", "soc"])
def test_random_actions_are_paid_more_for_any_design_that_can_be_built(name):
    env = environment(spaces.build(name))
    env.action_space.seed(0)
    paid = {True: [], False: []}
    for _ in range(300):
        env.reset()
        _, reward, _, _, info = env.step(env.action_space.sample())
        paid[info["feasible"]].append(reward)
    assert max(paid[False]) < min(paid[True])


def _limited() -> Problem:
    def evaluate(params):
        if params["x"] == 9:
            raise Infeasible("too far")
        return {"y": -1e6 if params["x"] == 8 else float(params["x"]), "over": 5.0 - params["x"]}

    return Problem("c", Space([integer("x", 0, 9)]), (Objective("y", "maximize"),), evaluate, constraints=("over",))


def test_a_broken_constraint_is_not_feasible_and_paid_by_how_far_it_is_broken():
    env = environment(_limited())

    def paid(x):
        env.reset()
        _, reward, _, _, info = env.step([x])
        return reward, info["feasible"]

    assert paid(5) == (5.0, True)
    broken = [paid(x) for x in range(5)]
    assert not any(feasible for _, feasible in broken)
    rewards = [reward for reward, _ in broken]
    assert rewards == sorted(rewards)
    assert paid(9)[0] < rewards[0] < rewards[-1] < 0
    # A worse design that can be built takes all of them further down.
    assert paid(8) == (-1e6, True)
    assert paid(4)[0] < -1e6
    fixed = environment(_limited(), penalty=-3.0)
    for x in (0, 4, 9):
        fixed.reset()
        assert fixed.step([x])[1] == -3.0


def test_agents_are_paid_as_environments_pay():
    problem = _limited()
    explorer, env = Explorer(problem, lambda v: v["y"]), environment(problem, fitness=lambda v: v["y"])
    for x in (3, 7, 9, 8, 0, 9):
        env.reset()
        assert explorer.reward((x,)) == env.step([x])[1]


def test_agents_learn_to_build_what_can_be_built():
    """With the default payment a policy ends at designs that can be had, where one paid 0 for others learned those."""
    problem = spaces.build("mapper")
    explorer = Explorer(problem, lambda v: -v[problem.objectives[0].name])
    rewards = explorer.run(make_agent("ppo", explorer.codec.sizes, 0, batch=32), 1500)
    feasible = rewards > -1
    assert feasible[-300:].mean() > feasible[:300].mean()


@pytest.mark.parametrize("actions", FORMS)
def test_a_limit_of_steps_cuts_off_and_what_ends_by_itself_terminates(memory, actions):
    limited = environment(memory, actions=actions, steps=3)
    limited.reset(seed=0)
    ends = [limited.step(limited.action_space.sample())[2:4] for _ in range(3)]
    assert ends == [(False, False)] * 2 + [(False, True)]
    whole = environment(memory, actions=actions)
    whole.reset(seed=0)
    ends = [whole.step(whole.action_space.sample())[2:4] for _ in range(10 if actions in ("turns", "discrete") else 1)]
    assert ends == [(False, False)] * (len(ends) - 1) + [(True, False)]
    for env in (limited, whole):
        with pytest.raises(HastenError, match="episode is over: call reset"):
            env.step(env.action_space.sample())
        env.reset()
        env.step(env.action_space.sample())
    with pytest.raises(HastenError, match="has not begun: call reset"):
        environment(memory, actions=actions).step(whole.action_space.sample())


OUTSIDE = {
    "indices": [
        np.full(10, -1),
        np.full(10, 0.7),
        np.full(10, 99),
        np.zeros(3, int),
        None,
        "no",
        [None] * 10,
        [2**70] * 10,
    ],
    "box": [np.full(10, 1.5), np.full(10, math.nan), np.full(10, -math.inf), np.zeros(9), None, ["a"] * 10],
    "turns": [np.array([1.5]), np.array([math.nan]), np.zeros(10), 0.5, None],
    "discrete": [-1, 99, 0.5, np.zeros(10, int), None, "no"],
}
OUTSIDE["box-rounded"] = OUTSIDE["box"]


@pytest.mark.parametrize("actions", FORMS)
def test_actions_outside_of_the_space_are_refused_in_one_line(memory, actions):
    env = environment(memory, actions=actions)
    for action in OUTSIDE[actions]:
        env.reset()
        with pytest.raises(HastenError, match=r"outside of .*: take one from it") as told:
            env.step(action)
        assert "\n" not in str(told.value)
    env.reset()  # lists and other types of numbers that name the same action are taken
    env.step(env.action_space.sample().tolist())


def test_every_agent_must_act_within_its_space(memory):
    env = parallel_environment(memory)
    env.reset()
    whole = {a: env.action_space(a).sample() for a in env.agents}
    with pytest.raises(HastenError, match="has no action: give one for each of 10 agents"):
        env.step({a: whole[a] for a in list(whole)[:3]})
    with pytest.raises(HastenError, match="outside of Discrete"):
        env.step(whole | {env.agents[0]: 99})
    env.step(whole)
    assert env.agents == []
    with pytest.raises(HastenError, match="call reset"):
        env.step(whole)


MADE = """
import sys
ours = sys.argv[2:]
for name in ours:
    __import__(name)
import gymnasium
env = gymnasium.make(sys.argv[1])
env.reset(seed=0)
env.step(env.action_space.sample())
spec = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
print(gymnasium.make(spec).spec.id)
"""


@pytest.mark.slow_except("hasten-before0")
@pytest.mark.parametrize(
    ("name", "before"),
    [("hasten", []), ("hasten.gym", []), ("hasten.gym", ["hasten.spaces"])],
)
def test_an_environment_is_made_in_any_process_by_its_name_alone(name, before):
    command = [sys.executable, "-c", MADE, f"{name}:hasten/dram-v0", *before]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("hasten/dram-v0"), done.stderr[-500:]


def test_a_specification_is_read_by_a_process_that_knows_nothing_of_hasten():
    register_environments()
    kept = gymnasium.spec("hasten/soc-v0").to_json()
    code = (
        "import sys, gymnasium\n"
        "env = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(sys.argv[1]), actions='discrete')\n"
        "env.reset(seed=0); env.step(0); print(env.action_space)"
    )
    done = subprocess.run([sys.executable, "-c", code, kept], capture_output=True, text=True, check=False)
    assert done.stdout.strip().startswith("Discrete("), done.stderr[-500:]


def test_in_turns_each_step_sets_one_parameter(memory):
    env = environment(memory, fitness=GOAL, actions="turns")
    seen, _ = env.reset(seed=0)
    assert seen.shape == (3 + 10 + 1,)  # metrics, what stands, whose turn it is
    codec, before = Codec(memory.space), None
    for turn in range(10):
        seen, _, done, _, info = env.step(np.array([1.0], np.float32))
        point = codec.encode(info["params"])
        if before is not None:
            assert [i for i, (a, b) in enumerate(zip(before, point, strict=True)) if a != b] in ([turn], [])
        assert point[turn] == codec.sizes[turn] - 1
        np.testing.assert_allclose(seen[3:13], codec.center(point))
        assert seen[13] == (turn + 1) % 10
        assert done == (turn == 9)
        before = point


def test_whole_numbers_in_turns_reach_every_design(memory):
    env = environment(memory, fitness=GOAL, actions="discrete")
    sizes, most = Codec(memory.space).sizes, int(env.action_space.n)
    assert most == max(sizes)
    for wanted in (tuple(n - 1 for n in sizes), tuple(n // 2 for n in sizes), (0,) * len(sizes)):
        env.reset()
        for turn, (index, n) in enumerate(zip(wanted, sizes, strict=True)):
            action = next(a for a in range(most) if a * n // most == index)
            seen, _, done, _, info = env.step(action)
            assert seen[-1] == (turn + 1) % len(sizes)
            assert done == (turn == len(sizes) - 1)
        assert Codec(memory.space).encode(info["params"]) == wanted


def test_the_reward_pays_for_hitting_the_target():
    fitness = to_target(power=2.0)
    assert fitness({"power": 3.0}) == fitness({"power": 1.0}) == 2.0
    assert fitness({"power": 2.0}) == CAP
    assert to_target(power=2.0, time=1.0)({"power": 3.0, "time": 3.0}) == pytest.approx(1.0)
    # The whole is capped, not each factor: two hits are paid as one, and a hit does not hide a miss.
    both = {"power": 2.0, "time": 1.0}
    assert to_target(power=2.0, time=1.0)(both) == CAP
    assert to_target(1.0, power=2.0)({"power": 2.1}) == 1
    assert to_target(CAP, 1 / CAP, power=2.0, time=1.0)(both) == pytest.approx(1)
    near = {"power": 2.0 + 2e-5, "time": 1.0 + 1e-5}
    assert to_target(None, power=2.0, time=1.0)(near) == pytest.approx(1e10, rel=1e-6)
    assert 1e30 < to_target(None, power=2.0, time=1.0)(both) < math.inf
    for cap, scale in ((0, 1), (math.nan, 1), (1, 0), (1, -1)):
        with pytest.raises(HastenError, match="above 0"):
            to_target(cap, scale, power=2.0)
    budget = to_budget(power=2.0, area=4.0)
    assert budget({"power": 1.0, "area": 4.0}) == 0
    assert budget({"power": 3.0, "area": 6.0}) == -1.0
    for make in (to_target, to_budget):
        for wrong in ({}, {"power": 0.0}, {"power": math.nan}):
            with pytest.raises(HastenError, match="above 0"):
                make(**wrong)


def test_hitting_the_target_can_favour_a_slow_design():
    """Power of 1 W is what closed pages need, at several times the time: ArchGym's reward prefers them."""
    problem = dram.problem("stream", requests=1000)
    best = {}
    for page in ("open", "closed"):
        params = {n.name: next(iter(n.values())) for n in problem.space} | {"page": page, "size": 16, "active": 64}
        values = problem.score(params)[0]
        best[page] = (to_target(power=1.0)(values), values["time"])
    assert best["closed"][0] > 5 * best["open"][0]
    assert best["closed"][1] > 4 * best["open"][1]


def test_bad_input_is_one_line(memory):
    for make, match in [
        (lambda: environment(memory, actions="words"), "actions are"),
        (lambda: environment(memory, steps=0), "at least one step"),
        (lambda: parallel_environment(memory, actions="turns"), "no turns"),
        (lambda: parallel_environment(memory, actions="discrete"), "no turns"),
        (lambda: dram.problem("storm"), "cannot read the trace"),
        (lambda: dram.problem("stream", part="sdram"), "no DRAM part"),
        (lambda: dram.problem("stream", requests=0), "at least one request"),
        (lambda: dram.problem("stream", coding="words"), "no coding"),
        (lambda: spaces.build("mapper", layer="lenet"), "no layer"),
        (lambda: spaces.build("soc", graph="chess"), "no task graph"),
        (lambda: spaces.build("soc", graph="none.toml"), "cannot read the task graph"),
    ]:
        with pytest.raises(HastenError, match=match) as caught:
            make()
        assert "\n" not in str(caught.value)
    env = environment(memory, actions="box")
    env.reset()
    with pytest.raises(HastenError, match="each a number"):
        env.step(np.full(10, np.nan, np.float32))


# -- several agents ----------------------------------------------------------------------------------


@pytest.mark.parametrize("actions", ["indices", "box"])
def test_pettingzoos_own_check(memory, actions):
    pytest.importorskip("pettingzoo")
    from pettingzoo.test import parallel_api_test

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parallel_api_test(parallel_environment(memory, fitness=GOAL, actions=actions, steps=5), num_cycles=20)


def test_agents_together_are_the_single_agent(memory):
    pytest.importorskip("pettingzoo")
    many = parallel_environment(memory, fitness=GOAL, steps=50)
    one = environment(memory, fitness=GOAL, steps=50)
    seen, _ = many.reset(seed=0)
    one.reset(seed=0)
    assert many.agents == [p.name for p in memory.space]
    assert sum(many.action_space(a).n for a in many.agents) == 41
    assert math.prod(many.action_space(a).n for a in many.agents) == 442_368
    rng = np.random.default_rng(0)
    for _ in range(20):
        actions = {a: int(rng.integers(many.action_space(a).n)) for a in many.agents}
        seen, paid, _, _, infos = many.step(actions)
        alone, reward, _, _, info = one.step(list(actions.values()))
        assert set(paid.values()) == {reward}
        for agent in seen:
            np.testing.assert_array_equal(seen[agent], alone)
            assert infos[agent]["params"] == info["params"]


# -- the DRAM space -----------------------------------------------------------------------------------


def test_both_codings_have_the_published_sizes():
    assert dram.space().size == 442_368
    assert dram.space(*dram.CODINGS["integers"]).size == 28_311_552
    assert dram.problem("stream", coding="integers").space.size == 28_311_552


def test_every_point_comes_back_from_its_indices():
    codec = Codec(dram.space())
    rng = np.random.default_rng(0)
    points = np.stack([rng.integers(n, size=20_000) for n in codec.sizes], 1)
    for point in points.tolist():
        assert codec.encode(codec.decode(point)) == tuple(point)
    rounded = {codec.bin([a, b] + [0] * 8, rounded=True)[:2] for a in (-1, 0, 1) for b in (-1, 0, 1)}
    assert len(rounded) == 9
    # 3 of 3 and more, 2 of 2: what ArchGym's public binning leaves of 442 368 designs.
    reached = math.prod(len({codec.bin([c] * 10, rounded=True)[i] for c in (-1, 0, 1)}) for i in range(10))
    assert reached == 26_244


# -- the other spaces ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mapper", "soc"])
def test_designs_that_cannot_be_are_met_and_left_behind(name):
    problem = spaces.build(name)
    explorer = Explorer(problem, lambda v: -v[problem.objectives[0].name], penalty=-1.0)
    drawn = [problem.space.sample(random.Random(i)) for i in range(200)]
    known = [explorer.values(explorer.codec.encode(p)) is not None for p in drawn]
    assert 0 < sum(known) < 200
    rewards = explorer.run(make_agent("genetic", explorer.codec.sizes, 0, population=24), 1500)
    assert np.mean(rewards[-200:] > -1.0) > np.mean(known) + 0.2
    assert rewards.max() >= rewards[:200].max()
    assert rewards[-200:].mean() > rewards[:200].mean()


def test_a_mapping_is_found_that_is_near_the_bound():
    problem = spaces.build("mapper", layer="mobilenet-pointwise", chip=spaces_chip())
    explorer = Explorer(problem, lambda v: -v["time"] * 1e6, penalty=-1e4)
    rewards = explorer.run(make_agent("genetic", explorer.codec.sizes, 0, population=24), 2000)
    least = 256 * 128 * 28 * 28 / 256 / 1e9 * 1e6
    assert least <= -rewards.max() <= 1.35 * least


def spaces_chip():
    from hasten.spaces.mapper import CHIP

    return CHIP


# -- environments as problems -------------------------------------------------------------------------


class Lever(gymnasium.Env):
    """Actions of every kind."""

    action_space = gymnasium.spaces.Dict(
        {
            "lever": gymnasium.spaces.Discrete(5, start=2),
            "dials": gymnasium.spaces.MultiDiscrete([3, 4]),
            "on": gymnasium.spaces.MultiBinary(2),
            "force": gymnasium.spaces.Box(-1, 1, (2,), np.float32),
        }
    )
    observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        good = -((action["lever"] - 4) ** 2) - abs(action["dials"] - [2, 1]).sum() + action["on"].sum()
        return np.zeros(1, np.float32), float(good - np.abs(action["force"]).sum()), True, False, {}


def test_an_environment_is_searched():
    problem = as_problem(Lever, "lever")
    assert [p.name for p in problem.space] == [
        "dials0", "dials1", "force0", "force1", "lever", "on0", "on1",
    ]  # fmt: skip
    result = Study().run(problem, sampler="random", trials=40, seed=0)
    assert result.best().values["reward"] > result.trials[0].values["reward"]


SPACES = {
    "a start below 0": gymnasium.spaces.Discrete(5, start=-2),
    "starts": gymnasium.spaces.MultiDiscrete([3, 3], start=[1, -1]),
    "a matrix": gymnasium.spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
    "bits": gymnasium.spaces.MultiBinary(3),
    "a matrix of bits": gymnasium.spaces.MultiBinary((2, 2)),
    "single precision": gymnasium.spaces.Box(-0.1, 0.1, (2,), np.float32),
    "one number": gymnasium.spaces.Box(-1, 1, (), np.float64),
    "bytes": gymnasium.spaces.Box(0, 3, (2,), np.uint8),
    "whole numbers": gymnasium.spaces.Box(np.array([-3, 2]), np.array([-1, 9]), dtype=np.int64),
    "a pair": gymnasium.spaces.Tuple((gymnasium.spaces.Discrete(2), gymnasium.spaces.Box(0, 1, (1,), np.float32))),
    "within another": gymnasium.spaces.Dict(
        {"a": gymnasium.spaces.Dict({"b": gymnasium.spaces.Discrete(3)}), "c": gymnasium.spaces.MultiBinary(1)}
    ),
}


@pytest.mark.parametrize("kind", SPACES)
def test_actions_of_every_kind_stay_within_their_space_and_reach_all_of_it(kind):
    seen = []

    class Any(Lever):
        action_space = SPACES[kind]

        def step(self, action):
            assert self.action_space.contains(action), action
            seen.append(repr(action))
            return np.zeros(1, np.float32), 0.0, True, False, {}

    problem = as_problem(Any)
    for i in range(300):
        problem.score(problem.space.sample(random.Random(i)))
    if problem.space.size <= 200:
        every = {repr(p) for p in problem.space.enumerate()}
        assert len(set(seen)) > 0.7 * len(every)


@pytest.mark.parametrize("kind", ["too many", "unbounded", "text"])
def test_what_cannot_be_searched_is_refused_in_one_line(kind):
    class Other(Lever):
        action_space = {
            "too many": gymnasium.spaces.Discrete(2**60),
            "unbounded": gymnasium.spaces.Box(-np.inf, 1, (1,)),
            "text": gymnasium.spaces.Sequence(gymnasium.spaces.Discrete(2)),
        }[kind]

    with pytest.raises(HastenError) as told:
        as_problem(Other)
    assert "\n" not in str(told.value)


def test_there_and_back(memory):
    back = as_problem(lambda: environment(memory, fitness=GOAL))
    assert back.space.size == memory.space.size
    rng = random.Random(0)
    codec = Codec(memory.space)
    for _ in range(20):
        params = memory.space.sample(rng)
        point = {f"action{i}": v for i, v in enumerate(codec.encode(params))}
        assert back.score(point)[0]["reward"] == pytest.approx(GOAL(memory.score(params)[0]))


def test_actions_without_bounds_are_refused():
    class Text(Lever):
        action_space = gymnasium.spaces.Text(4)

    class Endless(Lever):
        action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,))

    for env in (Text, Endless):
        with pytest.raises(HastenError, match="cannot be searched"):
            as_problem(env)


# -- the log ------------------------------------------------------------------------------------------


def test_everything_tried_is_kept_and_comes_back(memory, tmp_path):
    pytest.importorskip("pyarrow")
    log = Log()
    env = environment(memory, fitness=GOAL, steps=10, log=log, provenance={"agent": "ants", "setting": {"ants": 4}})
    env.action_space.seed(0)
    env.reset()
    rewards = [env.step(env.action_space.sample())[1] for _ in range(10)]
    assert [r["reward"] for r in log.rows] == rewards
    row = log.rows[0]
    assert {k for k in row if k.startswith("param.")} == {f"param.{p.name}" for p in memory.space}
    assert {k for k in row if k.startswith("value.")} == {"value.time", "value.power", "value.energy"}
    assert (row["agent"], row["setting"]) == ("ants", '{"ants": 4}')
    explorer = Explorer(memory, GOAL)
    more = Log()
    explorer.run(make_agent("genetic", explorer.codec.sizes, 0), 5, more, {"agent": "genetic", "seed": 0})
    together = log + more
    together.write(tmp_path / "log.parquet")
    read = Log.read(tmp_path / "log.parquet")
    assert read.rows == together.rows
    for wrong in (tmp_path / "none.parquet", __file__):
        with pytest.raises(HastenError):
            Log.read(wrong)
