"""ProxylessNAS' pyramid of trees: the published network's size, its super-network, and what is cut out of it."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
import torch

from hasten.cost.latency.expected import ExpectedLatency
from hasten.errors import HastenError
from hasten.models.matching import parameters_of
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.pyramid_tree import (
    TREE_OPERATIONS,
    PyramidTreeConfig,
    PyramidTreeNet,
    PyramidTreeSuperNet,
)
from hasten.search.networks.members.tree import TreeSpace
from hasten.search.networks.path_search import search_paths
from hasten.tasks.images import Digits

SMALL = PyramidTreeConfig((1, 1), first=4, growth=2, stem=4, resolution=8, channels=1, classes=10)


def test_the_published_size_is_exact() -> None:
    with torch.device("meta"):
        model = PyramidTreeNet.named("proxylessnas-cifar")
    assert (parameters_of(model), round(multiply_accumulates(model, (3, 32, 32)) / 1e6, 2)) == (5_731_530, 1213.16)
    assert model.config.macs(model.chosen) == multiply_accumulates(model, (3, 32, 32))
    assert [(place.inner, place.outputs) for place in model.config.places()][::53] == [(18, 72), (100, 400)]
    counts = Counter(TREE_OPERATIONS[o] for o in model.chosen)
    assert counts == {
        "conv_7x7": 116, "identity": 96, "dil_conv_3x3": 90, "max_pool_3x3": 89, "avg_pool_3x3": 89, "conv_5x5": 85,
        "conv_3x3": 83,
    }  # fmt: skip
    assert model.num_features == 400


def test_a_block_is_its_tree() -> None:
    """With pooling and identities alone a half's tree is their sum, as the letters say."""
    torch.manual_seed(0)
    net = PyramidTreeNet(SMALL, SMALL.of_letters("iam mia iii iii" + "i" * 12)).eval()
    block: Any = next(net.stages[0].children())
    x = torch.randn(2, 4, 8, 8)
    first, second = block.enter(x).chunk(2, 1)
    average = torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    most = torch.nn.MaxPool2d(3, 1, 1)
    tree = average(first) + most(first) + most(first) + average(most(first))
    halves = first + block.halves[0].norm(tree), second + block.halves[1].norm(4 * second)
    torch.testing.assert_close(block(x), block.leave(sum(halves), x))
    out = block.leave.widen(sum(halves))
    torch.testing.assert_close(block(x)[:, 4:], out[:, 4:])  # the input has no more channels to add
    torch.testing.assert_close(block(x)[:, :4], out[:, :4] + x)


def test_a_network_is_cut_out_bit_for_bit() -> None:
    torch.manual_seed(0)
    supernet = PyramidTreeSuperNet(SMALL)
    images, rng = torch.randn(3, 1, 8, 8), random.Random(0)
    supernet(images)  # statistics that are not those of the start
    supernet.eval()
    assert [len(row) for row in supernet.logits()] == SMALL.choices() == [7] * 24
    for _ in range(3):
        chosen = tuple(rng.randrange(7) for _ in range(24))
        supernet.choose(chosen)
        assert torch.equal(supernet.extract(chosen)(images), supernet(images))


def test_paths_are_searched_in_it_within_a_limit() -> None:
    space = TreeSpace(SMALL)
    table = ExpectedLatency.of_choices(space.products, SMALL.choices())
    assert table.of((1,) * 24) == pytest.approx(space.products((1,) * 24))
    limit = (space.products(space.smallest()) + table.slowest) / 2
    found = search_paths(space.super_network(), Digits((64, 32, 32)), table, limit, steps=8, batch=8, every=2)
    assert space.valid(found.arch)
    assert space.products(found.arch) <= limit


def test_what_is_no_network_is_said() -> None:
    for chosen in ((0,), (7,) * 24, (-1,) * 24):
        with pytest.raises(HastenError, match="is 24 numbers from 0 to 6"):
            SMALL.check(chosen)
    with pytest.raises(HastenError, match="is written 'x'"):
        SMALL.of_letters("x" * 24)
    with pytest.raises(HastenError, match="one block or more"):
        PyramidTreeConfig((0,))
    with pytest.raises(HastenError, match="2 channels at least"):
        PyramidTreeConfig((1,), first=1)
