"""Several networks and one chip of several sub-accelerators, searched together under hard limits.

NASAIC (arXiv 2002.04116): an LSTM controller decides the networks, then the chip; a mapper assigns layers to
sub-accelerators; specifications on latency, energy and area are penalties, and networks are trained only where a chip
met all of them. Beside it what it is compared with: the networks first and then the chip, the chip first and then the
networks, and Monte-Carlo sampling, all within one budget of mapped chips and of trained networks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hasten.cost.chips.chip_cost import ChipCost
from hasten.cost.chips.dataflow import CLOCK, DATAFLOWS, ConvShape, SubAccelerator, area, layer_cost
from hasten.errors import HastenError
from hasten.search.codec import Codec
from hasten.search.codesign.assignment import Assignment, assign
from hasten.search.problem import Infeasible, Objective, Problem
from hasten.search.space import Params, Space, categorical
from hasten.train.loop import descend

METHODS = ("nasaic", "networks-first", "chip-first", "monte-carlo")
Indices = tuple[int, ...]


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


@dataclass(frozen=True)
class ChipSpace:
    """Chips of ``units`` sub-accelerators; all their PEs and all their bandwidth are limited together.

    Args:
        units: most sub-accelerators; each may have 0 PEs, and is then absent.
        dataflows: a sub-accelerator is one of.
        pes, bandwidths: what each may have; 0 among ``pes`` leaves it out. Bandwidths in GB/s.
        total_pes, total_bandwidth: limits of the chip.

    Raises:
        HastenError: nothing to choose from, or no choice within the limits.
    """

    units: int = 2
    dataflows: tuple[str, ...] = DATAFLOWS
    pes: tuple[int, ...] = tuple(range(0, 4097, 256))
    bandwidths: tuple[int, ...] = tuple(range(8, 65, 8))
    total_pes: int = 4096
    total_bandwidth: int = 64

    def __post_init__(self) -> None:
        if self.units < 1 or not self.dataflows or not self.pes or not self.bandwidths:
            raise HastenError("a chip space needs a unit, and dataflows, PEs and bandwidths to choose from")
        if min(self.pes) < 0 or min(self.bandwidths) <= 0:
            raise HastenError("PEs count from 0, and bandwidth is above 0")
        if max(self.pes) == 0 or min(p for p in self.pes if p) > self.total_pes:
            raise HastenError("no choice of PEs is within the chip's limit")
        if min(self.bandwidths) * self.units > self.total_bandwidth:
            raise HastenError("the least bandwidth of all units together is over the chip's limit")

    @property
    def space(self) -> Space:
        """Parameters ``dataflow-1``, ``pes-1``, ``bandwidth-1``, ``dataflow-2``, ..."""
        return Space(
            [
                p
                for k in range(1, self.units + 1)
                for p in (
                    categorical(f"dataflow-{k}", self.dataflows),
                    categorical(f"pes-{k}", self.pes),
                    categorical(f"bandwidth-{k}", self.bandwidths),
                )
            ]
        )

    def chip(self, params: Mapping[str, Any]) -> tuple[SubAccelerator, ...]:
        """The sub-accelerators of a point, absent ones left out.

        Raises:
            Infeasible: none is left, or the limits of the chip are exceeded.
        """
        rows = [
            (params[f"dataflow-{k}"], params[f"pes-{k}"], params[f"bandwidth-{k}"]) for k in range(1, self.units + 1)
        ]
        rows = [r for r in rows if r[1] > 0]
        if not rows:
            raise Infeasible("a chip without processing elements")
        if sum(r[1] for r in rows) > self.total_pes:
            raise Infeasible(f"more than {self.total_pes} processing elements")
        if sum(r[2] for r in rows) > self.total_bandwidth:
            raise Infeasible(f"more than {self.total_bandwidth} GB/s")
        return tuple(SubAccelerator(*r) for r in rows)


@dataclass(frozen=True)
class Specs:
    """Limits of a chip, or what one costs, as three numbers: seconds, joules and square metres."""

    latency: float
    energy: float
    area: float

    @classmethod
    def of(cls, cost: ChipCost) -> Specs:
        """Those of a cost whose area is known."""
        assert cost.area is not None
        return cls(cost.latency, cost.energy, cost.area)

    @property
    def all(self) -> tuple[float, float, float]:
        return (self.latency, self.energy, self.area)

    def scaled(self, factor: float) -> Specs:
        return Specs(self.latency * factor, self.energy * factor, self.area * factor)

    def meets(self, limits: Specs) -> bool:
        return all(a <= b for a, b in zip(self.all, limits.all, strict=True))


def penalty(cost: Specs, limits: Specs, bounds: Specs) -> float:
    """How far over the limits, each in parts of the distance to its bound; 0 where all hold (section III)."""
    found = 0.0
    for value, limit, bound in zip(cost.all, limits.all, bounds.all, strict=True):
        if value > limit:
            found += (value - limit) / max(bound - limit, 1e-12 * limit)
    return found


def map_chip(
    networks: Sequence[Sequence[ConvShape]], chip: Sequence[SubAccelerator], deadline: float = math.inf
) -> tuple[ChipCost, Assignment]:
    """Cost of the networks on the chip, their layers assigned for the least energy within the deadline (seconds).

    Past the deadline the soonest assignment that was found. The chip is bound by what bounds the layers that take most
    of the time: ``compute`` or ``memory``. The assignment's makespan is in cycles, in which a list schedule compares
    exactly.
    """
    costs = [[[layer_cost(layer, unit) for unit in chip] for layer in network] for network in networks]
    times = [[[c.cycles for c in row] for row in network] for network in costs]
    energies = [[[c.energy for c in row] for row in network] for network in costs]
    found = assign(times, energies, deadline * CLOCK, restarts=0, pairs=False)
    placed = zip(itertools.chain(*costs), itertools.chain(*found.units), strict=True)
    chosen = [row[unit] for row, unit in placed]
    waiting = sum(c.cycles for c in chosen if c.bound == "memory")
    cost = ChipCost(
        latency=found.makespan / CLOCK,
        energy=found.energy,
        bytes={level: sum(c.bytes[level] for c in chosen) for level in ("buffer", "memory")},
        area=area(chip),
        bound="memory" if 2 * waiting > sum(c.cycles for c in chosen) else "compute",
    )
    return cost, found


class SpentError(Exception):
    """The budget of mapped chips is used up."""


@dataclass
class Solution:
    """Networks and a chip, with what they cost and reach."""

    networks: tuple[Params, ...]
    chip: Params
    cost: Specs
    accuracies: tuple[float, ...]
    accuracy: float
    meets: bool


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
    nearest: Solution | None = None
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
        return self.costs[key]

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
        """Trains the networks of a solution, keeps the best that meets the limits (and the nearest), returns its
        weighted accuracy; 0 where the budget of trained networks does not allow for them."""
        reached = self.accuracy(networks)
        if reached is None:
            return 0.0
        each, mean = reached
        solution = Solution(
            tuple(c.decode(p) for c, p in zip(self.codecs, self._parts(networks), strict=True)),
            self.chip_codec.decode(chip), cost, each, mean, cost.meets(self.limits),
        )  # fmt: skip
        if solution.meets and (self.best is None or mean > self.best.accuracy):
            self.best = solution
        if self.nearest is None or self.penalty(cost) < self.penalty(self.nearest.cost):
            self.nearest = solution
        return mean

    @property
    def result(self) -> Solution | None:
        """The best that meets the limits, or else what came nearest."""
        return self.best or self.nearest


class Controller(nn.Module):
    """An LSTM that decides one thing after the other, its last choice fed back (section III).

    Args:
        sizes: choices of each decision: the networks' decisions, then the chip's.
        networks: how many decisions are of the networks.
        hidden: state size.
        seed: of its weights and choices.
    """

    def __init__(self, sizes: Sequence[int], networks: int, hidden: int = 48, seed: int = 0) -> None:
        super().__init__()
        self.sizes, self.networks = tuple(sizes), networks
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.cell = nn.LSTMCell(hidden, hidden)
            self.begin = nn.Parameter(torch.zeros(1, hidden))
            self.choices = nn.ModuleList(nn.Embedding(n, hidden) for n in self.sizes)
            self.heads = nn.ModuleList(nn.Linear(hidden, n) for n in self.sizes)
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.1, 0.1)

    def forward(
        self,
        forced: Sequence[int] = (),
        allowed: Callable[[list[int]], Sequence[bool] | None] = lambda chosen: None,
        count: int = 1,
    ) -> tuple[list[Indices], Tensor]:
        """Decides ``count`` times, independently of each other.

        Args:
            forced: the first decisions, given.
            allowed: the choices that may be taken, from those taken so far; None for all.
            count: how many samples.

        Returns:
            The choices of each sample, and the log-probability of each choice (count, decisions), 0 for forced ones.
        """
        x, state = self.begin.expand(count, -1), None
        chosen: list[list[int]] = [[] for _ in range(count)]
        logs: list[Tensor] = []
        for step in range(len(self.sizes)):
            state = self.cell(x, state)
            if step < len(forced):
                choice = torch.full((count,), int(forced[step]))
                logs.append(torch.zeros(count))
            else:
                # Bounded, so that no choice is soon impossible.
                scores = 2.5 * torch.tanh(self.heads[step](state[0]) / 2.5)
                permitted = [allowed(row) for row in chosen]
                if any(p is not None for p in permitted):
                    every = [True] * self.sizes[step]
                    mask = torch.tensor([every if p is None else list(p) for p in permitted])
                    scores = scores.masked_fill(~mask, -math.inf)
                log = scores.log_softmax(-1)
                choice = torch.multinomial(log.detach().exp(), 1, generator=self.generator)[:, 0]
                logs.append(log.gather(1, choice[:, None])[:, 0])
            for row, index in zip(chosen, choice.tolist(), strict=True):
                row.append(index)
            x = self.choices[step](choice)
        return [tuple(row) for row in chosen], torch.stack(logs, 1)


# Of a choice's entropy beside rewards scaled to a mean distance of 1 from their baseline. Not in the paper, whose
# controller has five hundred episodes to make up for an early choice.
_ENTROPY = 0.3


class _Learning:
    """Policy gradient with a moving mean of the reward as its baseline and a moving mean of the distance from it as its
    unit: one of each for networks, one for chips."""

    def __init__(self, controller: Controller, rate: float, discount: float) -> None:
        self.controller, self.discount = controller, discount
        self.optimizer = torch.optim.RMSprop(controller.parameters(), lr=rate)
        self.baseline: dict[str, float] = {}
        self.spread: dict[str, float] = {}

    def step(self, samples: Sequence[tuple[str, Tensor, float]]) -> None:
        loss = torch.zeros(())
        for kind, logs, reward in samples:
            before = self.baseline.setdefault(kind, reward)
            self.baseline[kind] = 0.9 * before + 0.1 * reward
            away = reward - before
            self.spread[kind] = 0.9 * self.spread.get(kind, abs(away)) + 0.1 * abs(away)
            advantage = away / (self.spread[kind] + 1e-6)
            steps = len(logs)
            discounts = self.discount ** torch.arange(steps - 1, -1, -1)
            # The second term is the gradient of the choices' entropy: without it the first chips that meet the limits
            # are all that is looked at.
            loss = loss - (discounts * logs * (advantage - _ENTROPY * logs.detach())).sum()
        descend(self.optimizer, loss / len(samples), parameters=self.controller.parameters(), clip=1.0)


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
    learning = _Learning(controller, rate, discount)
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
    learning = _Learning(controller, rate, discount)
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
        learning = _Learning(controller, rate, discount)
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
    learning = _Learning(controller, rate, discount)
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


def chip_problem(networks: Sequence[Sequence[ConvShape]], chips: ChipSpace, deadline: float = math.inf) -> Problem:
    """The chip for given networks as a search: least latency (s), energy (J) and area (mm^2).

    Args:
        networks: their layers.
        deadline: seconds within which the mapper saves energy.
    """

    def evaluate(params: Params) -> Mapping[str, Any]:
        units = chips.chip(params)
        cost, found = map_chip(networks, units, deadline)
        return {
            "latency": cost.latency,
            "energy": cost.energy,
            "area": area(units) * 1e6,
            "units": [list(u) for u in found.units],
        }

    return Problem(
        "chip",
        chips.space,
        (Objective("latency", unit="s"), Objective("energy", unit="J"), Objective("area", unit="mm2")),
        evaluate,
        identity={
            "networks": str(networks),
            "deadline": str(deadline * CLOCK),  # in cycles, as studies on disk have it
            "limits": f"{chips.total_pes} PEs, {chips.total_bandwidth} GB/s",
        },
    )
