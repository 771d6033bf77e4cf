"""BlockFFN: its router, its losses and metrics by hand, the adaptive factor."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.nn import BlockFFN
from hasten.nn.blockffn import (
    AdaptiveFactor,
    Routed,
    activation_locality,
    chunk_sparsification,
    chunk_sparsity,
    expert_histogram,
    expert_reuse,
    normalized,
    token_sparsity,
)


def test_router_and_experts_by_hand() -> None:
    torch.manual_seed(0)
    layer = BlockFFN(6, 4, 3)
    torch.nn.init.normal_(layer.gain)
    x = torch.randn(5, 6)
    r = x @ layer.router.weight.T
    h = r.clamp(min=0)
    a = h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-5) * layer.gain
    wanted = torch.zeros(5, 6)
    for i in range(4):
        rows = slice(3 * i, 3 * i + 3)
        wanted += a[:, i : i + 1] * (torch.nn.functional.silu(x @ layer.up[rows].T) @ layer.down[rows])
    torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 6 * 12 + 6 * 4 + 4


def test_router_ignores_its_scale_and_an_idle_token_is_zero() -> None:
    layer, x = BlockFFN(6, 4, 3), torch.randn(5, 6)
    scores, _ = layer.route(x)
    with torch.no_grad():
        layer.router.weight *= 50
    torch.testing.assert_close(layer.route(x)[0], scores, rtol=1e-2, atol=1e-3)
    with torch.no_grad():
        layer.router.weight.zero_()
    y = layer(x)
    assert torch.equal(y, torch.zeros(5, 6))
    y.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


def test_sparsity_metrics() -> None:
    logits = torch.randn(3, 64, 10, generator=torch.Generator().manual_seed(0)) - 1
    levels = [chunk_sparsity(logits, chunk) for chunk in (1, 2, 4, 8, 16, 32, 64)]
    assert levels[0] == pytest.approx(token_sparsity(logits))
    assert levels == sorted(levels, reverse=True)
    same = logits[:, :1].expand(3, 64, 10)
    assert chunk_sparsity(same, 16) == pytest.approx(token_sparsity(same))
    assert expert_reuse(same) == pytest.approx(1.0)


def test_chunks_end_with_their_document() -> None:
    logits = torch.full((1, 6, 2), -1.0)
    logits[0, 2, 0] = logits[0, 3, 1] = 1.0
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    # Without documents tokens 2 and 3 share the chunk of four: 2 of 4 pairs are in use. With them: 1 of 2, twice.
    assert chunk_sparsity(logits, 4) == pytest.approx(1 - 2 / 4)
    assert chunk_sparsity(logits, 3, documents) == pytest.approx(1 - 2 / 4)
    assert chunk_sparsity(logits, 2, documents) == pytest.approx(1 - 2 / 8)


def test_chunk_sparsification_at_its_corners() -> None:
    experts = 8
    one = torch.full((2, 128, experts), -1.0)
    one[..., 3] = 5.0
    assert float(chunk_sparsification(one)) == pytest.approx(1 / experts, abs=1e-3)
    uniform = torch.ones(2, 128, experts)
    assert float(chunk_sparsification(uniform)) == pytest.approx(1 - (1 - 1 / experts) ** 64, abs=1e-3)
    random = chunk_sparsification(torch.randn(2, 100, experts))
    assert 0 <= float(random) <= 1
    masked = torch.zeros(2, 128, dtype=torch.bool)
    assert float(chunk_sparsification(uniform, mask=masked)) == pytest.approx(0, abs=2e-3)


def test_activation_locality_of_equal_neighbours_is_their_entropy() -> None:
    r = torch.tensor([0.001, -0.02, 0.004])
    p = torch.sigmoid(100 * r)
    entropy = float(-(p * p.log() + (1 - p) * (1 - p).log()).mean())
    assert float(activation_locality(r.expand(2, 5, 3))) == pytest.approx(entropy, rel=1e-4)
    assert float(activation_locality(torch.ones(1, 4, 3))) < 1e-6
    jump = torch.tensor([[[1.0], [1.0], [-1.0], [-1.0]]])
    documents = torch.tensor([[0, 0, 1, 1]])
    assert float(activation_locality(jump)) > 10
    assert float(activation_locality(jump, documents)) < 1e-6


def test_gradient_reaches_both_neighbours() -> None:
    r = (torch.randn(1, 2, 4) * 0.01).requires_grad_()
    activation_locality(r).backward()
    assert torch.all(r.grad.abs().sum(-1) > 0)


def test_adaptive_factor() -> None:
    steady = AdaptiveFactor(0.05, warmup=200)
    assert {round(steady.step(0.5), 9) for _ in range(500)} == {0.05}
    rising = AdaptiveFactor(0.05, warmup=200)
    weights = [rising.step(0.5 + i * 1e-6) for i in range(3000)]
    assert weights[199] == 0.05
    assert weights[298] == pytest.approx(0.05 * (1 + 0.025 * 0.99), rel=1e-3)
    assert max(weights) <= 0.2 + 1e-12
    falling = AdaptiveFactor(0.05, warmup=200)
    assert [falling.step(0.5 * math.exp(-i / 500)) for i in range(1000)][-1] < 0.05
    with pytest.raises(ValueError, match="warm-up"):
        AdaptiveFactor(warmup=10, period=100)


def test_normalized_rows_have_unit_rms() -> None:
    q = normalized(torch.rand(4, 6) + 0.1)
    torch.testing.assert_close(q.square().mean(-1), torch.ones(4), rtol=1e-3, atol=0)


def test_experts_by_the_share_of_tokens_that_use_them() -> None:
    logits = torch.full((1, 4, 3), -1.0)
    logits[0, :, 0] = 1.0  # of every token
    logits[0, 0, 1] = 1.0  # of one of four; the third of none
    assert expert_histogram([logits], 4) == [1, 1, 0, 1]
    assert expert_histogram([logits, logits], 2) == [4, 2]
    assert expert_histogram([]) == [0] * 10


def test_what_routers_chose_together() -> None:
    one, other = (torch.randn(2, 16, 5, generator=torch.Generator().manual_seed(i)) for i in range(2))
    found = Routed.of([one, other], (1, 4))
    assert found.sparsity == pytest.approx((token_sparsity(one) + token_sparsity(other)) / 2)
    assert found.chunks == {n: pytest.approx((chunk_sparsity(one, n) + chunk_sparsity(other, n)) / 2) for n in (1, 4)}
    assert found.reuse == pytest.approx((expert_reuse(one) + expert_reuse(other)) / 2)
    assert sum(found.fired) == 10
    assert Routed.of([]) == Routed(0.0, {1: 0.0, 8: 0.0, 64: 0.0}, 0.0, [0] * 10)
