"""Several networks and one chip of several sub-accelerators, searched together under hard limits.

NASAIC (arXiv 2002.04116): an LSTM controller decides the networks, then the chip; a mapper assigns layers to
sub-accelerators; specifications on latency, energy and area are penalties, and networks are trained only where a chip
met all of them. Beside it what it is compared with: the networks first and then the chip, the chip first and then the
networks, and Monte-Carlo sampling, all within one budget of mapped chips and of trained networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from hasten.cost.chips.dataflow import ConvShape
from hasten.errors import HastenError
from hasten.search.codec import Codec
from hasten.search.codesign.chips import ChipSpace, Specs, map_chip, penalty
from hasten.search.codesign.controller import Controller, Indices, PolicyGradient
from hasten.search.parameter import Params
from hasten.search.problem import Infeasible
from hasten.search.space import Space

METHODS = ("nasaic", "networks-first", "chip-first", "monte-carlo")


@dataclass(frozen=True)
class NetworkTask:
    """A task with its networks.

    Args:
        name: of the task.
        space: its networks' choices.
        layers: the layers of a choice.
        accuracy: what a choice reaches when it is trained, 0 to 1. The costly part: asked once for each choice.
        weight: of this task in the reward; all weights are scaled to sum to 1.
    """

    name: str
    space: Space
    layers: Callable[[Params], tuple[ConvShape, ...]]
    accuracy: Callable[[Params], float]
    weight: float = 1.0


class SpentError(Exception):
    """The budget of mapped chips is used up."""


@dataclass
class Solution:
    """Networks and a chip, with what they cost and reach; accuracies are NaN where no training was left for them."""

    networks: tuple[Params, ...]
    chip: Params
    cost: Specs
    accuracies: tuple[float, ...]
    accuracy: float
    meets: bool


def meeting(solutions: Sequence[Solution | None]) -> list[Solution]:
    """Those of several searches' solutions that there are and that meet all limits."""
    return [s for s in solutions if s is not None and s.meets]


def mean_accuracy(solutions: Sequence[Solution | None]) -> float:
    """Mean accuracy of those that meet the limits; 0 when none does."""
    met = meeting(solutions)
    return sum(s.accuracy for s in met) / len(met) if met else 0.0


@dataclass
class CoProblem:
    """Tasks and chips with their limits, and the account of what was asked.

    Args:
        tasks: one network each.
        chips: to choose from.
        limits: that must hold.
        bounds: the costs that count as 1 in the penalty.
        mapped, trained: budgets: points asked for (networks on a chip), and networks trained of each task. A network
            is trained once; when the budget is spent, only those known can be part of a solution.
        rho: weight of the penalty in the reward.
    """

    tasks: tuple[NetworkTask, ...]
    chips: ChipSpace
    limits: Specs
    bounds: Specs
    mapped: int = 2000
    trained: int = 40
    rho: float = 10.0
    best: Solution | None = None
    nearest: tuple[float, Indices, Indices, Specs] | None = None
    costs: dict[tuple[Indices, Indices], Specs | None] = field(default_factory=dict)
    accuracies: dict[tuple[int, Indices], float] = field(default_factory=dict)
    asked: int = 0

    def __post_init__(self) -> None:
        if not self.tasks:
            raise HastenError("a co-exploration needs at least one task")
        self.codecs = [Codec(t.space) for t in self.tasks]
        self.chip_codec = Codec(self.chips.space)
        total = sum(t.weight for t in self.tasks)
        self.weights = [t.weight / total for t in self.tasks]
        self.splits = list(np.cumsum([len(c.sizes) for c in self.codecs])[:-1])
        self._layers: dict[tuple[int, Indices], tuple[ConvShape, ...]] = {}

    @property
    def network_sizes(self) -> tuple[int, ...]:
        """Choices of all networks' decisions, one after the other."""
        return tuple(n for codec in self.codecs for n in codec.sizes)

    def _parts(self, networks: Indices) -> list[Indices]:
        edges = [0, *self.splits, len(networks)]
        return [networks[a:b] for a, b in pairwise(edges)]

    def layers(self, networks: Indices) -> list[tuple[ConvShape, ...]]:
        """Layers of each network."""
        found = []
        for i, part in enumerate(self._parts(networks)):
            if (i, part) not in self._layers:
                self._layers[i, part] = self.tasks[i].layers(self.codecs[i].decode(part))
            found.append(self._layers[i, part])
        return found

    def cost(self, networks: Indices, chip: Indices) -> Specs | None:
        """What they cost; None where there is no such chip.

        Raises:
            SpentError: the budget is used up.
        """
        key = (networks, chip)
        if self.asked >= self.mapped:
            raise SpentError
        self.asked += 1
        if key not in self.costs:
            try:
                units = self.chips.chip(self.chip_codec.decode(chip))
                self.costs[key] = Specs.of(map_chip(self.layers(networks), units, self.limits.latency)[0])
            except Infeasible:
                self.costs[key] = None
        cost = self.costs[key]
        if cost is not None and (self.nearest is None or self.penalty(cost) < self.nearest[0]):
            self.nearest = (self.penalty(cost), networks, chip, cost)
        return cost

    def penalty(self, cost: Specs | None) -> float:
        """`penalty`, and 3 (every cost at its bound) where there is no such chip."""
        return 3.0 if cost is None else penalty(cost, self.limits, self.bounds)

    def accuracy(self, networks: Indices) -> tuple[tuple[float, ...], float] | None:
        """What each network reaches, and their weighted mean; None where one would have to be trained beyond the
        budget."""
        found = []
        for i, part in enumerate(self._parts(networks)):
            if (i, part) not in self.accuracies:
                if sum(k == i for k, _ in self.accuracies) >= self.trained:
                    return None
                self.accuracies[i, part] = self.tasks[i].accuracy(self.codecs[i].decode(part))
            found.append(self.accuracies[i, part])
        return tuple(found), sum(w * a for w, a in zip(self.weights, found, strict=True))

    def note(self, networks: Indices, chip: Indices, cost: Specs) -> float:
        """Trains the networks of a solution, keeps the best that meets the limits, returns its weighted accuracy; 0
        where the budget of trained networks does not allow for them."""
        solution = self._solution(networks, chip, cost)
        if math.isnan(solution.accuracy):
            return 0.0
        if solution.meets and (self.best is None or solution.accuracy > self.best.accuracy):
            self.best = solution
        return solution.accuracy

    def _solution(self, networks: Indices, chip: Indices, cost: Specs) -> Solution:
        each, mean = self.accuracy(networks) or ((math.nan,) * len(self.tasks), math.nan)
        return Solution(
            tuple(c.decode(p) for c, p in zip(self.codecs, self._parts(networks), strict=True)),
            self.chip_codec.decode(chip), cost, each, mean, cost.meets(self.limits),
        )  # fmt: skip

    @property
    def result(self) -> Solution | None:
        """The best that meets the limits, or else what came nearest of all that was mapped; None when nothing was.

        The networks of what came nearest are trained now, where they are not known and the budget allows for it.
        """
        if self.best is None and self.nearest is not None:
            return self._solution(*self.nearest[1:])
        return self.best


def _permitted(problem: CoProblem, chosen: list[int]) -> list[bool] | None:
    """Choices of the next decision of a chip that leave it within its limits, with something in it."""
    chips = problem.chips
    at = len(chosen) - len(problem.network_sizes)
    if at < 0 or at % 3 == 0:
        return None
    so_far = chosen[len(problem.network_sizes) :]
    unit, part = divmod(at, 3)
    if part == 1:
        used = sum(chips.pes[so_far[3 * u + 1]] for u in range(unit))
        empty = used == 0 and unit == chips.units - 1
        return [used + n <= chips.total_pes and not (empty and n == 0) for n in chips.pes]
    rest = (chips.units - 1 - unit) * min(chips.bandwidths)
    spent = sum(chips.bandwidths[so_far[3 * u + 2]] for u in range(unit))
    return [spent + b + rest <= chips.total_bandwidth for b in chips.bandwidths]


def _random_chip(problem: CoProblem, rng: np.random.Generator, networks: Indices) -> Indices:
    chosen = list(networks)
    while len(chosen) < len(networks) + 3 * problem.chips.units:
        permitted = _permitted(problem, chosen)
        size = problem.chip_codec.sizes[len(chosen) - len(networks)]
        options = [i for i in range(size) if permitted is None or permitted[i]]
        chosen.append(int(rng.choice(options)))
    return tuple(chosen[len(networks) :])


def _random_networks(problem: CoProblem, rng: np.random.Generator) -> Indices:
    return tuple(int(rng.integers(n)) for n in problem.network_sizes)


def _controller(problem: CoProblem, seed: int) -> Controller:
    networks = problem.network_sizes
    return Controller([*networks, *problem.chip_codec.sizes], len(networks), seed=seed)


def _nasaic(problem: CoProblem, seed: int, phi: int, rate: float, discount: float) -> None:
    controller = _controller(problem, seed)
    learning = PolicyGradient(controller, rate, discount)
    count = len(problem.network_sizes)

    def allowed(chosen: list[int]) -> list[bool] | None:
        return _permitted(problem, chosen)

    while True:
        (chosen,), (logs,) = controller((), allowed)
        networks = chosen[:count]
        samples = [(chosen, logs)]
        if phi:
            samples += zip(*controller(networks, allowed, phi), strict=True)
        met, penalties = [], []
        for point, _ in samples:
            cost = problem.cost(networks, point[count:])
            penalties.append(problem.penalty(cost))
            if cost is not None and penalties[-1] == 0:
                met.append((point[count:], cost))
        # Networks are trained only where a chip of this episode carries them, and are paid by the best of its chips:
        # one chip alone, drawn badly, says little of them.
        reward = max(problem.note(networks, *m) for m in met) if met else -problem.rho * min(penalties)
        hardware = [("chip", logs[count:], -problem.rho * p) for (_, logs), p in zip(samples, penalties, strict=True)]
        learning.step([("networks", logs[:count], reward), *hardware])


def _networks_first(problem: CoProblem, seed: int, phi: int, rate: float, discount: float) -> None:
    networks = best_networks(problem, seed, rate, discount)
    controller = _controller(problem, seed)
    learning = PolicyGradient(controller, rate, discount)
    count = len(networks)
    while True:
        batch = []
        for chosen, logs in zip(*controller(networks, lambda c: _permitted(problem, c), max(1, phi)), strict=True):
            cost = problem.cost(networks, chosen[count:])
            if cost is not None:
                problem.note(networks, chosen[count:], cost)
            batch.append(("chip", logs[count:], -problem.rho * problem.penalty(cost)))
        learning.step(batch)


def best_networks(problem: CoProblem, seed: int = 0, rate: float = 0.005, discount: float = 1.0) -> Indices:
    """The networks of the highest weighted accuracy that the controller finds, whatever they cost.

    Spends the budget of trained networks, of each task by itself (accuracies of tasks do not depend on each other).
    """
    found: list[int] = []
    for i, codec in enumerate(problem.codecs):
        controller = Controller(codec.sizes, len(codec.sizes), seed=seed + i)
        learning = PolicyGradient(controller, rate, discount)
        idle = 0
        while sum(k == i for k, _ in problem.accuracies) < problem.trained and idle < 500:
            (chosen,), (logs,) = controller()
            idle = idle + 1 if (i, chosen) in problem.accuracies else 0
            if (i, chosen) not in problem.accuracies:
                problem.accuracies[i, chosen] = problem.tasks[i].accuracy(codec.decode(chosen))
            learning.step([("network", logs, problem.accuracies[i, chosen])])
        own = {part: a for (k, part), a in problem.accuracies.items() if k == i}
        found.extend(max(own.items(), key=lambda row: row[1])[0])
    return tuple(found)


def _chip_first(problem: CoProblem, seed: int, phi: int, rate: float, discount: float) -> None:
    rng = np.random.default_rng(seed)
    best: tuple[float, Indices] | None = None
    while problem.asked < problem.mapped // 2:
        networks = _random_networks(problem, rng)
        chip = _random_chip(problem, rng, networks)
        cost = problem.cost(networks, chip)
        if cost is None:
            continue
        # The chip whose cost is closest to the limits from below, or else the least over them.
        shares = [a / b for a, b in zip(cost.all, problem.limits.all, strict=True)]
        distance = sum(abs(1 - s) for s in shares) + (100 * problem.penalty(cost) if max(shares) > 1 else 0)
        if best is None or distance < best[0]:
            best = (distance, chip)
    if best is None:
        return
    count = len(problem.network_sizes)
    controller = Controller(problem.network_sizes, count, seed=seed)
    learning = PolicyGradient(controller, rate, discount)
    while True:
        (networks,), (logs,) = controller()
        cost = problem.cost(networks, best[1])
        over = problem.penalty(cost)
        reward = -problem.rho * over
        if cost is not None and over == 0:
            reward += problem.note(networks, best[1], cost)
        learning.step([("network", logs, reward)])


def _monte_carlo(problem: CoProblem, seed: int, phi: int, rate: float, discount: float) -> None:
    rng = np.random.default_rng(seed)
    while True:
        networks = _random_networks(problem, rng)
        chip = _random_chip(problem, rng, networks)
        cost = problem.cost(networks, chip)
        if cost is not None and cost.meets(problem.limits):
            problem.note(networks, chip, cost)


_RUN = {"nasaic": _nasaic, "networks-first": _networks_first, "chip-first": _chip_first, "monte-carlo": _monte_carlo}


def coexplore(
    problem: CoProblem, method: str = "nasaic", *, seed: int = 0, phi: int = 10, rate: float = 0.005,
    discount: float = 1.0,
) -> Solution | None:  # fmt: skip
    """Searches until the problem's budget is used up.

    Args:
        problem: tasks, chips, limits and budgets; its account is filled.
        method: ``nasaic`` (a joint step, then ``phi`` steps in which only the chip changes), ``networks-first`` (the
            most accurate networks, then a chip for them), ``chip-first`` (a chip near the limits, then networks for
            it), ``monte-carlo``.
        seed: of every choice.
        phi: steps of the chip alone (section IV: 10).
        rate, discount: of the policy gradient.

    Returns:
        The most accurate that meets all limits; where none does, what came nearest; None if nothing could be mapped.

    Raises:
        HastenError: an unknown method.
    """
    if method not in _RUN:
        raise HastenError(f"no method {method!r}: take one of {', '.join(METHODS)}")
    try:
        _RUN[method](problem, seed, phi, rate, discount)
    except SpentError:
        pass
    return problem.result


def limits_from(
    tasks: Sequence[NetworkTask], chips: ChipSpace, networks: Sequence[Params], share: float, *, seed: int = 0,
    samples: int = 500,
) -> tuple[Specs, Specs]:  # fmt: skip
    """Limits and bounds as the paper sets them: from the chips that carry given networks (the most accurate ones).

    Args:
        networks: one of each task.
        share: limits are this part of what the best chip costs: of those drawn and not dominated, the one whose
            largest cost is least, each relative to its median among them. With a share below 1 no chip drawn carries
            the given networks within the limits.
        samples: chips drawn.

    Returns:
        The limits, and as bounds the largest costs seen among the drawn chips that are not dominated.
    """
    anywhere = Specs(math.inf, math.inf, math.inf)
    problem = CoProblem(tuple(tasks), chips, anywhere, anywhere, mapped=samples)
    indices = tuple(i for c, p in zip(problem.codecs, networks, strict=True) for i in c.encode(p))
    layers = problem.layers(indices)
    rng = np.random.default_rng(seed)
    seen: list[Specs] = []
    for _ in range(samples):
        units = chips.chip(problem.chip_codec.decode(_random_chip(problem, rng, indices)))
        # Latency first: what the least deadline allows, so that no chip is judged for waiting.
        seen.append(Specs.of(map_chip(layers, units, 0.0)[0]))
    front = [s for s in seen if not any(o is not s and o.meets(s) and o != s for o in seen)]
    middle = [float(np.median(values)) for values in zip(*(s.all for s in front), strict=True)]
    best = min(front, key=lambda s: max(a / m for a, m in zip(s.all, middle, strict=True)))
    bounds = Specs(*(max(values) for values in zip(*(s.all for s in front), strict=True)))
    return best.scaled(share), bounds
