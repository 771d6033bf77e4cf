"""DARTS' super-network with PC-DARTS' partial channels, and what is derived from it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.errors import HastenError
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.darts import (
    EDGES,
    GENOTYPES,
    KINDS,
    NODES,
    OPERATIONS,
    CellKind,
    CellPlace,
    Choice,
    DartsCell,
    DartsConfig,
    DartsNetwork,
)
from hasten.nn.mixed_edge import mixed_edges, shuffled
from hasten.search.networks.darts_super_net import DartsSuperCell, DartsSuperNet, best_pairs, edge_weights

# Parameters without logits, and products of an image of 32 x 32 pixels, of each part.
SEARCHED = {
    1: (1_930_618, 300_255_744),
    2: (671_482, 115_272_192),
    4: (299_578, 56_596_992),
    8: (178_042, 35_713_536),
}
SMALL = DartsConfig(8, 3, resolution=8, channels=1, classes=5)


@pytest.mark.slow_except("4")
@pytest.mark.parametrize("part", SEARCHED)
def test_the_search_s_sizes_are_exact(part: int) -> None:
    with torch.device("meta"):
        net = DartsSuperNet(part=part)
    assert sum(p.numel() for p in net.weights()) == SEARCHED[part][0]
    assert multiply_accumulates(net, (3, 32, 32)) == SEARCHED[part][1]
    assert [tuple(p.shape) for p in net.logits()] == [(14, 8), (14, 8), (14,), (14,)]
    assert len(EDGES) == 14


def test_outputs_of_operations_shrink_with_the_part() -> None:
    sizes = {}
    for part in (1, 2, 4, 8):
        net, found = DartsSuperNet(SMALL, part), [0]
        for edge in mixed_edges(net):
            for candidate in edge.candidates:
                candidate.register_forward_hook(lambda m, i, o, found=found: found.__setitem__(0, found[0] + o.numel()))
        net(torch.zeros(1, 1, 8, 8))
        sizes[part] = found[0]
    assert all(sizes[1] == part * size for part, size in sizes.items())


def test_a_part_of_one_is_darts() -> None:
    torch.manual_seed(0)
    net = DartsSuperNet(SMALL, 1, normalized=False)
    images = torch.randn(2, 1, 8, 8)
    before, last = net.stem(images)
    for cell in net.super_cells:
        maps = [cell.first(before), cell.second(last)]
        shares = net.alphas[cell.place.kind].softmax(1)
        for node in range(NODES):
            total = torch.zeros(())
            for k, (start, end) in enumerate(EDGES):
                if end == node + 2:
                    edge = list(mixed_edges(cell))[k]
                    total = total + sum(s * o(maps[start]) for s, o in zip(shares[k], edge.candidates, strict=True))
            maps.append(total)
        before, last = last, torch.cat(maps[2:], 1)
    assert torch.allclose(net.end(last), net(images), atol=1e-6)


def single(pairs: Sequence[Choice], derived: DartsCell, cell: DartsSuperCell) -> tuple[Tensor, Tensor]:
    """Logits and weights by which the super-network's cell has these pairs alone; it gets the derived cell's weights.

    A node's two edges share its weight: each has half.
    """
    logits, betas = torch.full((14, 8), -torch.inf), torch.full((14,), -torch.inf)
    logits[:, OPERATIONS.index("none")] = 0
    edges = list(mixed_edges(cell))
    for k, (operation, start) in enumerate(pairs):
        at, chosen = EDGES.index((start, 2 + k // 2)), OPERATIONS.index(operation)
        logits[at], betas[at] = -torch.inf, 0.0
        logits[at, chosen] = 0.0
        if "pool" in operation:  # which has a norm in the super-network alone
            norm = nn.BatchNorm2d(cell.place.width, affine=False)
            derived.operations[k] = nn.Sequential(derived.operations[k], norm)
        edges[at].candidates[chosen].load_state_dict(derived.operations[k].state_dict())
    cell.first.load_state_dict(derived.first.state_dict())
    cell.second.load_state_dict(derived.second.state_dict())
    return logits, edge_weights(betas)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GENOTYPES)
def test_a_cell_of_single_choices_is_the_derived_cell(name: str, kind: CellKind) -> None:
    torch.manual_seed(0)
    place = CellPlace(8, 12, 4, 8, kind == "reduce", False)
    pairs = GENOTYPES[name].of(kind)
    derived, cell = DartsCell(place, pairs, affine=False), DartsSuperCell(place)
    logits, weights = single(pairs, derived, cell)
    assert sorted(weights.tolist()) == [0.0] * 6 + [0.5] * 8
    maps = torch.randn(2, 8, 8, 8), torch.randn(2, 12, 8, 8)
    assert torch.allclose(cell(*maps, logits, 2 * weights), derived(*maps), atol=1e-6)


def test_what_goes_by_is_halved_where_the_edge_halves() -> None:
    """With ``none`` chosen an edge gives zeros and, shuffled in, the channels that went by."""
    torch.manual_seed(0)
    none = torch.full((8,), -torch.inf)
    none[OPERATIONS.index("none")] = 0.0
    cell, x = DartsSuperCell(CellPlace(8, 8, 8, 6, True, False), 4), torch.randn(2, 8, 6, 6)
    for edge, (start, _) in zip(mixed_edges(cell), EDGES, strict=True):
        rest = F.max_pool2d(x[:, 2:], 2) if start < 2 else x[:, 2:]
        expected = shuffled(torch.cat([torch.zeros_like(rest[:, :2]), rest], 1), 4)
        assert torch.equal(edge(x, none), expected)
        assert bool(expected.any())


@pytest.mark.parametrize("reduces", [False, True])
def test_an_edge_s_weight_counts_for_what_goes_by_too(reduces: bool) -> None:
    torch.manual_seed(0)
    none = torch.full((14, 8), -torch.inf)
    none[:, OPERATIONS.index("none")] = 0.0
    cell = DartsSuperCell(CellPlace(8, 8, 8, 6, reduces, False), 4)
    maps = torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6)
    once, twice = (cell(*maps, none, torch.full((14,), w))[:, :8] for w in (1.0, 2.0))  # of the first node
    assert bool(once.any())
    assert torch.allclose(twice, 2 * once)


def test_it_searches_large_images_too() -> None:
    """Three convolutions that each halve the image, as for ImageNet."""
    torch.manual_seed(0)
    net = DartsSuperNet(DartsConfig(8, 3, stem="large", resolution=32, classes=5), 2)
    logits = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 5)
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.logits())
    derived = DartsNetwork(net.config, net.derive())
    assert derived(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_logits_begin_near_0() -> None:
    torch.manual_seed(0)
    rows = torch.cat([p.detach().flatten() for p in DartsSuperNet(SMALL).logits()])
    assert float(rows.std()) == pytest.approx(1e-3, rel=0.15)
    assert abs(float(rows.mean())) < 3e-4


def test_edges_of_a_node_share_one() -> None:
    weights = edge_weights(torch.randn(14))
    assert torch.allclose(torch.stack([part.sum() for part in weights.split([2, 3, 4, 5])]), torch.ones(4))
    assert edge_weights(None).tolist() == [1.0] * 14
    net = DartsSuperNet(SMALL)
    assert torch.equal(
        net.scores("reduce"), net.alphas["reduce"].softmax(1) * edge_weights(net.betas["reduce"])[:, None]
    )


def test_derived_cells_read_two_inputs_a_node() -> None:
    torch.manual_seed(0)
    net = DartsSuperNet(SMALL)
    for parameter in net.logits():
        nn.init.normal_(parameter)
    derived = net.derive()
    for kind in KINDS:
        pairs, scores = derived.of(kind), net.scores(kind)
        for node in range(NODES):
            two = pairs[2 * node : 2 * node + 2]
            assert len({i for _, i in two}) == 2
            worst = min(float(scores[EDGES.index((i, node + 2)), 1:].max()) for _, i in two)
            left = [s for s in range(node + 2) if s not in {i for _, i in two}]
            assert all(float(scores[EDGES.index((s, node + 2)), 1:].max()) <= worst for s in left)
    # What is none never counts.
    none = torch.zeros(14, 8)
    none[:, 0], none[:, 4] = 9, 1
    assert {o for o, _ in best_pairs(none)} == {"sep_conv_3x3"}
    assert tuple(DartsNetwork(SMALL, derived)(torch.zeros(2, 1, 8, 8)).shape) == (2, 5)


def test_channels_are_drawn_where_they_are_random() -> None:
    net, images = DartsSuperNet(SMALL, 4, random=True).eval(), torch.randn(1, 1, 8, 8)
    answers = []
    for seed in (0, 0, 1):
        net.draw(torch.Generator().manual_seed(seed))
        answers.append(net(images))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_what_is_no_size_is_said() -> None:
    with pytest.raises(HastenError, match="3 cells at least"):
        DartsConfig(8, 2)
    with pytest.raises(HastenError, match="are not 3 equal parts"):
        DartsSuperNet(SMALL, 3)
