"""Problems as Gymnasium and PettingZoo environments, and environments as problems (arXiv 2306.08888, 2211.16385).

A step tries a point. What is observed are the problem's values; what is paid is a fitness of them. Everything that is
tried can be logged with who tried it, and written as Parquet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.errors import HastenError, MissingExtraError
from hasten.files import read_parquet, write_parquet
from hasten.search.codec import Codec
from hasten.search.parameter import Params, categorical, integer, real
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Space

if TYPE_CHECKING:
    import gymnasium
    import pettingzoo

Fitness = Callable[[Mapping[str, float]], float]
CAP = 1000.0


def to_target(cap: float | None = CAP, scale: float = 1.0, /, **targets: float) -> Fitness:
    """ArchGym's reward: target / |target - value| multiplied over the targets, the whole at most a cap.

    It pays for hitting a target, not for going below it: a value far below is paid less than one near it.

    Args:
        cap: the most that is paid; None for the form without one, where only rounding ends what a hit is paid.
        scale: of what is paid, the cap applied: ``1 / CAP`` pays from 0 to 1.
        targets: value -> target.

    Raises:
        HastenError: no target, or a target, cap or scale that is not above 0.
    """
    if (cap is not None and not cap > 0) or not scale > 0:
        raise HastenError("a target reward needs a cap and a scale above 0, or no cap")
    if not targets or not min(targets.values()) > 0:  # so that NaN is refused too
        raise HastenError("a target reward needs at least one target above 0")

    def fitness(values: Mapping[str, float]) -> float:
        paid = 1.0
        for name, target in targets.items():
            # A hit is a step of rounding off: what is paid stays finite, and a product with it too.
            off = max(abs(target - values[name]), math.ulp(target))
            paid *= target / off
        return scale * (paid if cap is None else min(cap, paid))

    return fitness


def to_budget(**budgets: float) -> Fitness:
    """FARSI's goal: minus the sum of how far values are over their budgets, in budgets; 0 where all are met."""
    if not budgets or not min(budgets.values()) > 0:
        raise HastenError("a budget reward needs at least one budget above 0")

    def fitness(values: Mapping[str, float]) -> float:
        return -sum(max(0.0, values[name] / budget - 1) for name, budget in budgets.items())

    return fitness


@dataclass
class Log:
    """Everything that was tried: point, values, reward, and by whom.

    Args:
        rows: plain data, one a try.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, params: Mapping[str, Any], values: Mapping[str, float], reward: float, **provenance: Any) -> None:
        """Keeps a try; ``provenance`` says who made it: agent, hyper-parameters, seed."""
        self.rows.append(
            {f"param.{k}": v for k, v in params.items()}
            | {f"value.{k}": float(v) for k, v in values.items()}
            | {"reward": float(reward)}
            | {
                k: v if isinstance(v, str | int | float) else json.dumps(v, sort_keys=True)
                for k, v in provenance.items()
            }
        )

    def __add__(self, other: Log) -> Log:
        return Log(self.rows + other.rows)

    def write(self, path: str | Path) -> None:
        """Writes Parquet.

        Raises:
            HastenError: pyarrow is missing, or the file cannot be written.
        """
        write_parquet(self.rows, path)

    @classmethod
    def read(cls, path: str | Path) -> Log:
        """Reads what `write` wrote.

        Raises:
            HastenError: no such file, or another one.
        """
        return cls([{k: v for k, v in r.items() if v is not None} for r in read_parquet(path)])


def _values(problem: Problem) -> list[str]:
    return [o.name for o in problem.objectives]


def default_fitness(problem: Problem) -> Fitness:
    """The first objective, larger better."""
    first = problem.objectives[0]
    return lambda values: -first.sign * values[first.name]


Score = dict[str, float] | Infeasible
"""Values of a point, constraints among them, or why it cannot be had."""


def score(problem: Problem, params: Params) -> Score:
    """Values of a point, or why it cannot be had."""
    try:
        values, limits, _ = problem.score(params)
    except Infeasible as error:
        return error.with_traceback(None)
    return values | limits


class Payment:
    """What a point is paid: its fitness, and less than any fitness so far where it cannot be had.

    Such a point is paid one less than the worst of all before, 0 among them, and a thousandth of that where it is
    large; up to 1 less by how far it breaks constraints, and 1 to 2 less by its distance where it has no values at all
    (`Infeasible`). So the better paid of two is the better one, whatever fitness pays.

    Args:
        problem: whose constraints count.
        fitness: of values.
        penalty: paid instead for all that cannot be had.
    """

    def __init__(self, problem: Problem, fitness: Fitness, penalty: float | None = None) -> None:
        self.constraints, self.fitness, self.penalty = problem.constraints, fitness, penalty
        self.worst = 0.0

    def feasible(self, score: Score) -> bool:
        """Whether a point can be had: it has values, and breaks no constraint, which are among them."""
        return not isinstance(score, Infeasible) and all(score[c] <= 0 for c in self.constraints)

    def __call__(self, score: Score) -> float:
        if not isinstance(score, Infeasible) and self.feasible(score):
            paid = float(self.fitness(score))
            if math.isfinite(paid):
                self.worst = min(self.worst, paid)
                return paid
        if self.penalty is not None:
            return self.penalty
        if isinstance(score, Infeasible):
            less, over = 1.0, score.distance
        else:
            less, over = 0.0, sum(max(0.0, score[c]) for c in self.constraints)
        return self.worst - max(1.0, 1e-3 * abs(self.worst)) - less - (1 - 1 / (1 + over))


_Cache = dict[str, Score]
_ACTIONS = ("indices", "box", "box-rounded", "turns", "discrete")


def environment(
    problem: Problem,
    *,
    fitness: Fitness | None = None,
    actions: str = "indices",
    steps: int | None = None,
    penalty: float | None = None,
    log: Log | None = None,
    provenance: Mapping[str, Any] | None = None,
    cache: _Cache | None = None,
) -> gymnasium.Env[Any, Any]:
    """A problem as a Gymnasium environment.

    Args:
        problem: what is tried.
        fitness: values to reward; the first objective when None.
        actions: ``indices`` (MultiDiscrete), ``box`` (coordinates in [-1, 1], binned evenly), ``box-rounded`` (as
            ArchGym's public code bins them), ``turns`` (time division: each step sets one parameter, by a coordinate,
            and tries what then stands; observed are also the coordinates that stand, and whose turn it is) or
            ``discrete`` (turns by one whole number, as DQN needs: as many actions as the longest parameter has values,
            spread evenly over those of one that has fewer).
        steps: tries after which an episode is cut off (``truncated``). When None it ends by itself (``terminated``)
            after one try, or in turns after one of each parameter.
        penalty: reward of a point that cannot be had or breaks a constraint; less than any fitness so far when None
            (`Payment`).
        log: where tries are kept.
        provenance: kept beside each.
        cache: of values by point, for problems whose values do not change.

    Raises:
        HastenError: gymnasium is missing, or unknown actions. Of a step: an action outside of the action space, or an
            episode that is over or has not begun.
    """
    if actions not in _ACTIONS:
        raise HastenError(f"actions are {', '.join(_ACTIONS[:-1])} or {_ACTIONS[-1]}, not {actions!r}")
    if steps is not None and steps < 1:
        raise HastenError("an episode has at least one step")
    try:
        import gymnasium
        from gymnasium import spaces
    except ImportError:
        raise MissingExtraError("gymnasium", "rl") from None

    codec = Codec(problem.space)
    names = _values(problem)
    pay = Payment(problem, fitness or default_fitness(problem), penalty)
    kept: _Cache = {} if cache is None else cache
    size = len(names)
    turns = actions in ("turns", "discrete")
    last = steps or (len(codec.sizes) if turns else 1)

    class ProblemEnvironment(gymnasium.Env[Any, Any]):
        metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own form)

        def __init__(self) -> None:
            count = len(codec.sizes)
            width = size + count + 1 if turns else size
            self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float64)
            self.action_space: gymnasium.Space[Any]
            if actions == "indices":
                self.action_space = spaces.MultiDiscrete(codec.sizes)
            elif actions == "discrete":
                self.action_space = spaces.Discrete(max(codec.sizes))
            else:
                self.action_space = spaces.Box(-1.0, 1.0, (1 if turns else count,), np.float32)
            self.tried = 0
            self.stands = [0] * count
            self.over = "has not begun"

        def _seen(self, values: Mapping[str, float] | None) -> Any:
            metrics = [values[n] for n in names] if values else [0.0] * size
            if turns:
                metrics += [*codec.center(self.stands), self.tried % len(self.stands)]
            return np.array(metrics, dtype=np.float64)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.tried = 0
            self.stands = [0] * len(codec.sizes)
            self.over = ""
            return self._seen(None), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            if self.over:
                raise HastenError(f"this episode {self.over}: call reset before the next step")
            action = allowed(self.action_space, action)
            if turns:
                turn = self.tried % len(self.stands)
                if actions == "discrete":
                    self.stands[turn] = int(action) * codec.sizes[turn] // max(codec.sizes)
                else:
                    coordinates = codec.center(self.stands)
                    coordinates[turn] = float(action[0])
                    self.stands = list(codec.bin(coordinates))
                point = tuple(self.stands)
            elif actions == "indices":
                point = tuple(int(i) for i in action)
            else:
                point = codec.bin(action, rounded=actions == "box-rounded")
            params = codec.decode(point)
            key = problem.space.key(params)
            if key not in kept:
                kept[key] = score(problem, params)
            found = kept[key]
            values = {} if isinstance(found, Infeasible) else found
            self.tried += 1
            reward = pay(found)
            if log is not None:
                log.add(params, values, reward, **(provenance or {}))
            info = {"params": params, "values": dict(values), "feasible": pay.feasible(found)}
            ends = self.tried >= last
            self.over = "is over" if ends else ""
            return self._seen(values), reward, ends and steps is None, ends and steps is not None, info

    return ProblemEnvironment()


def allowed(space: Any, action: Any) -> Any:
    """An action as an array of its space: whole numbers, or coordinates.

    Raises:
        HastenError: it lies outside of the space.
    """
    try:
        given = np.asarray(action)
        whole = np.issubdtype(space.dtype, np.integer)
        fits = given.shape == space.shape and given.dtype.kind in ("iu" if whole else "iuf")
        made = given.astype(space.dtype) if fits else given
        if fits and space.contains(made):
            return made
    except (TypeError, ValueError, OverflowError):
        pass
    told = " ".join(repr(action).split())[:80]
    raise HastenError(f"the action {told} is outside of {space}: take one from it, each a number")


def as_problem(make: Callable[[], Any], name: str = "environment", *, seed: int = 0) -> Problem:
    """An environment whose action is a point as a problem: the reward of one step after a reset, maximized.

    Args:
        make: makes a Gymnasium environment with actions Discrete, MultiDiscrete, MultiBinary, a bounded Box, or a Dict
            or Tuple of these.
        name: of the problem.
        seed: of each reset.

    Raises:
        HastenError: actions of another kind.
    """
    from gymnasium import spaces

    env = make()

    def parameters(prefix: str, space: Any) -> list[Any]:
        if isinstance(space, spaces.Discrete):
            return [integer(prefix, int(space.start), int(space.start + space.n) - 1)]
        if isinstance(space, spaces.MultiDiscrete):
            ends = zip(space.start.reshape(-1), space.nvec.reshape(-1), strict=True)
            return [integer(f"{prefix}{i}", int(start), int(start) + int(n) - 1) for i, (start, n) in enumerate(ends)]
        if isinstance(space, spaces.MultiBinary):
            return [categorical(f"{prefix}{i}", [0, 1]) for i in range(int(np.prod(space.shape)))]
        if isinstance(space, spaces.Box):
            if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
                raise HastenError(f"actions of {space} have no bounds and cannot be searched: wrap it in a bounded Box")
            ends = zip(space.low.reshape(-1).tolist(), space.high.reshape(-1).tolist(), strict=True)
            make = integer if np.issubdtype(space.dtype, np.integer) else real
            return [make(f"{prefix}{i}", low, high) for i, (low, high) in enumerate(ends)]
        if isinstance(space, spaces.Dict | spaces.Tuple):
            return [p for key, one in _parts(space) for p in parameters(f"{prefix}.{key}" if prefix else str(key), one)]
        raise HastenError(
            f"actions of {type(space).__name__} cannot be searched: use Discrete, MultiDiscrete, MultiBinary, a "
            "bounded Box, or a Dict or Tuple of them"
        )

    def action(prefix: str, space: Any, params: Params) -> Any:
        if isinstance(space, spaces.Discrete):
            return params[prefix]
        if isinstance(space, spaces.Dict | spaces.Tuple):
            parts = {k: action(f"{prefix}.{k}" if prefix else str(k), one, params) for k, one in _parts(space)}
            return parts if isinstance(space, spaces.Dict) else tuple(parts.values())
        flat = [params[f"{prefix}{i}"] for i in range(int(np.prod(space.shape)))]
        return np.array(flat, dtype=space.dtype).reshape(space.shape)

    root = "" if isinstance(env.action_space, spaces.Dict | spaces.Tuple) else "action"

    def evaluate(params: Params) -> dict[str, Any]:
        env.reset(seed=seed)
        _, reward, _, _, _ = env.step(action(root, env.action_space, params))
        return {"reward": float(reward)}

    return Problem(name, Space(parameters(root, env.action_space)), (Objective("reward", "maximize"),), evaluate)


def _parts(space: Any) -> list[tuple[Any, Any]]:
    """A Dict's or a Tuple's own spaces, with the key or number of each."""
    return list(space.items()) if hasattr(space, "items") else list(enumerate(space.spaces))


def parallel_environment(
    problem: Problem, *, fitness: Fitness | None = None, actions: str = "indices", steps: int | None = None,
    penalty: float | None = None, cache: _Cache | None = None,
) -> pettingzoo.ParallelEnv[str, Any, Any]:  # fmt: skip
    """A problem as a PettingZoo environment with an agent for each parameter.

    All see the same values and are paid the same; each sets its own parameter, by its index or with ``box`` and
    ``box-rounded`` by a coordinate.

    Args:
        problem, fitness, actions, steps, penalty, cache: as `environment`, ``turns`` and ``discrete`` aside.

    Raises:
        HastenError: pettingzoo is missing, or unknown actions.
    """
    if actions in ("turns", "discrete"):
        raise HastenError("agents that act together take no turns: actions are indices, box or box-rounded")
    try:
        from gymnasium import spaces
        from pettingzoo import ParallelEnv
    except ImportError:
        raise MissingExtraError("pettingzoo", "rl") from None

    codec = Codec(problem.space)
    agents = [p.name for p in problem.space]
    single = environment(problem, fitness=fitness, actions=actions, steps=steps, penalty=penalty, cache=cache)

    class ProblemParallelEnvironment(ParallelEnv[str, Any, Any]):
        metadata = {"name": f"hasten-{problem.name}"}  # noqa: RUF012 (PettingZoo's own form)

        def __init__(self) -> None:
            self.possible_agents = list(agents)
            self.agents: list[str] = []

        def observation_space(self, agent: str) -> Any:
            return single.observation_space

        def action_space(self, agent: str) -> Any:
            return own[agent]

        def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
            self.agents = list(agents)
            seen, _ = single.reset(seed=seed)
            return {a: seen.copy() for a in agents}, {a: {} for a in agents}

        def step(self, actions: dict[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
            if missing := [a for a in agents if a not in actions]:
                raise HastenError(f"{missing[0]} has no action: give one for each of {len(agents)} agents")
            chosen = [allowed(own[a], actions[a]).reshape(()) for a in agents]
            seen, reward, done, cut, info = single.step(np.array(chosen))
            if done or cut:
                self.agents = []
            return (
                {a: seen.copy() for a in agents},
                {a: float(reward) for a in agents},
                dict.fromkeys(agents, done),
                dict.fromkeys(agents, cut),
                {a: dict(info) for a in agents},
            )

    own: dict[str, Any] = {
        a: spaces.Discrete(n) if actions == "indices" else spaces.Box(-1.0, 1.0, (1,), np.float32)
        for a, n in zip(agents, codec.sizes, strict=True)
    }
    return ProblemParallelEnvironment()
