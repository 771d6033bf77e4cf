"""DARTS' super-network with PC-DARTS' partial channels, and what is derived from it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.darts import (
    EDGES,
    GENOTYPES,
    KINDS,
    NODES,
    OPERATIONS,
    CellPlace,
    DartsCell,
    DartsConfig,
    DartsNetwork,
)
from hasten.nn.mixed_edge import mixed_edges
from hasten.search.networks.darts_super_net import DartsSuperCell, DartsSuperNet, best_pairs, edge_weights

# Parameters without logits, and millions of products of an image of 32 x 32 pixels.
SEARCHED = {1: (1_930_618, 300.25), 2: (671_482, 115.27), 4: (299_578, 56.59), 8: (178_042, 35.71)}
SMALL = DartsConfig(8, 3, resolution=8, channels=1, classes=5)


@pytest.mark.slow_except("4")
@pytest.mark.parametrize("part", SEARCHED)
def test_the_search_s_sizes_are_exact(part: int) -> None:
    with torch.device("meta"):
        net = DartsSuperNet(part=part)
    assert sum(p.numel() for p in net.weights()) == SEARCHED[part][0]
    if part in (1, 4):
        assert int(multiply_accumulates(net, (3, 32, 32)) / 1e4) / 100 == SEARCHED[part][1]
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


def test_a_cell_of_single_choices_is_the_derived_cell() -> None:
    """Without pools, which have a norm in the super-network alone."""
    torch.manual_seed(0)
    for reduces in (False, True):
        place = CellPlace(8, 12, 4, 8, reduces, False)
        pairs = GENOTYPES["pc-darts-imagenet"].normal
        derived, cell = DartsCell(place, pairs, affine=False), DartsSuperCell(place)
        logits, weights = torch.full((14, 8), -torch.inf), torch.zeros(14)
        logits[:, 0] = 0
        edges = list(mixed_edges(cell))
        for k, (operation, start) in enumerate(pairs):
            at = EDGES.index((start, 2 + k // 2))
            logits[at], weights[at] = -torch.inf, 1.0
            logits[at, OPERATIONS.index(operation)] = 0.0
            edges[at].candidates[OPERATIONS.index(operation)].load_state_dict(derived.operations[k].state_dict())
        cell.first.load_state_dict(derived.first.state_dict())
        cell.second.load_state_dict(derived.second.state_dict())
        maps = torch.randn(2, 8, 8, 8), torch.randn(2, 12, 8, 8)
        assert torch.allclose(cell(*maps, logits, weights), derived(*maps), atol=1e-6)


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
