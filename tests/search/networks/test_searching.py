"""Every registered search of networks keeps the one form: budgets end it, the limit holds, seeds reproduce it."""

from __future__ import annotations

import inspect
import math
import random
import time
from functools import partial
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.vision.cell_network import CellConfig
from hasten.models.vision.darts import DartsConfig
from hasten.models.vision.once_for_all import OFAConfig
from hasten.models.vision.proxyless import ProxylessConfig
from hasten.search.networks import searching
from hasten.search.networks.architecture_space import ArchitectureSpace, architecture_spaces, open_space
from hasten.search.networks.searching import FoundNetwork, NetworkTrials, network_search, network_searches
from hasten.tasks.images import Digits

# A space that each search suits; where it is not here, the cells.
PLAIN = {
    "blocks": 2, "depth": 2, "dense": 1, "filters": (4, 6, 8), "units": (8, 12), "image": 8, "channels": 1,
}  # fmt: skip
SUITED: dict[str, tuple[str, dict[str, Any]]] = {
    "once-for-all": (
        "once-for-all",
        {
            "config": OFAConfig(
                widths=(8,),
                strides=(2,),
                activations=("relu",),
                se=(False,),
                depths=(1, 2),
                kernels=(3, 5),
                expands=(2, 3),
                resolutions=(8,),
                stem=8,
                final=16,
                last=16,
                channels=1,
                classes=10,
                dropout=0.0,
            )
        },
    ),
    "pc-darts": ("darts", {"config": DartsConfig(8, 3, resolution=8, channels=1)}),
    "proxyless": (
        "proxyless",
        {"config": ProxylessConfig((8, 12), (2, 1), (1, 2), 8, 8, 16, 1, resolution=8, channels=1, classes=10)},
    ),
    "growth": ("plain", PLAIN),
    "random-growth": ("dense", {"blocks": 2, "depth": 3, "sizes": (2, 3, 4), "image": 8, "channels": 1}),
}
CELLS = ("cell", {"config": CellConfig(width=4, repeats=1, resolution=8, channels=1, classes=10)})
TRAINING: dict[str, Any] = {"steps": 2, "batch": 16}
each = pytest.mark.parametrize("name", list(network_searches()))


@pytest.fixture(scope="module")
def task() -> Digits:
    return Digits((128, 64, 64))


def suited(name: str) -> ArchitectureSpace[Any]:
    space, options = SUITED.get(name, CELLS)
    return open_space(space, **options)


def found(name: str, task: Digits, **options: Any) -> tuple[ArchitectureSpace[Any], FoundNetwork[Any]]:
    space = suited(name)
    budget = {"trainings": 6} if "seconds" not in options else {}
    return space, network_searches()[name](task, space, space.products, **budget, **TRAINING, **options)


@pytest.mark.slow_except("evolution", "generative", "proxyless", "random")
@each
def test_it_ends_by_trainings_within_the_limit(name: str, task: Digits) -> None:
    space = suited(name)
    products = sorted(space.products(space.near_smallest(random.Random(i))) for i in range(9))
    space, best = found(name, task, limit=products[6], seed=1)
    assert best.trainings <= 6
    assert best.latency == space.products(best.arch) <= products[6]
    assert space.valid(best.arch)
    assert not best.network.training
    pictures = torch.zeros(2, *space.input_shape(best.arch))
    assert best.network(pictures).shape == (2, 10)
    assert best.score == max(score for _, score in best.history)
    again = found(name, task, limit=products[6], seed=1)[1]
    assert (again.arch, again.score) == (best.arch, best.score)


@pytest.mark.slow_except("evolution", "generative", "proxyless", "random")
@each
def test_it_ends_by_seconds(name: str, task: Digits) -> None:
    begun = time.perf_counter()
    found(name, task, seconds=0.5)
    assert time.perf_counter() - begun < 20


@each
def test_it_needs_a_budget_and_a_network_within_the_limit(name: str, task: Digits) -> None:
    space, search = suited(name), network_searches()[name]
    with pytest.raises(HastenError, match="give one of them"):
        search(task, space, space.products)
    with pytest.raises(HastenError, match=r"above 0"):
        search(task, space, space.products, limit=0, trainings=2)
    with pytest.raises(HastenError, match="raise the limit"):
        search(task, space, space.products, limit=1e-9, trainings=2, **TRAINING)


# What a search takes beside these, it says in a line; the others take any space.
TAKES = {
    "growth": {"plain", "dense"}, "random-growth": {"plain", "dense"}, "once-for-all": {"once-for-all"},
    "pc-darts": {"darts"}, "proxyless": {"proxyless", "tree"},
}  # fmt: skip


@pytest.mark.slow_except(
    "random-*", "growth-*", "proxyless-*", "pc-darts-*", "once-for-all-[!o]*", "generative-plain", "generative-hiera",
    "evolution-dense",
)  # fmt: skip
@pytest.mark.parametrize("space", architecture_spaces())
@each
def test_it_takes_every_space_that_it_fits(name: str, space: str, task: Digits) -> None:
    """A space that others may have added too: it is made for the images, and nothing of it is known here."""
    opened = architecture_spaces()[space].for_images(1, 8, 10)
    search = partial(network_searches()[name], task, opened, opened.parameters, trainings=2, steps=1, batch=8, seed=1)
    if space not in TAKES.get(name, {space}):
        with pytest.raises(HastenError) as told:
            search()
        assert "\n" not in str(told.value)
        assert space in str(told.value) or any(taken in str(told.value) for taken in TAKES[name])
        return
    best = search()
    assert 1 <= best.trainings <= 2
    assert opened.valid(best.arch)
    assert best.latency == opened.parameters(best.arch)
    assert best.network(torch.zeros(2, *opened.input_shape(best.arch))).shape == (2, 10)


@each
def test_its_form_is_the_common_one(name: str) -> None:
    asked = inspect.signature(searching.NetworkSearch.__call__).parameters
    given = inspect.signature(network_searches()[name]).parameters
    assert [n for n in given if n in asked] == [n for n in asked if n != "self"]
    own = [n for n, p in given.items() if n not in asked and p.kind is not inspect.Parameter.VAR_KEYWORD]
    assert all(given[n].default is not inspect.Parameter.empty for n in own)


def test_trials_count_and_remember(task: Digits) -> None:
    space = suited("random")
    trials = NetworkTrials(task, space, space.products, trainings=2, **TRAINING)
    arch = space.smallest()
    first = trials.score(arch)
    assert trials.score(arch) == first
    assert (trials.trained, trials.used) == (1, 0.5)
    trials.score(space.sample(trials.rng))
    with pytest.raises(searching.BudgetIsUsed):
        trials.score((1,) * 6)
    assert math.isfinite(trials.found().score)


def test_two_searches_of_one_name_are_refused() -> None:
    with pytest.raises(HastenError, match="two searches of networks are called 'random'"):
        network_search("random")(lambda *args, **options: None)  # type: ignore[type-var]
