"""Generative search: a generator is a seed's network, learns within requirements, and is taught by real images."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.vision.hiera import HieraConfig
from hasten.search.agents.generator import PointGenerator
from hasten.search.networks.inquisitor import probe_responses
from hasten.search.networks.members.hiera import HieraChoices, HieraGenes, HieraSpace
from hasten.search.networks.net_score import net_score
from hasten.search.networks.searches import generative
from hasten.search.networks.searches.generative import Analytic, ArchitectureGenerator, GenerativeSearch
from hasten.search.networks.searching import NetworkTrials, until_used
from hasten.tasks.images import Digits

# Two stages of images of 8 x 8 pixels: 2,304 networks.
LIKE = HieraConfig((16, 16), (1, 1), (1, 1), (False, True), (True, False), (2, 2), 2, 3, 2, 8, 1, 10)
SPACE = HieraSpace(LIKE, HieraChoices(((16, 32, 48),) * 2, ((1, 2),) * 2, (2, 4), (16, 32)))


def every() -> list[HieraGenes]:
    """All networks of the space."""
    points = itertools.product(*map(range, ArchitectureGenerator(SPACE).codec.sizes))
    generator = ArchitectureGenerator(SPACE)
    return [generator.network(p) for p in points]


def capacity(arch: HieraGenes) -> float:
    """More weights and products are better: what stands for accuracy where nothing is trained."""
    return math.log10(SPACE.parameters(arch)) + math.log10(SPACE.products(arch))


def within(arch: HieraGenes, weights: float = 30_000) -> bool:
    return SPACE.parameters(arch) <= weights and bool(arch.pools) and any(arch.local)


def taught(rounds: int, score: Any, admits: Any, condition: tuple[float, ...] = (), **options: Any) -> Any:
    """A generator after so many rounds of 24 seeds."""
    generator: Any = ArchitectureGenerator(SPACE, condition=len(condition)).near(SPACE.smallest(), 1.0)
    analytic = Analytic(generator, score, admits, options)
    for step in range(rounds):
        analytic.step(list(range(24 * step, 24 * step + 24)), condition)
    return generator


def test_a_seed_is_a_network_and_a_generator_can_be_kept() -> None:
    made: Any = ArchitectureGenerator(SPACE, condition=1, seed=3)
    assert made(7, (0.5,)) == made(7, (0.5,))
    assert len({made(i, (0.5,)) for i in range(20)}) > 10
    assert all(SPACE.valid(made(i, (0.5,))) for i in range(20))
    kept: Any = ArchitectureGenerator(SPACE, PointGenerator.from_bytes(made.points.to_bytes()))
    assert [kept(i, (0.5,)) for i in range(20)] == [made(i, (0.5,)) for i in range(20)]
    assert kept(0, (2.0,), heat=0) == made(0, (2.0,), heat=0)
    other = HieraSpace(LIKE, HieraChoices(((16, 32),) * 2, ((1, 2),) * 2, (2, 4), (16, 32)))
    with pytest.raises(HastenError, match="is of another space"):
        ArchitectureGenerator(other, made.points)
    with pytest.raises(HastenError, match="is asked by 1 numbers: got 0"):
        made(7)


def test_it_begins_near_a_prototype() -> None:
    prototype = SPACE.sample(random.Random(5))
    made: Any = ArchitectureGenerator(SPACE).near(prototype, 12.0)
    assert {made(i) for i in range(20)} == {prototype}


def test_without_requirements_it_finds_the_best_network_of_all() -> None:
    """NetScore of a stand-in for accuracy that has its best inside the space."""

    def utility(arch: HieraGenes, condition: tuple[float, ...] = ()) -> float:
        share = 1 - 40 / SPACE.parameters(arch) ** 0.5
        return net_score(max(share, 0.01), SPACE.parameters(arch), SPACE.products(arch))

    scores = {arch: utility(arch) for arch in every()}
    best = max(scores.values())
    generator = taught(60, utility, lambda arch, condition: True, entropy=0.0)
    assert len(scores) == 2304
    assert scores[generator(0, heat=0)] == best


def test_what_is_not_admitted_has_no_score_and_new_seeds_keep_the_requirements() -> None:
    asked: list[HieraGenes] = []

    def score(arch: HieraGenes, condition: tuple[float, ...]) -> float:
        assert within(arch), "the score is asked of what is admitted alone"
        asked.append(arch)
        return capacity(arch)

    generator = taught(40, score, lambda arch, condition: within(arch), entropy=0.0)
    assert len(set(asked)) == len(asked), "each network is scored once"
    fresh = [generator(10**6 + i) for i in range(64)]
    assert sum(map(within, fresh)) >= 0.95 * 64
    scores = sorted((capacity(a) for a in every() if within(a)), reverse=True)
    found = generator(0, heat=0)
    assert within(found)
    assert capacity(found) == scores[0]


def test_scores_of_a_round_are_told() -> None:
    generator: Any = ArchitectureGenerator(SPACE)
    analytic = Analytic(generator, lambda arch, condition: capacity(arch), lambda arch, condition: within(arch))
    archs = [generator(i) for i in range(24)]
    assert analytic.step(list(range(24))) == [capacity(a) if within(a) else -math.inf for a in archs]
    assert {within(a) for a in archs} == {True, False}
    assert all((analytic.known[a, ()] > -math.inf) == within(a) for a in archs)


def test_a_condition_is_the_budget() -> None:
    generator: Any = ArchitectureGenerator(SPACE, condition=1).near(SPACE.smallest(), 1.0)
    budgets = {0.0: 20_000, 1.0: 90_000}
    analytic = Analytic(
        generator, lambda arch, asked: capacity(arch), lambda arch, asked: within(arch, budgets[asked[0]])
    )
    for step in range(40):
        for budget in budgets:
            analytic.step(list(range(24 * step, 24 * step + 24)), (budget,))
    made = {b: [generator(10**6 + i, (b,)) for i in range(64)] for b in budgets}
    small, large = (sum(map(SPACE.parameters, archs)) / 64 for archs in made.values())
    assert small < budgets[0.0] < large
    for budget, archs in made.items():
        assert sum(within(a, budgets[budget]) for a in archs) >= 0.95 * 64


def trials(**options: Any) -> NetworkTrials[HieraGenes]:
    settings: dict[str, Any] = {"trainings": 6, "steps": 1, "batch": 8, **options}
    return NetworkTrials(Digits((96, 32, 32)), SPACE, lambda arch: float(SPACE.parameters(arch)), **settings)


def test_genes_alone_ask_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> list[float]:
        raise AssertionError("nothing is probed")

    monkeypatch.setattr(generative, "probe_responses", refuse)
    tried = trials()
    search = GenerativeSearch(tried, probes=False, offered=6)
    until_used(tried, search.step)
    assert tried.trained == 6
    arch, utility = search.found_by
    assert utility == tried.scores[arch] == max(tried.scores.values())
    with pytest.raises(AssertionError, match="nothing is probed"):
        GenerativeSearch(trials(), probes=True, offered=6).step()


def test_networks_are_probed_with_real_images_for_training(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def probed(network: Any, images: torch.Tensor, labels: torch.Tensor) -> list[float]:
        given.append((images, labels))
        return probe_responses(network, images, labels)

    monkeypatch.setattr(generative, "probe_responses", probed)
    tried = trials()
    search = GenerativeSearch(tried, offered=6)
    until_used(tried, search.step)
    pictures, labels = tried.task.parts["training"]  # type: ignore[attr-defined]
    rows = {(tuple(p.flatten().tolist()), int(y)) for p, y in zip(pictures, labels, strict=True)}
    assert len(given) >= tried.trained
    assert all(images.shape == (32, 1, 8, 8) for images, _ in given)
    assert {(tuple(p.flatten().tolist()), int(y)) for x, ys in given for p, y in zip(x, ys, strict=True)} <= rows
    # What the inquisitor has of a network are these responses.
    arch = next(iter(tried.scores))
    assert len(search._responses[arch]) == 14


def test_what_is_no_round_is_said() -> None:
    with pytest.raises(HastenError, match="one network or more of those that are offered"):
        GenerativeSearch(trials(), batch_of=4, offered=3)
    with pytest.raises(HastenError, match="no network was trained"):
        _ = GenerativeSearch(trials()).found_by
