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
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Params, Space, categorical, integer, real

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


def _scored(problem: Problem, params: Params) -> dict[str, float] | None:
    """Values of a point, broken constraints among them; None when it cannot be had."""
    try:
        values, limits, _ = problem.score(params)
    except Infeasible:
        return None
    return values | limits


_Cache = dict[str, "dict[str, float] | None"]
_ACTIONS = ("indices", "box", "box-rounded", "turns")


def environment(
    problem: Problem,
    *,
    fitness: Fitness | None = None,
    actions: str = "indices",
    steps: int | None = None,
    penalty: float = 0.0,
    log: Log | None = None,
    provenance: Mapping[str, Any] | None = None,
    cache: _Cache | None = None,
) -> gymnasium.Env[Any, Any]:
    """A problem as a Gymnasium environment.

    Args:
        problem: what is tried.
        fitness: values to reward; the first objective when None.
        actions: ``indices`` (MultiDiscrete), ``box`` (coordinates in [-1, 1], binned evenly), ``box-rounded`` (as
            ArchGym's public code bins them) or ``turns`` (time division: each step sets one parameter, by a coordinate,
            and tries what then stands; observed are also the coordinates that stand, and whose turn it is).
        steps: tries of an episode; when None one, or in turns as many as there are parameters.
        penalty: reward of a point that cannot be had.
        log: where tries are kept.
        provenance: kept beside each.
        cache: of values by point, for problems whose values do not change.

    Raises:
        HastenError: gymnasium is missing, or unknown actions.
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
    pay = fitness or default_fitness(problem)
    kept: _Cache = {} if cache is None else cache
    size = len(names)
    last = steps or (len(codec.sizes) if actions == "turns" else 1)

    class ProblemEnvironment(gymnasium.Env[Any, Any]):
        metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own form)

        def __init__(self) -> None:
            count = len(codec.sizes)
            self.turns = actions == "turns"
            width = size + count + 1 if self.turns else size
            self.observation_space = spaces.Box(-np.inf, np.inf, (width,), np.float64)
            self.action_space = (
                spaces.MultiDiscrete(codec.sizes)
                if actions == "indices"
                else spaces.Box(-1.0, 1.0, (1 if self.turns else count,), np.float32)
            )
            self.tried = 0
            self.stands = [0] * count

        def _seen(self, values: Mapping[str, float] | None) -> Any:
            metrics = [values[n] for n in names] if values else [0.0] * size
            if self.turns:
                metrics += [*codec.center(self.stands), self.tried % len(self.stands)]
            return np.array(metrics, dtype=np.float64)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            self.tried = 0
            self.stands = [0] * len(codec.sizes)
            return self._seen(None), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            if self.turns:
                turn = self.tried % len(self.stands)
                coordinates = codec.center(self.stands)
                coordinates[turn] = float(action[0])
                point = codec.bin(coordinates)
                self.stands = list(point)
            elif actions == "indices":
                point = tuple(int(i) for i in action)
            else:
                point = codec.bin(action, rounded=actions == "box-rounded")
            params = codec.decode(point)
            key = problem.space.key(params)
            if key not in kept:
                kept[key] = _scored(problem, params)
            values = kept[key]
            self.tried += 1
            reward = penalty if values is None else float(pay(values))
            if log is not None:
                log.add(params, values or {}, reward, **(provenance or {}))
            info = {"params": params, "values": dict(values or {}), "feasible": values is not None}
            return self._seen(values), reward, self.tried >= last, False, info

    return ProblemEnvironment()


def as_problem(make: Callable[[], Any], name: str = "environment", *, seed: int = 0) -> Problem:
    """An environment whose action is a point as a problem: the reward of one step after a reset, maximized.

    Args:
        make: makes a Gymnasium environment with actions Discrete, MultiDiscrete, MultiBinary, a bounded Box, or a Dict
            of these.
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
            return [integer(f"{prefix}{i}", 0, int(n) - 1) for i, n in enumerate(space.nvec.reshape(-1))]
        if isinstance(space, spaces.MultiBinary):
            return [categorical(f"{prefix}{i}", [0, 1]) for i in range(int(np.prod(space.shape)))]
        if isinstance(space, spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
            ends = zip(space.low.reshape(-1), space.high.reshape(-1), strict=True)
            return [real(f"{prefix}{i}", float(a), float(b)) for i, (a, b) in enumerate(ends)]
        if isinstance(space, spaces.Dict):
            return [p for key, one in space.items() for p in parameters(f"{prefix}.{key}" if prefix else key, one)]
        raise HastenError(f"actions of {type(space).__name__} cannot be searched: use Discrete, Box or a Dict of them")

    def action(prefix: str, space: Any, params: Params) -> Any:
        if isinstance(space, spaces.Discrete):
            return params[prefix]
        if isinstance(space, spaces.Dict):
            return {k: action(f"{prefix}.{k}" if prefix else k, one, params) for k, one in space.items()}
        flat = [params[f"{prefix}{i}"] for i in range(int(np.prod(space.shape)))]
        return np.array(flat, dtype=space.dtype).reshape(space.shape)

    root = "" if isinstance(env.action_space, spaces.Dict) else "action"

    def evaluate(params: Params) -> dict[str, Any]:
        env.reset(seed=seed)
        _, reward, _, _, _ = env.step(action(root, env.action_space, params))
        return {"reward": float(reward)}

    return Problem(name, Space(parameters(root, env.action_space)), (Objective("reward", "maximize"),), evaluate)


def parallel_environment(
    problem: Problem, *, fitness: Fitness | None = None, actions: str = "indices", steps: int | None = None,
    penalty: float = 0.0, cache: _Cache | None = None,
) -> pettingzoo.ParallelEnv[str, Any, Any]:  # fmt: skip
    """A problem as a PettingZoo environment with an agent for each parameter.

    All see the same values and are paid the same; each sets its own parameter, by its index or with ``box`` and
    ``box-rounded`` by a coordinate.

    Args:
        problem, fitness, actions, steps, penalty, cache: as `environment`, ``turns`` aside.

    Raises:
        HastenError: pettingzoo is missing, or unknown actions.
    """
    if actions == "turns":
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
            chosen = [np.asarray(actions[a]).reshape(()) for a in agents]
            seen, reward, done, _, info = single.step(np.array(chosen))
            if done:
                self.agents = []
            return (
                {a: seen.copy() for a in agents},
                {a: float(reward) for a in agents},
                dict.fromkeys(agents, done),
                dict.fromkeys(agents, False),
                {a: dict(info) for a in agents},
            )

    own: dict[str, Any] = {
        a: spaces.Discrete(n) if actions == "indices" else spaces.Box(-1.0, 1.0, (1,), np.float32)
        for a, n in zip(agents, codec.sizes, strict=True)
    }
    return ProblemParallelEnvironment()
