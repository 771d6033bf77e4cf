"""Expected latency as the sum over all networks, and the best network within a limit."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from hasten.cost.latency.expected import ExpectedLatency
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.models.vision.proxyless import ProxylessConfig
from hasten.search.networks.members.proxyless import ProxylessSpace
from hasten.search.networks.specialize import estimated

SPACE = ProxylessSpace(ProxylessConfig((8,), (3,), (2,), 8, 8, 16, resolution=16, channels=1, kernels=(3, 5)))
COUNTS = SPACE.config.choices()


@pytest.fixture(scope="module")
def table() -> ExpectedLatency:
    return ExpectedLatency.of_choices(estimated(SPACE, load_device("pi5")), COUNTS)


def shares(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=torch.float64).softmax(0) for n in COUNTS]


def test_the_sum_is_that_of_whole_networks(table: ExpectedLatency) -> None:
    whole = estimated(SPACE, load_device("pi5"))
    for arch in itertools.product(*map(range, COUNTS)):
        assert table.of(arch) == pytest.approx(whole(arch), rel=1e-9)
        sharp = [torch.nn.functional.one_hot(torch.tensor(o), n).double() for o, n in zip(arch, COUNTS, strict=True)]
        assert float(table(sharp)) == pytest.approx(whole(arch), rel=1e-6)


def test_what_is_expected_is_the_mean_over_all_networks(table: ExpectedLatency) -> None:
    rows = shares(0)
    mean = sum(
        math.prod(float(row[o]) for row, o in zip(rows, arch, strict=True)) * table.of(arch)
        for arch in itertools.product(*map(range, COUNTS))
    )
    assert float(table(rows)) == pytest.approx(mean, rel=1e-6)


def test_its_gradient_is_that_of_finite_differences() -> None:
    table = ExpectedLatency(2.0, ((1.0, 3.0, 0.0), (0.5, 4.0)))
    logits = [torch.randn(3, dtype=torch.float64, requires_grad=True), torch.randn(2, dtype=torch.float64)]
    logits[1].requires_grad_()
    assert torch.autograd.gradcheck(lambda *rows: table([row.softmax(0) for row in rows]), logits)


def test_the_best_within_a_limit_is_found(table: ExpectedLatency) -> None:
    archs = list(itertools.product(*map(range, COUNTS)))
    seconds = sorted(table.of(a) for a in archs)
    for seed in range(3):
        scores = [row.log().tolist() for row in shares(seed)]

        def total(arch: tuple[int, ...], scores: list[list[float]] = scores) -> float:
            return sum(row[o] for row, o in zip(scores, arch, strict=True))

        for at in (5, len(seconds) // 2, -1):
            limit = seconds[at] * 1.001
            best = table.best_within(scores, limit)
            assert table.of(best) <= limit
            assert total(best) == pytest.approx(max(total(a) for a in archs if table.of(a) <= limit))
    assert table.best_within(scores, math.inf) == tuple(row.index(max(row)) for row in scores)
    with pytest.raises(HastenError, match="raise the limit"):
        table.best_within(scores, seconds[0] * 0.99)
