"""Who explores: agents that propose points as indices and are told how good they were. Larger is better.

The agents of ArchGym (arXiv 2306.08888): random walk, genetic algorithm, ant colony, Bayesian optimization and
reinforcement learning (`hasten.search.agents.policies`). As samplers of a study they go by the same names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from hasten.errors import HastenError
from hasten.search.agents.registry import register_agent

Indices = tuple[int, ...]


class Agent(ABC):
    """Proposes, is told, proposes better.

    Args:
        sizes: values of each parameter.
        seed: of every choice.
    """

    def __init__(self, sizes: Sequence[int], seed: int = 0) -> None:
        if not sizes or min(sizes) < 1:
            raise HastenError("an agent needs at least one parameter, with a value each")
        self.sizes = tuple(sizes)
        self.rng = np.random.default_rng(seed)
        self.best: Indices | None = None
        self.best_reward = -np.inf

    @abstractmethod
    def ask(self) -> Indices:
        """A point to try."""

    def tell(self, point: Indices, reward: float, metrics: Sequence[float] = ()) -> None:
        """How good a point was: of those asked for, in that order, or of others."""
        if reward > self.best_reward:
            self.best, self.best_reward = point, reward
        self._learn(point, reward, metrics)

    @abstractmethod
    def _learn(self, point: Indices, reward: float, metrics: Sequence[float]) -> None: ...

    def _anywhere(self) -> Indices:
        return tuple(int(self.rng.integers(n)) for n in self.sizes)


@register_agent("random-walk", "agent: steps that change one parameter, back to the best now and then")
class RandomWalk(Agent):
    """Changes ``change`` parameters of where it stands; with chance ``back`` it stands where it was best.

    Args:
        change: parameters changed in a step; 0 for all of them, which is random search.
        back: chance of a step from the best point.
    """

    def __init__(self, sizes: Sequence[int], seed: int = 0, change: int = 0, back: float = 0.0) -> None:
        super().__init__(sizes, seed)
        if change < 0 or not 0 <= back <= 1:
            raise HastenError("a random walk takes change from 0 and back from 0 to 1")
        self.change, self.back = min(change, len(self.sizes)), back
        self.here: Indices | None = None

    def ask(self) -> Indices:
        if self.here is None or not self.change:
            self.here = self._anywhere()
            return self.here
        start = self.best if self.best is not None and self.rng.random() < self.back else self.here
        point = list(start)
        for i in self.rng.choice(len(point), self.change, replace=False):
            point[i] = int(self.rng.integers(self.sizes[i]))
        self.here = tuple(point)
        return self.here

    def _learn(self, point: Indices, reward: float, metrics: Sequence[float]) -> None:
        pass


@register_agent("genetic", "agent: a genetic algorithm, generation by generation")
class Genetic(Agent):
    """Generations of ``population`` points: parents by tournament, uniform crossover, mutation; the best one stays.

    A population that has converged asks for the same points again (`Explorer.run` says who pays for that), and stays
    at a local optimum that few mutations do not lead out of: there random search can find more.

    Args:
        population: points of a generation.
        mutation: chance that a parameter of a child is drawn anew; when None, one over the number of parameters, so
            that about one of a child's is, however many there are (Muehlenbein, PPSN 1992).
        crossover: chance that a child has two parents.
        tournament: points of which the best becomes a parent.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int = 0, population: int = 16, mutation: float | None = None,
        crossover: float = 0.9, tournament: int = 3,
    ) -> None:  # fmt: skip
        super().__init__(sizes, seed)
        mutation = 1 / len(self.sizes) if mutation is None else mutation
        if population < 2 or not 0 <= mutation <= 1 or not 0 <= crossover <= 1 or tournament < 1:
            raise HastenError("a genetic algorithm takes a population of 2 and more, and chances from 0 to 1")
        self.population, self.mutation, self.crossover = population, mutation, crossover
        self.tournament = min(tournament, population)
        self.children: list[Indices] = []
        self.scored: list[tuple[float, Indices]] = []
        self.parents: list[tuple[float, Indices]] = []

    def ask(self) -> Indices:
        if not self.parents and len(self.scored) < self.population:
            return self._anywhere()
        if not self.children:
            self.children = [self._child() for _ in range(self.population - 1)]
        return self.children.pop()

    def _child(self) -> Indices:
        first, second = self._parent(), self._parent()
        mixed = self.rng.random() < self.crossover
        child = [b if mixed and self.rng.random() < 0.5 else a for a, b in zip(first, second, strict=True)]
        for i, n in enumerate(self.sizes):
            if self.rng.random() < self.mutation:
                child[i] = int(self.rng.integers(n))
        return tuple(child)

    def _parent(self) -> Indices:
        chosen = self.rng.choice(len(self.parents), self.tournament, replace=False)
        return max((self.parents[i] for i in chosen), key=lambda one: one[0])[1]

    def _learn(self, point: Indices, reward: float, metrics: Sequence[float]) -> None:
        self.scored.append((reward, point))
        if len(self.scored) >= self.population - bool(self.parents):
            keep = [max(self.parents, key=lambda one: one[0])] if self.parents else []
            self.parents, self.scored, self.children = [*keep, *self.scored], [], []


@register_agent("ants", "agent: an ant colony, pheromone on every value")
class AntColony(Agent):
    """Ants choose a value for each parameter by the pheromone on it; the best ant of all leaves more there.

    An ant colony system (Dorigo and Gambardella, 1997) with the updates of DeepSwarm, which ArchGym takes, and its
    defaults, but for less greediness: where an ant has gone the pheromone goes back towards ``start``; after each
    colony that on the best ant's values, and no other, goes towards ``deposit``. So it stays between the two, and no
    value becomes too rare to be tried. DeepSwarm deposits the score; rewards have any scale and sign here, and the
    deposit is always the same.

    Args:
        ants: of a colony, after which the best one's trail is renewed.
        evaporation: share of the way to ``deposit`` that the trail of the best ant goes then.
        greediness: chance of the strongest value instead of one drawn by strength.
        deposit: the most pheromone that a value can have.
        start: pheromone on each value at first.
        decay: share of the way back to ``start`` that an ant's trail goes.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int = 0, ants: int = 8, evaporation: float = 0.1,
        greediness: float = 0.2, deposit: float = 1.0, start: float = 0.1, decay: float = 0.1,
    ) -> None:  # fmt: skip
        super().__init__(sizes, seed)
        if ants < 1 or not all(0 <= share <= 1 for share in (evaporation, greediness, decay)):
            raise HastenError("an ant colony takes ants from 1; evaporation, greediness and decay from 0 to 1")
        if not 0 < start <= deposit < np.inf:
            raise HastenError("an ant colony takes a start above 0, and a deposit from there on")
        self.ants, self.evaporation, self.greediness = ants, evaporation, greediness
        self.deposit, self.start, self.decay = deposit, start, decay
        self.trail = [np.full(n, float(start)) for n in self.sizes]
        self.told = 0

    def ask(self) -> Indices:
        point = []
        for trail in self.trail:
            if self.rng.random() < self.greediness:
                strongest = np.flatnonzero(trail == trail.max())
                index = int(self.rng.choice(strongest))
            else:
                index = int(np.searchsorted(np.cumsum(trail), self.rng.random() * trail.sum(), side="right"))
                index = min(index, len(trail) - 1)
            point.append(index)
        return tuple(point)

    def _learn(self, point: Indices, reward: float, metrics: Sequence[float]) -> None:
        for trail, index in zip(self.trail, point, strict=True):
            trail[index] += self.decay * (self.start - trail[index])
        self.told += 1
        if self.told % self.ants == 0 and self.best is not None:
            for trail, index in zip(self.trail, self.best, strict=True):
                trail[index] += self.evaporation * (self.deposit - trail[index])


@register_agent("parzen", "agent: Bayesian optimization with Parzen estimators of good points")
class Parzen(Agent):
    """Bayesian optimization with tree-structured Parzen estimators: values that are commoner in good points than in
    bad ones, each parameter by itself (Bergstra et al., NIPS 2011). A point that is known is not asked for again.

    Values count as categories, and each parameter by itself: where a value is good only together with another's, and
    bad on average, points that have both are what it asks for least, and random search can find more with few samples.

    Args:
        start: random points first.
        share: of the points that count as good.
        candidates: drawn from the good ones' distribution; of the new ones the likeliest to be good is tried.
        prior: pseudo-count of each value.
    """

    def __init__(
        self, sizes: Sequence[int], seed: int = 0, start: int = 10, share: float = 0.15, candidates: int = 24,
        prior: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(sizes, seed)
        if start < 1 or not 0 < share < 1 or candidates < 1 or prior <= 0:
            raise HastenError("Parzen estimators take a start and candidates from 1, a share between 0 and 1")
        self.start, self.share, self.candidates, self.prior = start, share, candidates, prior
        # Rows are doubled when they are full: turning a list into an array at each try takes longer than all the rest.
        self.points = np.empty((64, len(self.sizes)), np.int64)
        self.rewards = np.empty(64)
        self.count = 0
        self.known: set[Indices] = set()

    def ask(self) -> Indices:
        if self.count < self.start:
            return self._anywhere()
        rewards, points = self.rewards[: self.count], self.points[: self.count]
        count = max(1, round(self.share * len(rewards)))
        good = np.zeros(len(rewards), bool)
        good[np.argsort(-rewards, kind="stable")[:count]] = True
        drawn = np.empty((self.candidates, len(self.sizes)), np.int64)
        ratio = np.zeros(self.candidates)
        for i, n in enumerate(self.sizes):
            high = np.bincount(points[good, i], minlength=n) + self.prior
            low = np.bincount(points[~good, i], minlength=n) + self.prior
            high, low = high / high.sum(), low / low.sum()
            drawn[:, i] = np.minimum(np.searchsorted(np.cumsum(high), self.rng.random(self.candidates)), n - 1)
            ratio += np.log(high[drawn[:, i]] / low[drawn[:, i]])
        for best in np.argsort(-ratio, kind="stable"):
            point = tuple(int(v) for v in drawn[best])
            if point not in self.known:
                return point
        return self._anywhere()

    def _learn(self, point: Indices, reward: float, metrics: Sequence[float]) -> None:
        self.known.add(point)
        if self.count == len(self.rewards):
            self.points = np.concatenate((self.points, np.empty_like(self.points)))
            self.rewards = np.concatenate((self.rewards, np.empty_like(self.rewards)))
        self.points[self.count], self.rewards[self.count] = point, reward
        self.count += 1
