"""Architecture search by growing trained networks, as EAS does (arXiv 1707.04873), and random growth beside it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from hasten.cost.growing import WIDER_NOISE, calibrate
from hasten.errors import HastenError
from hasten.models.vision.once_for_all import resized
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.search.networks.growing_space import GrowingSpace, Grown
from hasten.search.networks.growth_controller import (
    Decision,
    Deepen,
    GrowthController,
    GrowthTraining,
    Widen,
    stretched,
)
from hasten.search.networks.searching import (
    BudgetIsUsed,
    FoundNetwork,
    NetworkTrials,
    Progress,
    network_search,
    silent,
    until_used,
)
from hasten.tasks.task import Task

A = TypeVar("A", bound=Hashable)


@network_search("growth")
def grown_networks(
    task: Task, space: ArchitectureSpace[Any], latency: Callable[[Any], float], limit: float = math.inf, *,
    seconds: float | None = None, trainings: int | None = None, seed: int = 0, progress: Progress = silent,
    **options: Any,
) -> FoundNetwork[Any]:  # fmt: skip
    """A controller grows a trained network; what it grows is trained for a little, and teaches the controller.

    Args:
        task, space, latency, limit, seconds, trainings, seed, progress: of `NetworkSearch`; a space whose networks
            grow, such as ``plain`` and ``dense``.
        options: of `GrowthSearch` (widenings, deepenings, networks, further, stages) and of `NetworkTrials` (steps,
            batch, rate).
    """
    return _grown(task, space, latency, limit, seconds, trainings, seed, progress, learned=True, **options)


@network_search("random-growth")
def randomly_grown_networks(
    task: Task, space: ArchitectureSpace[Any], latency: Callable[[Any], float], limit: float = math.inf, *,
    seconds: float | None = None, trainings: int | None = None, seed: int = 0, progress: Progress = silent,
    **options: Any,
) -> FoundNetwork[Any]:  # fmt: skip
    """As many moves of each kind in a random order, each drawn evenly: what the controller is held against.

    Args:
        task, space, latency, limit, seconds, trainings, seed, progress, options: of `grown_networks`.
    """
    return _grown(task, space, latency, limit, seconds, trainings, seed, progress, learned=False, **options)


def _grown(
    task: Task, space: Any, latency: Any, limit: float, seconds: float | None, trainings: int | None, seed: int,
    progress: Progress, *, learned: bool, steps: int = 150, batch: int = 64, rate: float = 2e-3, **options: Any,
) -> FoundNetwork[Any]:  # fmt: skip
    trials = NetworkTrials(
        task, space, latency, limit, seconds=seconds, trainings=trainings, seed=seed, progress=progress, steps=steps,
        batch=batch, rate=rate,
    )  # fmt: skip
    search = GrowthSearch(trials, learned=learned, **options)
    return until_used(trials, search.episode)


class GrowthSearch(Generic[A]):
    """Episodes of growth from a network that was trained once.

    Args:
        trials: what trains, within a budget.
        learned: whether a controller decides, or chance.
        widenings, deepenings: moves of a network in an episode; those of the space's papers when None.
        networks: of an episode.
        further: steps of a grown network's training, over those of the first network's.
        stages: how often the best network so far becomes the one that is grown from, at equal shares of the budget.

    Raises:
        HastenError: a space whose networks do not grow, or a smallest network over the limit.
    """

    def __init__(
        self, trials: NetworkTrials[A], *, learned: bool = True, widenings: int | None = None,
        deepenings: int | None = None, networks: int = 6, further: float = 0.35, stages: int = 2,
    ) -> None:  # fmt: skip
        if not isinstance(trials.space, GrowingSpace):
            raise HastenError(f"networks of {trials.space.name} do not grow into each other: give plain or dense")
        widenings = trials.space.widenings if widenings is None else widenings
        deepenings = trials.space.deepenings if deepenings is None else deepenings
        if min(networks, stages) < 1 or min(widenings, deepenings) < 0 or further <= 0:
            raise HastenError("an episode grows one network or more, by moves from 0, and trains them further")
        self.trials, self.space = trials, trials.space
        self.learned, self.widenings, self.deepenings = learned, widenings, deepenings
        self.networks, self.stages = networks, stages
        self.further = max(1, round(further * trials.steps))
        self.controller = GrowthController(self.space, seed=trials.seed)
        self.training = GrowthTraining(self.controller)
        self.generator = torch.Generator().manual_seed(trials.seed)
        self.means: list[float] = []
        self._start: Grown | None = None
        self._stage = 0
        batch = next(trials.task.batches("training", 64, trials.seed))
        self._examples = batch.inputs

    def start(self) -> Grown:
        """The network that is grown: at first the smallest, trained; in later stages the best so far.

        Raises:
            BudgetIsUsed: nothing is left for its training.
            HastenError: it is over the limit.
        """
        stage = min(self.stages - 1, int(self.trials.used * self.stages))
        if self._start is None:
            arch = self.space.smallest()
            if not self.trials.admits(arch):
                raise HastenError(f"no network within {self.trials.limit:g} s to grow from: raise the limit")
            network = self.trials.build(arch)
            self.trials.score(arch, network)
            self._start = Grown(arch, network)
        elif stage > self._stage and self.trials.best is not None:
            _, arch, network = self.trials.best
            self._start = Grown(arch, network)
        self._stage = stage
        return self._start

    def grow_from(self, grown: Grown) -> None:
        """Makes a network the one that is grown from: a stage of one's own."""
        self._start = grown

    def episode(self) -> None:
        """Grows networks, trains those that are new and within the limit, and teaches the controller.

        Raises:
            BudgetIsUsed: before a training, where the budget is used up.
        """
        grown, decisions = self.grow(self.start())
        scores = [self.score(g) for g in grown]
        self.means.append(sum(scores) / len(scores))
        if self.learned:
            self.training.update(decisions, [stretched(s) for s in scores])

    def grow(self, start: Grown) -> tuple[list[Grown], list[list[Decision]]]:
        """Networks of one episode, untrained since they grew, and what was decided for each.

        Args:
            start: what is grown from.
        """
        grown = [Grown(start.arch, start.network) for _ in range(self.networks)]
        decisions: list[list[Decision]] = [[] for _ in grown]
        moves = [Widen] * self.widenings + [Deepen] * self.deepenings
        if not self.learned:
            self.trials.rng.shuffle(moves)
        for number, kind in enumerate(moves):
            able = [i for i, g in enumerate(grown) if self._can(kind, g.arch)]
            if not able:
                continue
            made = self._decided(kind, [grown[i].arch for i in able])
            for i, decision in zip(able, made, strict=True):
                moved = self._moved(grown[i], decision.action, number)
                # A move over the limit is not made; the controller is paid for what it then has.
                if self.trials.admits(moved.arch):
                    grown[i] = moved
                    if not self.learned:
                        self._calibrate(grown[i].network)
                decisions[i].append(decision)
        return grown, decisions

    def _can(self, kind: type, arch: Any) -> bool:
        return any(self.space.widenable(arch)) if kind is Widen else any(self.space.layers(arch))

    def _decided(self, kind: type, archs: list[Any]) -> list[Decision]:
        if self.learned:
            decide = self.controller.widen if kind is Widen else self.controller.deepen
            return decide(archs, self.generator)
        rng, space, found = self.trials.rng, self.space, []
        for arch in archs:
            action: Widen | Deepen
            if kind is Widen:
                action = Widen(tuple(able and rng.random() < 0.5 for able in space.widenable(arch)))
            else:
                rooms = space.layers(arch)
                block = rng.choice([b for b, room in enumerate(rooms) if room])
                kernel = rng.choice(space.kernels) if space.has_kernel(arch, block) else 0
                action = Deepen(block, rng.randrange(rooms[block]), kernel)
            found.append(Decision(arch, action, 0.0))
        return found

    def _moved(self, grown: Grown, action: Widen | Deepen, number: int) -> Grown:
        seed = self.trials.seed * 1009 + self.trials.trained * 31 + number + self.trials.rng.randrange(2**20)
        if isinstance(action, Widen):
            return self.space.widened(grown.arch, grown.network, action.which, noise=WIDER_NOISE, seed=seed)
        return self.space.deepened(
            grown.arch, grown.network, action.block, action.layer, action.kernel or 1,
            noise=self.space.deepening_noise, seed=seed,
        )  # fmt: skip

    def _calibrate(self, network: nn.Module) -> None:
        side = self.space.input_shape(self.space.smallest())[-1]
        calibrate(network, (resized(self._examples, side),))

    def score(self, grown: Grown) -> float:
        """The task's metric after a training from the weights that a network grew with; known ones cost nothing.

        Raises:
            BudgetIsUsed: before the training, where the budget is used up.
        """
        if grown.arch in self.trials.scores:
            return self.trials.scores[grown.arch]
        if self.trials.over:
            raise BudgetIsUsed
        network = copy.deepcopy(grown.network)  # what it was grown from is grown again
        self._calibrate(network)
        return self.trials.score(grown.arch, network, self.further)
