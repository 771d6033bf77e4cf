from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.cost import estimate
from hasten.hardware import load_device
from hasten.workload import Workload, trace
from hasten.workload.training import training


@pytest.fixture(scope="module")
def forward() -> Workload:
    return trace(
        nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).bfloat16(), torch.randn(16, 32).bfloat16()
    )


def test_a_step_has_three_forward_passes_of_products(forward: Workload):
    step = training(forward)
    assert [p.name for p in step.phases] == ["forward", "backward", "optimizer"]
    assert step.flops == 3 * forward.flops
    assert training(forward, recomputed=True).flops == 4 * forward.flops


def test_gradients_moments_and_activations_are_held(forward: Workload):
    count = 32 * 64 + 64 + 64 * 8 + 8
    step = training(forward)
    assert step.state["gradients"] == 2 * count
    assert step.state["moments"] == (4 + 8) * count
    assert step.state["activations"] >= 16 * 64 * 2
    assert training(forward, recomputed=True).state["activations"] == 0


def test_the_optimizer_moves_every_parameter_and_its_moments(forward: Workload):
    count = 32 * 64 + 64 + 64 * 8 + 8
    cost = estimate(training(forward), load_device("a100")).phase("optimizer")
    assert next(iter(cost.bytes.values())) >= (2 * 2 + 2 + 3 * 2 * 4) * count
