"""Agents at equal samples: running one, sweeping its settings, and a model that stands in for the simulator."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError, MissingExtraError
from hasten.search.agents.agent import Agent, Indices
from hasten.search.agents.registry import make_agent
from hasten.search.codec import Codec
from hasten.search.environments import Fitness, Log, Payment, Score, score
from hasten.search.parameter import Params
from hasten.search.problem import Infeasible, Problem
from hasten.search.space import Space

Scores = dict[Indices, Score]

_REPEATS_BEFORE_UNSEEN = 5

SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "random-walk": tuple({"change": change, "back": back} for change in (0, 1, 2, 4) for back in (0.0, 0.3, 0.9)),
    "genetic": tuple(
        {"population": population, "mutation": mutation}
        for population in (4, 8, 16, 32)
        for mutation in (0.005, 0.05, 0.15)
    ),
    "ants": tuple(
        {"ants": ants, "evaporation": evaporation, "greediness": greediness}
        for ants in (2, 8, 32)
        for evaporation in (0.1, 0.5)
        for greediness in (0.0, 0.5)
    ),
    "parzen": tuple(
        {"start": start, "share": share, "prior": prior}
        for start in (5, 20)
        for share in (0.05, 0.15, 0.4)
        for prior in (0.3, 1.0)
    ),
    "ppo": tuple(
        {"rate": rate, "entropy": entropy, "batch": batch}
        for rate in (1e-3, 5e-3, 2e-2)
        for entropy in (0.0, 0.05)
        for batch in (8, 32)
    ),
}
"""Twelve settings of each of ArchGym's agents."""


@dataclass
class Explorer:
    """A problem behind a fitness, with every point scored once.

    Args:
        problem: what is tried.
        fitness: values to reward.
        penalty: reward of a point that cannot be had or breaks a constraint; less than any fitness so far when None
            (`hasten.search.environments.Payment`).
        scores: what is known already, by indices.
    """

    problem: Problem
    fitness: Fitness
    penalty: float | None = None
    scores: Scores = field(default_factory=dict)
    codec: Codec = field(init=False)

    def __post_init__(self) -> None:
        self.codec = Codec(self.problem.space)
        self._pay = Payment(self.problem, self.fitness, self.penalty)
        self._names = [o.name for o in self.problem.objectives]

    def score(self, point: Indices) -> Score:
        """Values at a point, or why it cannot be had."""
        if point not in self.scores:
            self.scores[point] = score(self.problem, self.codec.decode(point))
        return self.scores[point]

    def values(self, point: Indices) -> dict[str, float] | None:
        """Values at a point; None when it cannot be had."""
        found = self.score(point)
        return None if isinstance(found, Infeasible) else found

    def reward(self, point: Indices) -> float:
        """What a point is paid."""
        return self._pay(self.score(point))

    def run(
        self, agent: Agent, samples: int, log: Log | None = None, provenance: Mapping[str, Any] | None = None,
        *, distinct: bool = False,
    ) -> NDArray[np.float64]:  # fmt: skip
        """Rewards of the points that an agent asks for, in order: (samples,).

        Points asked for again count again, as in ArchGym, where a sample is a step of an environment. With
        ``distinct`` a sample is a point of this run that was not tried before, as in a `hasten.search.study.Study`: an
        agent that asks for a known one is told its reward again, and after five in a row a random one that is not.

        Args:
            agent: made for ``codec.sizes``.
            samples: how many rewards.
            log: where tries are kept.
            provenance: kept beside each.
            distinct: count different points alone; the rewards are fewer where the space has fewer.
        """
        rewards: list[float] = []
        tried: set[str] = set()
        repeats = 0
        while len(rewards) < samples:
            point = agent.ask()
            if distinct:
                if (key := self._key(point)) in tried:
                    repeats += 1
                    self._tell(agent, point)
                    if repeats < _REPEATS_BEFORE_UNSEEN:
                        continue
                    if (unseen := self._unseen(agent, tried)) is None:
                        break
                    point, key = unseen, self._key(unseen)
                repeats = 0
                tried.add(key)
            rewards.append(self._tell(agent, point))
            if log is not None:
                log.add(self.codec.decode(point), self.values(point) or {}, rewards[-1], **(provenance or {}))
        return np.array(rewards)

    def _tell(self, agent: Agent, point: Indices) -> float:
        values, reward = self.values(point), self.reward(point)
        agent.tell(point, reward, [values[n] for n in self._names] if values else ())
        return reward

    def _key(self, point: Indices) -> str:
        """Of a point: indices of parameters that do not exist there may differ."""
        return self.problem.space.key(self.codec.decode(point))

    def _unseen(self, agent: Agent, tried: set[str]) -> Indices | None:
        """A random point that was not tried; the first one there is where chance finds none."""
        sizes = self.codec.sizes
        drawn = (tuple(int(agent.rng.integers(n)) for n in sizes) for _ in range(200))
        every = (tuple(map(int, p)) for p in np.ndindex(sizes))
        return next((p for p in itertools.chain(drawn, every) if self._key(p) not in tried), None)

    def everything(self, limit: int = 100_000) -> float:
        """The best reward of all, by trying every point.

        Raises:
            HastenError: there are more than ``limit``.
        """
        if self.problem.space.size > limit:
            raise HastenError(f"the space has more than {limit:,} points: try a smaller one")
        return max(self.reward(self.codec.encode(p)) for p in self.problem.space.enumerate())


@dataclass(frozen=True)
class Sweep:
    """An agent's settings, each with several seeds.

    Args:
        agent: its name.
        best: (settings, seeds, budgets): the best reward within each budget.
        budgets: numbers of samples.
    """

    agent: str
    best: NDArray[np.float64]
    budgets: tuple[int, ...]

    def tuned(self, budget: int) -> float:
        """The mean over seeds of the best setting."""
        return float(self.best[:, :, self.budgets.index(budget)].mean(1).max())

    def spread(self, budget: int) -> float:
        """Distance between the quartiles of the settings, each the mean of its seeds, over their median."""
        low, middle, high = np.percentile(self.best[:, :, self.budgets.index(budget)].mean(1), [25, 50, 75])
        return float((high - low) / middle) if middle else 0.0

    def chance(self, budget: int, shuffles: int = 1000) -> float:
        """How likely settings that do not matter are to differ as much: a permutation test.

        The share of ``shuffles`` in which runs dealt to settings anew have means whose variance is as large. One seed
        a setting leaves nothing to tell settings from seeds by: 1.
        """
        runs = self.best[:, :, self.budgets.index(budget)]
        seen = runs.mean(1).var()
        rng = np.random.default_rng(0)
        dealt = (rng.permutation(runs.ravel()).reshape(runs.shape).mean(1).var() for _ in range(shuffles))
        return sum(bool(d >= seen * (1 - 1e-12)) for d in dealt) / shuffles

    def beyond_noise(self, other: Sweep, budget: int) -> float:
        """How much better than another agent, in standard errors over the seeds of the mean of all settings.

        Both have the same seeds, which are compared in pairs; 0 where there is one seed only.
        """
        at = self.budgets.index(budget)
        off = self.best[:, :, at].mean(0) - other.best[:, :, at].mean(0)
        if len(off) < 2:
            return 0.0
        error = off.std(ddof=1) / math.sqrt(len(off))
        return float(off.mean() / error) if error else math.copysign(math.inf, off.mean()) if off.mean() else 0.0


def sweep(
    explorer: Explorer,
    agent: str,
    budgets: Sequence[int],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    settings: Sequence[Mapping[str, Any]] | None = None,
    log: Log | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> Sweep:
    """Runs an agent with each setting and seed, with the same samples.

    Args:
        explorer: what is explored.
        agent: its name.
        budgets: at which the best so far is taken.
        seeds: of each setting.
        settings: hyper-parameters; `SETTINGS` of the agent when None.
        log: where tries are kept.
        progress: told the share that is done.
    """
    chosen = list(SETTINGS[agent] if settings is None else settings)
    best = np.empty((len(chosen), len(seeds), len(budgets)))
    for i, setting in enumerate(chosen):
        for j, seed in enumerate(seeds):
            made = make_agent(agent, explorer.codec.sizes, seed, **setting)
            rewards = explorer.run(made, max(budgets), log, {"agent": agent, "setting": dict(setting), "seed": seed})
            so_far = np.maximum.accumulate(rewards)
            best[i, j] = [so_far[b - 1] for b in budgets]
            progress((i * len(seeds) + j + 1) / (len(chosen) * len(seeds)))
    return Sweep(agent, best, tuple(budgets))


def better_setting(
    explorer: Explorer, agent: str, settings: Sequence[Mapping[str, Any]], samples: int, seeds: Sequence[int],
    *, last: int = 200, **options: Any,
) -> NDArray[np.float64]:  # fmt: skip
    """Rewards (seeds, samples) of an agent with that of some settings whose last samples pay most on average.

    Args:
        explorer: what is explored.
        agent: its name.
        settings: hyper-parameters to choose from.
        samples: of each run.
        seeds: of each setting.
        last: samples that are averaged.
        options: hyper-parameters that all settings have.
    """
    tried = [
        np.array([explorer.run(make_agent(agent, explorer.codec.sizes, s, **options, **one), samples) for s in seeds])
        for one in settings
    ]
    return max(tried, key=lambda rewards: rewards[:, -last:].mean())


class Proxy:
    """A model of a simulator, learned from a log: a random forest for each value.

    Each tree is grown from points drawn with repetition, and each of its splits from a share of the features: trees
    that saw the same would be one tree, and no forest (Breiman, 2001). A third of the features, which is usual, is too
    few where one parameter decides much, as in a memory controller: there 0.7 explains more.

    Args:
        space: of the problem.
        names: values to model.
        logarithm: values whose logarithm is modelled: times, whose spread is over magnitudes.
        trees: of a forest.
        depth: of a tree; None for as deep as it goes.
        share: of the features, among which a split is chosen.
        seed: of the forests.

    Raises:
        HastenError: scikit-learn is missing.
    """

    def __init__(
        self, space: Space, names: Sequence[str], *, logarithm: Sequence[str] = (), trees: int = 60,
        depth: int | None = None, seed: int = 0, share: float = 0.7,
    ) -> None:  # fmt: skip
        try:
            from sklearn.ensemble import RandomForestRegressor
        except ImportError:
            raise MissingExtraError("scikit-learn", "search") from None
        self.space, self.names, self.logarithm = space, tuple(names), frozenset(logarithm)
        self._scales: dict[str, float] = {}
        self._forests = {
            n: RandomForestRegressor(trees, max_depth=depth, random_state=seed, bootstrap=True, max_features=share)
            for n in self.names
        }

    def features(self, points: Sequence[Params]) -> NDArray[np.float64]:
        """One row a point: numbers scaled to [0, 1] of their range, a column for each value of the others."""
        columns = []
        for p in self.space:
            drawn = [point.get(p.name) for point in points]
            values = list(p.values()) if p.kind == "categorical" else []
            if values and not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                columns += [[float(d == v) for d in drawn] for v in values]
                continue
            low, high = (min(values), max(values)) if values else (p.low, p.high)  # type: ignore[type-var]
            span = float(high) - float(low) or 1.0  # type: ignore[arg-type]
            columns.append([(float(d) - float(low)) / span if d is not None else -1.0 for d in drawn])  # type: ignore[arg-type]
        return np.array(columns).T

    def fit(self, points: Sequence[Params], values: Sequence[Mapping[str, float]]) -> Proxy:
        """Learns from points and their values."""
        if not points:
            raise HastenError("a proxy model needs points to learn from")
        x = self.features(points)
        for name, forest in self._forests.items():
            y = np.array([v[name] for v in values], dtype=np.float64)
            if not np.isfinite(y).all() or (name in self.logarithm and y.min() <= 0):
                raise HastenError(
                    f"a proxy cannot learn {name}: it must be a number everywhere, above 0 for a logarithm"
                )
            y = np.log(y) if name in self.logarithm else y
            # A tree takes a variance below 2e-16 for none: microjoules have to be made large first.
            self._scales[name] = float(np.abs(y).max()) or 1.0
            forest.fit(x, y / self._scales[name])
        return self

    def fit_log(self, log: Log) -> Proxy:
        """Learns from a log."""
        points, values = [], []
        for row in log.rows:
            if all(f"value.{n}" in row for n in self.names):
                points.append({k.removeprefix("param."): v for k, v in row.items() if k.startswith("param.")})
                values.append({n: row[f"value.{n}"] for n in self.names})
        return self.fit(points, values)

    def predict(self, points: Sequence[Params]) -> list[dict[str, float]]:
        """Values at points, in the units that were learned.

        Raises:
            HastenError: it has not learned yet.
        """
        if not self._scales:
            raise HastenError("a proxy model predicts after it has learned: call fit first")
        x = self.features(points)
        made = {}
        for name, forest in self._forests.items():
            y = forest.predict(x) * self._scales[name]
            made[name] = np.exp(y) if name in self.logarithm else y
        return [{n: float(made[n][i]) for n in self.names} for i in range(len(points))]

    def errors(self, points: Sequence[Params], values: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Root of the mean squared error of each value, over its mean."""
        found = self.predict(points)
        return {
            n: float(
                np.sqrt(np.mean([(f[n] - v[n]) ** 2 for f, v in zip(found, values, strict=True)]))
                / np.mean([v[n] for v in values])
            )
            for n in self.names
        }

    def determination(self, points: Sequence[Params], values: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """R2 of each value: 1 less the share of its variance over the points that is left unexplained."""
        found = self.predict(points)
        made = {}
        for n in self.names:
            true = np.array([v[n] for v in values])
            left = true - np.array([f[n] for f in found])
            made[n] = float(1 - np.mean(left**2) / true.var()) if true.var() else math.nan
        return made

    def problem(self, original: Problem) -> Problem:
        """The problem with this model in the simulator's place."""
        return replace(
            original,
            name=f"{original.name}-proxy",
            evaluate=lambda params: self.predict([params])[0],
            identity={**original.identity, "proxy": ", ".join(self.names)},
        )
