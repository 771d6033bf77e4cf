"""Searches for cells by gradient: who learns from what, and operations changed to be within a limit."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.vision.darts import DartsConfig
from hasten.models.vision.proxyless import ProxylessConfig
from hasten.search.networks import cell_search
from hasten.search.networks.bilevel import Halves, halves
from hasten.search.networks.cell_search import search_cells
from hasten.search.networks.darts_super_net import DartsSuperNet
from hasten.search.networks.members.darts import DartsSpace
from hasten.search.networks.members.proxyless import ProxylessSpace
from hasten.search.networks.searches.by_gradient import pc_darts_networks, proxyless_networks, within_limit
from hasten.search.networks.searching import NetworkTrials
from hasten.tasks.images import Digits

CONFIG = DartsConfig(8, 3, resolution=8, channels=1)


@pytest.fixture(scope="module")
def task() -> Digits:
    return Digits((128, 64, 64))


def test_each_step_leaves_the_others_untouched(task: Digits) -> None:
    for options, expected in (({"warm": 1.0}, (True, False)), ({"warm": 0.0, "rate": 0.0}, (False, True))):
        torch.manual_seed(0)
        net = DartsSuperNet(CONFIG, 4)
        before = copy.deepcopy(net)
        settings: dict[str, Any] = {"steps": 2, "batch": 16, **options}
        found = search_cells(net, task, **settings)
        weights, logits = (
            any(not torch.equal(p, q) for p, q in zip(one, other, strict=True))
            for one, other in ((before.weights(), net.weights()), (before.logits(), net.logits()))
        )
        assert (weights, logits) == expected
        assert found.arch == net.derive()
        assert found.steps == (2, 0 if options["warm"] else 2)


@pytest.mark.parametrize("part", [1, 2, 4])
def test_the_batch_and_the_rate_grow_with_the_part(task: Digits, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the channels left out save goes into the batch: 64 images and a rate of 0.1 at 256 for each part."""
    given: dict[str, dict[str, Any]] = {}
    for name in ("SGD", "Adam"):
        kind = getattr(torch.optim, name)

        def made(parameters: Any, kind: Any = kind, name: str = name, **options: Any) -> Any:
            given[name] = options
            return kind(parameters, **options)

        monkeypatch.setattr(torch.optim, name, made)
    parts: list[tuple[float, tuple[int, int]]] = []

    def recorded(task: Any, share: float, sizes: tuple[int, int], seed: int) -> Halves:
        parts.append((share, sizes))
        return halves(task, share, sizes, seed)

    monkeypatch.setattr(cell_search, "halves", recorded)
    net, seen = DartsSuperNet(CONFIG, part), []
    net.stem.register_forward_pre_hook(lambda module, images: seen.append((len(images[0]), net.training)))
    search_cells(net, task, steps=2, warm=0.5)
    assert parts == [(0.5, (64 * part, 64 * part))]
    assert given["SGD"] == {"lr": pytest.approx(0.1 * 64 * part / 256), "momentum": 0.9, "weight_decay": 3e-4}
    assert given["Adam"] == {"lr": 6e-3, "betas": (0.5, 0.999), "weight_decay": 1e-3}
    assert seen[:3] == [(64 * part, True)] * 3  # two steps of the weights and one of the logits


def test_what_was_found_is_trained_from_random_weights(task: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, torch.Tensor]] = []
    train = NetworkTrials._train

    def recorded(self: Any, arch: Any, network: torch.nn.Module, steps: int) -> float:
        begun.append(copy.deepcopy(network.state_dict()))
        return train(self, arch, network, steps)

    monkeypatch.setattr(NetworkTrials, "_train", recorded)
    paths = ProxylessConfig((8, 12), (2, 1), (1, 2), 8, 8, 16, 1, resolution=8, channels=1, classes=10)
    spaces: tuple[tuple[Any, Any], ...] = (
        (pc_darts_networks, DartsSpace(CONFIG)), (proxyless_networks, ProxylessSpace(paths))
    )  # fmt: skip
    for search, space in spaces:
        begun.clear()
        found = search(task, space, space.products, trainings=2, steps=2, batch=16, seed=3)
        torch.manual_seed(3)
        fresh = space.build(found.arch).state_dict()
        (first,) = begun
        assert first.keys() == fresh.keys()
        assert all(torch.equal(first[name], fresh[name]) for name in fresh)
        trained = found.network.state_dict()
        assert any(not torch.equal(trained[name], fresh[name]) for name in fresh)


def test_operations_are_changed_until_it_is_within_the_limit() -> None:
    space = DartsSpace(CONFIG)
    arch = space.sample(random.Random(3))
    scores = {
        k: torch.rand(14, 8, generator=torch.Generator().manual_seed(0)).log().tolist() for k in ("normal", "reduce")
    }
    whole, least = space.products(arch), space.products(space.smallest())
    assert within_limit(arch, scores, space.products, whole) == arch
    limit = (whole + least) / 2
    made = within_limit(arch, scores, space.products, limit)
    assert space.products(made) <= limit
    assert [i for _, i in made.normal + made.reduce] == [i for _, i in arch.normal + arch.reduce]
    with pytest.raises(HastenError, match="raise the limit"):
        within_limit(arch, scores, space.products, 1.0)


def test_spaces_of_others_are_refused(task: Digits) -> None:
    space: Any = DartsSpace(CONFIG)
    with pytest.raises(HastenError, match="search the spaces proxyless and tree: darts is another"):
        proxyless_networks(task, space, space.products, trainings=2)
    with pytest.raises(HastenError, match="give 2 trainings"):
        pc_darts_networks(task, space, space.products, trainings=1)
