from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from hasten.cost import measure
from hasten.cost.measuring import allocated_bytes, kept_for_backward, measured_intensity, spread
from hasten.errors import HastenError


class Sleeper(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, *, bytes: int = 0) -> torch.Tensor:
        self.calls += 1
        time.sleep(0.003)
        return torch.ones(bytes // 4) * 2


def test_counts_warm_up_and_runs_apart():
    module = Sleeper()
    seen = measure(module, runs=4, warmup=3)
    assert module.calls == 7
    phase = seen.phases["forward"]
    assert phase.runs == 4
    assert 0.003 <= phase.low <= phase.median <= phase.high
    assert seen.latency == phase.median
    assert seen.workload == "Sleeper"


def test_stops_when_time_is_up_but_times_three():
    module = Sleeper()
    assert measure(module, runs=1000, seconds=0.0).phases["forward"].runs == 3


def test_memory_counts_parameters_inputs_and_what_a_call_takes():
    small = measure(nn.Linear(256, 256, bias=False), torch.ones(1, 256))
    assert small.peak_memory >= 4 * 256 * 257
    large = measure(Sleeper(), bytes=1 << 27, runs=3)
    assert large.peak_memory >= 1 << 27


def test_memory_that_the_allocator_kept_counts_when_a_call_takes_it_again():
    pieces = [b"x" * (1 << 16) for _ in range(5 << 10)]  # each too small for a map of its own
    keep = pieces[-64:]  # the heap's end stays in use, so that nothing goes back by itself
    del pieces
    assert measure(Sleeper(), bytes=1 << 27, runs=3).peak_memory >= 1 << 27
    assert keep


def test_runs_without_gradients():
    class Check(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            return x

    measure(Check(), torch.ones(1), runs=1)


@pytest.mark.parametrize("runs", [0, -3])
def test_refuses_no_runs(runs: int):
    with pytest.raises(HastenError, match="at least 1 run"):
        measure(Sleeper(), runs=runs)


def test_spread_is_median_least_and_greatest():
    assert spread([3.0, 1.0, 2.0, 10.0]) == spread([10.0, 2.0, 1.0, 3.0])
    made = spread([3.0, 1.0, 2.0])
    assert (made.median, made.low, made.high, made.runs) == (2.0, 1.0, 3.0, 3)


def test_the_most_bytes_held_at_once() -> None:
    def call() -> None:
        for _ in range(3):
            torch.ones(100_000).neg()

    assert 800_000 <= allocated_bytes(call) < 900_000


def test_what_is_kept_for_the_backward_counts_once_and_without_parameters() -> None:
    layer = nn.Linear(10, 10, bias=False)
    x = torch.randn(5, 10, requires_grad=True)
    # The product keeps its input and weight; the exponential its output, which the square keeps too.
    kept = kept_for_backward(lambda: layer(x).exp().square().sum(), layer.parameters())
    assert kept == 4 * (50 + 50)
    assert kept_for_backward(lambda: layer(x).sum()) == 4 * (50 + 100)


def test_products_are_worth_many_bytes_here() -> None:
    """On any machine a product of large matrices does more FLOPs than a copy moves bytes in the same time."""
    assert 1 < measured_intensity(2) < 1e5
