"""Searches for cells by gradient: who learns from what, and operations changed to be within a limit."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from hasten.errors import HastenError
from hasten.models.vision.darts import DartsConfig
from hasten.search.networks.cell_search import search_cells
from hasten.search.networks.darts_super_net import DartsSuperNet
from hasten.search.networks.members.darts import DartsSpace
from hasten.search.networks.searches.by_gradient import pc_darts_networks, proxyless_networks, within_limit
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
