"""ReLU-gated experts: sparse is dense, weights sum to one, balance is one where it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hasten.nn.reglu_experts import Expert, ReGLUExperts, balance_loss, route, sparse_rows


def test_sparse_is_dense() -> None:
    torch.manual_seed(0)
    expert, h = Expert(16, 40), torch.randn(16)
    found = sparse_rows(expert.gate.weight, expert.up.weight, expert.down.weight.t(), h)
    torch.testing.assert_close(found, expert(h), atol=1e-5, rtol=0)
    layer = ReGLUExperts(16, 40, 6, 2).eval()
    tokens, logits = torch.randn(5, 16), torch.randn(5, 6)
    together = layer(tokens, logits)
    for i in range(5):
        torch.testing.assert_close(layer(tokens[i : i + 1], logits[i : i + 1])[0], together[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("softmax", [True, False])
def test_weights_sum_to_one_over_the_chosen(softmax: bool) -> None:
    logits = torch.randn(7, 9)
    weights, chosen = route(logits, 3, softmax)
    torch.testing.assert_close(weights.sum(-1), torch.ones(7))
    assert torch.equal(chosen, logits.topk(3).indices)


def test_every_gradient_flows() -> None:
    layer = ReGLUExperts(8, 12, 4, 2)
    h = torch.randn(40, 8, requires_grad=True)
    logits = layer.primary_router(h)
    out, routing = layer(h, logits, return_routing=True)
    (out.square().sum() + balance_loss(routing.logits, 2)).backward()
    assert h.grad is not None
    assert all(p.grad is not None for p in layer.parameters())
    assert routing.open_share is not None
    assert 0 < routing.open_share < 1
    gates = [torch.relu(expert.gate(h)) > 0 for expert in layer.experts]
    used = torch.stack(gates, 1).gather(1, logits.topk(2).indices[..., None].expand(-1, -1, 12))
    assert float(routing.open_share) == pytest.approx(float(used.float().mean()))


def test_balance_is_one_when_uniform() -> None:
    even = torch.eye(4).repeat(5, 1) * 1e-3
    assert float(balance_loss(even, 1)) == pytest.approx(1.0, abs=1e-4)
    one_sided = torch.zeros(20, 4)
    one_sided[:, 0] = 9.0
    assert float(balance_loss(one_sided, 1)) > 3.5


RANK = """
import sys, torch, torch.distributed as distributed
from hasten.nn.reglu_experts import balance_loss
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
logits = torch.randn(30, 4, generator=torch.Generator().manual_seed(rank))
print(*[repr(float(balance_loss(logits, 2, group))) for group in (1, 2)])
distributed.destroy_process_group()
"""


def test_a_group_of_all_ranks_has_global_statistics(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(r), str(tmp_path / "meet")], stdout=subprocess.PIPE, text=True)
        for r in range(2)
    ]
    said = [rank.communicate(timeout=60)[0] for rank in ranks]
    logits = [torch.randn(30, 4, generator=torch.Generator().manual_seed(rank)) for rank in range(2)]
    both = torch.cat(logits).topk(2, -1).indices.reshape(-1)
    share = torch.bincount(both, minlength=4) / len(both)
    for rank in range(2):
        alone, together = map(float, said[rank].split())
        assert alone == pytest.approx(float(balance_loss(logits[rank], 2)), abs=1e-5)
        assert together == pytest.approx(float(4 * (share * logits[rank].softmax(-1).mean(0)).sum()), abs=1e-5)
