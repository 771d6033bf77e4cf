"""What a mixture of experts reads of its matrices."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from hasten.workload import trace_cascade
from hasten.workload.experts import grouped_experts
from hasten.workload.routing import distinct_experts, routed


def test_the_experts_expected_are_those_that_random_tokens_hit() -> None:
    draw, experts, each, tokens = random.Random(0), 16, 3, 5
    seen = [len({e for _ in range(tokens) for e in draw.sample(range(experts), each)}) for _ in range(4000)]
    with routed(tokens, each / experts):
        assert distinct_experts(experts, tokens * each) == pytest.approx(sum(seen) / len(seen), rel=0.01)
    assert distinct_experts(experts, 4) == 4.0  # outside, every row is one of its own


@pytest.mark.parametrize("tokens", [1, 64])
def test_few_tokens_read_few_experts(tokens: int) -> None:
    gate_up, down = torch.zeros(8, 12, 4), torch.zeros(8, 4, 6)

    def mixture(hidden: torch.Tensor, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return grouped_experts(hidden, ids, scores, gate_up, down, F.silu)

    ids, scores = torch.zeros(tokens, 2, dtype=torch.int64), torch.zeros(tokens, 2)
    cascade = trace_cascade(mixture, (torch.zeros(tokens, 4), ids, scores)).cascade
    read = [e.touched(e.inputs[1]) for e in cascade if e.flops]
    hit = 2 if tokens == 1 else 8
    assert read == pytest.approx([hit * 12 * 4, hit * 4 * 6], rel=0.01)


def test_a_compiled_program_is_told_of_no_routes() -> None:
    def product(x: torch.Tensor) -> torch.Tensor:
        with routed(x.shape[0], 0.5):
            return x @ x.T

    x = torch.ones(3, 2)
    run = torch.compile(product, backend="eager", fullgraph=True)
    assert torch.equal(run(x), product(x))
