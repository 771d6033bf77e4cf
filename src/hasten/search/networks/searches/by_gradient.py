"""Searches whose choices learn by gradient in a super-network: ProxylessNAS' by sampled paths, PC-DARTS' and DARTS' of
cells. What they choose is then trained from random weights, as every search's network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from hasten.cost.latency.expected import ExpectedLatency
from hasten.errors import HastenError
from hasten.models.vision.darts import EDGES, KINDS, OPERATIONS, CellKind, Genotype, genotype
from hasten.processes import one_thread
from hasten.search.networks.architecture_space import ArchitectureSpace
from hasten.search.networks.cell_search import search_cells
from hasten.search.networks.members.darts import DartsSpace
from hasten.search.networks.members.proxyless import ProxylessSpace
from hasten.search.networks.members.tree import TreeSpace
from hasten.search.networks.path_search import Rule, search_paths
from hasten.search.networks.searching import FoundNetwork, NetworkTrials, Progress, network_search, silent
from hasten.tasks.task import Task

_LEARNS = 0.6  # share of the budget for the super-network; the rest trains what was found
# Of sampled paths: the share before choices learn, steps of the weights for one of the choices, networks drawn for a
# step of REINFORCE. Of cells: the share before choices learn, in each step from there on.
_WARM, _EVERY, _DRAWN = 0.25, 5, 10
_WARM_CELLS = 0.3


def _budget(trials: NetworkTrials[Any], batch: int, logits: float) -> dict[str, Any]:
    """Of the super-network's training: a share of the seconds, or as many images as all trainings but the last have.

    Args:
        batch: images of a step.
        logits: batches that the choices learn from, for each step of the weights.
    """
    if trials.seconds is not None:
        return {"seconds": _LEARNS * trials.seconds, "clock": trials.clock}
    assert trials.trainings is not None
    if trials.trainings < 2:
        raise HastenError("a search by gradient trains a super-network and what it finds: give 2 trainings at least")
    images = (trials.trainings - 1) * trials.steps * trials.batch
    return {"steps": max(1, int(images / (batch * (1 + logits))))}


def _trained(trials: NetworkTrials[Any], arch: Any, images: float) -> FoundNetwork[Any]:
    """Trains what was found with what is left, and counts a super-network as the trainings that its images fill."""
    # In seconds it has all that is left; the schedule's end is the budget's.
    trials.score(arch, steps=trials.steps if trials.seconds is None else 10**9)
    alone = max(1, round(images / (trials.steps * trials.batch)))
    trials.trained += alone if trials.trainings is None else min(alone, trials.trainings - 1)
    return trials.found()


@network_search("proxyless")
def proxyless_networks(
    task: Task, space: ArchitectureSpace[Any], latency: Callable[[Any], float], limit: float = math.inf, *,
    seconds: float | None = None, trainings: int | None = None, seed: int = 0, progress: Progress = silent,
    rule: Rule = "full_v2", strength: float | None = None, logit_rate: float = 0.03, **training: Any,
) -> FoundNetwork[Any]:  # fmt: skip
    """Trains one sampled path of a super-network at a time, its choices by gradient with the latency in the loss.

    Args:
        task, space, latency, limit, seconds, trainings, seed, progress: of `NetworkSearch`; a classification and the
            space ``proxyless`` or ``tree``.
        rule, strength, logit_rate: of `search_paths`.
        training: of `NetworkTrials`: steps, batch, rate.

    Raises:
        HastenError: as `NetworkSearch`, or another space.
    """
    if not isinstance(space, ProxylessSpace | TreeSpace):
        raise HastenError(
            f"sampled paths search the spaces proxyless and tree: {space.name or type(space).__name__} is another"
        )
    trials = NetworkTrials(
        task, space, latency, limit, seconds=seconds, trainings=trainings, seed=seed, progress=progress, **training
    )
    # Of networks drawn for REINFORCE there is no backward pass, which takes two thirds of a step.
    each = _DRAWN / 3 if rule == "reinforce" else 1.0
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = space.super_network()
        table = ExpectedLatency.of_choices(trials.seconds_of, space.config.choices())
        found = search_paths(
            supernet, task, table, limit, rule=rule, strength=strength, logit_rate=logit_rate, seed=seed,
            batch=trials.batch, progress=lambda share: progress("training a super-network", _LEARNS * share),
            networks=_DRAWN, warm=_WARM, every=_EVERY, **_budget(trials, trials.batch, (1 - _WARM) / _EVERY * each),
        )  # fmt: skip
    return _trained(trials, found.arch, (found.steps[0] + each * found.steps[1]) * trials.batch)


@network_search("pc-darts")
def pc_darts_networks(
    task: Task, space: ArchitectureSpace[Any], latency: Callable[[Any], float], limit: float = math.inf, *,
    seconds: float | None = None, trainings: int | None = None, seed: int = 0, progress: Progress = silent,
    part: int = 4, normalized: bool = True, **training: Any,
) -> FoundNetwork[Any]:  # fmt: skip
    """Trains a super-network of cells on a part of the channels, operations and edges by gradient.

    The paper knows no limit: where the genotype is over it, operations are changed for faster ones, each time the one
    that loses least of the logarithm of its score for a second.

    Args:
        task, space, latency, limit, seconds, trainings, seed, progress: of `NetworkSearch`; a classification and the
            space ``darts``.
        part, normalized: of `DartsSuperNet`; 1 and False are DARTS.
        training: of `NetworkTrials`: steps, batch, rate.

    Raises:
        HastenError: as `NetworkSearch`, or another space.
    """
    if not isinstance(space, DartsSpace):
        raise HastenError(f"cells are searched in the space darts: {space.name or type(space).__name__} is another")
    trials = NetworkTrials(
        task, space, latency, limit, seconds=seconds, trainings=trainings, seed=seed, progress=progress, **training
    )
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        supernet = space.super_network(part, normalized)
        found = search_cells(
            supernet, task, seed=seed, warm=_WARM_CELLS, **_budget(trials, 64 * part, 1 - _WARM_CELLS),
            progress=lambda share: progress("training a super-network", _LEARNS * share),
        )  # fmt: skip
    arch = within_limit(found.arch, {k: v.log().tolist() for k, v in found.scores.items()}, trials.seconds_of, limit)
    return _trained(trials, arch, sum(found.steps) * 64 * part)


def within_limit(
    arch: Genotype, scores: dict[Any, list[list[float]]], latency: Callable[[Genotype], float], limit: float
) -> Genotype:
    """A genotype with operations changed for faster ones until it is within a limit.

    Args:
        arch: the genotype.
        scores: of each kind of cell, its edges' and operations' (14, 8).
        latency: seconds of a genotype.
        limit: seconds.

    Raises:
        HastenError: no operations on its edges are within the limit.
    """

    def score(kind: CellKind, place: int, operation: str) -> float:
        start = arch.of(kind)[place][1]
        return scores[kind][EDGES.index((start, 2 + place // 2))][OPERATIONS.index(operation)]

    taken = latency(arch)
    while taken > limit:
        best: tuple[float, Genotype, float] | None = None
        for kind in KINDS:
            pairs = arch.of(kind)
            for place, (operation, start) in enumerate(pairs):
                for other in OPERATIONS[1:]:
                    changed = (*pairs[:place], (other, start), *pairs[place + 1 :])
                    made = genotype(*(changed if k == kind else arch.of(k) for k in KINDS))
                    saved = taken - latency(made)
                    if saved > 0:
                        lost = (score(kind, place, operation) - score(kind, place, other)) / saved
                        if best is None or lost < best[0]:
                            best = lost, made, taken - saved
        if best is None:
            raise HastenError(f"no operations on these edges take less than {taken:.3g} s: raise the limit")
        arch, taken = best[1], best[2]
    return arch
