"""A mixed edge's outputs and its logits' gradients, by each rule."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hasten.cost.measuring import kept_for_backward
from hasten.errors import HastenError
from hasten.nn.mixed_edge import PATHS, MixedEdge, Paths, mixed_edges, no_edge, shuffled
from hasten.search.networks.path_search import reinforce_loss

GATED: tuple[Paths, ...] = ("full", "full_v2")


def conv(channels: int = 4, kernel: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, channels, kernel, padding=kernel // 2), nn.BatchNorm2d(channels))


def made(count: int = 4, seed: int = 0, zero: bool = False) -> MixedEdge:
    torch.manual_seed(seed)
    edge = MixedEdge([conv(kernel=1 + 2 * (i % 3)) for i in range(count)] + [no_edge()] * zero)
    nn.init.normal_(edge.logits)  # type: ignore[arg-type]
    return edge


def run(edge: MixedEdge, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, gradient of the input and of the logits."""
    assert edge.logits is not None
    x, edge.logits.grad = x.clone().requires_grad_(), None
    y = edge(x)
    (weight * y).sum().backward()
    assert x.grad is not None
    assert edge.logits.grad is not None
    return y.detach(), x.grad, edge.logits.grad


def test_gates_keep_one_path_and_give_the_same_gradients() -> None:
    x, weight = torch.randn(3, 4, 5, 5).double(), torch.randn(3, 4, 5, 5).double()
    for active in range(4):
        results, statistics = [], []
        for paths in GATED:
            edge = made(zero=True).double()
            edge.draw(paths)
            edge.active = active
            results.append(run(edge, x, weight))
            statistics.append([b.clone() for b in edge.buffers()])
            parameters = [p.grad is not None for c in edge.candidates for p in c.parameters()]
            assert parameters == [i == active for i, c in enumerate(edge.candidates) for _ in c.parameters()]
        assert torch.equal(results[0][0], results[1][0])
        for one, other in zip(*results, strict=True):
            assert torch.allclose(one, other, atol=1e-9, rtol=1e-6)
        for one, other in zip(*statistics, strict=True):
            assert torch.equal(one, other)


def test_logits_learn_by_the_softmax_jacobian() -> None:
    edge, x, weight = made().double(), torch.randn(2, 4, 5, 5).double(), torch.randn(2, 4, 5, 5).double()
    assert edge.logits is not None
    edge.draw("full_v2")
    found = run(edge, x, weight)[2]
    with torch.no_grad():
        p = edge.logits.softmax(0)
        inner = torch.stack([(weight * c(x)).sum() for c in edge.candidates])
        jacobian = torch.diag(p) - p[:, None] * p
        by_hand = jacobian @ inner
    assert torch.allclose(found, by_hand, rtol=1e-6)
    assert abs(float(found.sum())) < 1e-9 * float(found.abs().sum())


def test_a_pair_leaves_the_rest_as_it_is() -> None:
    edge, x = made(5), torch.randn(2, 4, 5, 5)
    assert edge.logits is not None
    optimizer = torch.optim.Adam([edge.logits], 0.1, betas=(0.0, 0.999))
    generator = torch.Generator().manual_seed(0)
    calls: list[int] = []
    for i, candidate in enumerate(edge.candidates):
        candidate.register_forward_hook(lambda *_, i=i: calls.append(i))
    for _ in range(5):
        edge.draw("two", generator)
        assert edge.pair is not None
        before, pair = edge.logits.detach().softmax(0), list(edge.pair)
        calls.clear()
        shares = edge.probabilities().detach()
        assert torch.allclose(shares[pair], before[pair] / before[pair].sum())
        assert int((shares > 0).sum()) == 2
        gradient = run(edge, x, torch.randn(2, 4, 5, 5))[2]
        assert sorted(calls) == sorted(pair)
        others = [i for i in range(5) if i not in pair]
        assert not gradient[others].any()
        assert torch.allclose(gradient[pair].sum(), torch.zeros(()), atol=1e-5)
        optimizer.step()
        edge.rescale()
        after = edge.logits.detach().softmax(0)
        assert torch.allclose(after[others], before[others], atol=1e-6)
        assert not torch.allclose(after[pair], before[pair], atol=1e-4)


def test_no_logits_learn_where_zero_is_active() -> None:
    edge, x = made(2, zero=True), torch.randn(1, 4, 5, 5)
    edge.draw("full_v2")
    edge.active = 2
    y = edge(x)
    assert not y.any()
    assert not y.requires_grad


def test_what_does_not_run_is_not_moved() -> None:
    edge, x = made(), torch.randn(2, 4, 5, 5)
    optimizer = torch.optim.SGD(edge.candidates.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    edge.draw("mixture")
    edge(x).square().sum().backward()
    optimizer.step()  # every candidate has a momentum now
    edge.draw("one", torch.Generator().manual_seed(1))
    before = copy.deepcopy(edge.candidates)
    edge(x).square().sum().backward()
    optimizer.step()
    moved = [
        any(not torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        for a, b in zip(before, edge.candidates, strict=True)
    ]
    assert moved == [i == edge.active for i in range(4)]


def test_activations_of_one_path_are_kept() -> None:
    edge, x = made(6), torch.randn(8, 4, 16, 16, requires_grad=True)
    kept = {}
    for paths in PATHS:
        edge.draw(paths)
        edge.active, edge.pair = 1, (0, 1) if paths == "two" else None
        kept[paths] = kept_for_backward(lambda: edge(x).sum().backward(), edge.parameters())
    assert kept["full_v2"] < 1.7 * kept["one"]
    assert kept["mixture"] > 4 * kept["one"]
    assert kept["two"] < 2.7 * kept["one"]


def test_reinforce_has_the_gradient_of_the_expected_reward() -> None:
    edges = [made(3, seed=s) for s in range(2)]
    rewards, base = torch.tensor([[0.1, 0.7, 0.2], [0.9, 0.4, 0.3], [0.5, 0.2, 0.8]]), 0.4
    p = [edge.logits.detach().clone().requires_grad_() for edge in edges]  # type: ignore[union-attr]
    (p[0].softmax(0) @ rewards @ p[1].softmax(0)).backward()
    generator, draws = torch.Generator().manual_seed(0), []
    for number in range(10_000):
        for edge in edges:
            edge.draw("one", generator)
        reward = float(rewards[edges[0].active, edges[1].active])
        # The gradient of log p of each edge's draw, by hand: quicker than a graph each.
        rows = []
        for edge in edges:
            row = -edge.logits.detach().softmax(0)  # type: ignore[union-attr]
            row[edge.active] += 1
            rows.append((reward - base) * row)
        draws.append(torch.stack(rows))
        if number < 20:  # and what descends gives the same
            chance = torch.stack([edge.log_probability() for edge in edges]).sum()
            loss = reinforce_loss([chance], [reward], base)
            slopes = torch.autograd.grad(loss, [edge.logits for edge in edges])  # type: ignore[misc]
            assert torch.allclose(-torch.stack(slopes), draws[-1], atol=1e-6)
    found = torch.stack(draws)
    error = found.std(0) / len(found) ** 0.5
    truth = torch.stack([q.grad for q in p if q.grad is not None])
    assert ((found.mean(0) - truth).abs() <= 3 * error).all()
    edge = edges[0]
    assert edge.logits is not None
    (gradient,) = torch.autograd.grad(edge.log_probability(), edge.logits)
    expected = -edge.logits.detach().softmax(0)
    expected[edge.active] += 1
    assert torch.allclose(gradient, expected)


def test_shuffles_undo_each_other() -> None:
    x = torch.arange(24.0).reshape(1, 24, 1, 1)
    for groups in (1, 2, 3, 4, 6):
        assert torch.equal(shuffled(shuffled(x, groups), 24 // groups), x)


def test_each_edge_gets_other_channels() -> None:
    """Channel j of an output was channel (j % K) * C/K + j // K before the shuffle."""
    channels, part = 8, 4
    doubled = [MixedEdge([_Double()], part, own=False) for _ in range(3)]
    x = torch.ones(1, channels, 1, 1)
    expected = [1.0] * channels
    for edge in doubled:
        x = edge(x, torch.zeros(1))
        for j in range(channels // part):
            expected[j] *= 2
        expected = [expected[(j % part) * (channels // part) + j // part] for j in range(channels)]
        assert x.flatten().tolist() == expected


class _Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


def test_random_channels_come_back_to_their_places() -> None:
    edge, x = MixedEdge([_Double()], 4, random=True, own=False), torch.rand(2, 8, 3, 3)
    seen = set()
    for seed in range(8):
        edge.draw("mixture", torch.Generator().manual_seed(seed), channels=8, logits=torch.zeros(1))
        y = edge(x, torch.zeros(1))
        twice = [bool(torch.equal(y[:, i], 2 * x[:, i])) for i in range(8)]
        assert sum(twice) == 2
        assert all(torch.equal(y[:, i], x[:, i]) for i in range(8) if not twice[i])
        seen.add(tuple(twice))
    assert len(seen) > 3


def test_what_is_no_edge_is_said() -> None:
    with pytest.raises(HastenError, match="has candidates"):
        MixedEdge([])
    with pytest.raises(HastenError, match="no logits of its own"):
        MixedEdge([nn.Identity()], own=False)(torch.zeros(1, 1, 1, 1))
    with pytest.raises(HastenError, match="a pair needs two"):
        MixedEdge([nn.Identity()]).draw("two")
    with pytest.raises(HastenError, match="6 channels are not 4 equal parts"):
        MixedEdge([nn.Identity()], 4)(torch.zeros(1, 6, 2, 2))
    drawn = MixedEdge([nn.Identity()], 4, random=True)
    drawn.draw("mixture", channels=8)
    with pytest.raises(HastenError, match="12 channels are not the 8 that were drawn"):
        drawn(torch.zeros(1, 12, 2, 2))
    with pytest.raises(HastenError, match="none of number 7"):
        made().choose(7)
    with pytest.raises(HastenError, match="computes mixture"):
        made().draw("three")  # type: ignore[arg-type]
    assert len(list(mixed_edges(nn.Sequential(made(), nn.ReLU(), made())))) == 2
