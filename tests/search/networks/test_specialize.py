"""Choosing a sub-network: tables that add up, a predictor that learns, evolution that rejects."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from hasten.cost import estimate
from hasten.cost.latency.correlation import kendall
from hasten.errors import HastenError
from hasten.hardware import load_device
from hasten.models.vision.once_for_all import Architecture, OFAConfig, SubNetwork
from hasten.search.networks import specialize
from hasten.search.networks.members.once_for_all import OnceForAllSpace
from hasten.search.networks.specialize import (
    AccuracyPredictor,
    LatencyTable,
    estimated,
    evolve,
    measured,
    picks_within,
    seconds_of,
    without_caches,
)
from hasten.workload import trace

SMALL = OFAConfig(
    widths=(8, 16), strides=(1, 2), activations=("relu", "h_swish"), se=(False, True), depths=(1, 2, 3),
    resolutions=(12, 16, 20), stem=8, final=32, last=32, channels=1, classes=5, dropout=0.0,
)  # fmt: skip


SPACE = OnceForAllSpace(SMALL)


def work(arch: Architecture) -> float:
    """A latency that is quick to compute: blocks times width times kernel times size."""
    used = SMALL.used(arch.depths)
    parts = zip(arch.kernels, arch.expands, used, strict=True)
    return arch.resolution * float(sum(k * e for k, e, u in parts if u))


def worth(archs: list[Architecture]) -> list[float]:
    """More of all is better, of kernels less than of widths."""
    rows = [(a, SMALL.used(a.depths)) for a in archs]
    return [
        sum(e + 0.1 * k for k, e, u in zip(a.kernels, a.expands, used, strict=True) if u) + 0.2 * a.resolution
        for a, used in rows
    ]


@pytest.mark.parametrize("device", ["cpu2", "v100"])
def test_the_table_adds_up_to_the_whole_network_s_latency(device: str) -> None:
    chosen = load_device(device)
    table = estimated(SMALL, chosen)
    rng = random.Random(0)
    for _ in range(4):
        arch = SMALL.sample(rng)
        whole = trace(SubNetwork(SMALL, arch).eval(), torch.zeros(1, 1, arch.resolution, arch.resolution))
        assert table(arch) == pytest.approx(estimate(whole, without_caches(chosen)).latency, rel=1e-9)
        assert table(arch) >= estimate(whole, chosen).latency


def test_each_part_is_priced_once() -> None:
    priced = 0

    def costs(parts: Sequence[tuple[torch.nn.Module, torch.Tensor]]) -> list[float]:
        nonlocal priced
        priced += len(parts)
        return [float(sum(p.numel() for p in module.parameters())) for module, _ in parts]

    table = LatencyTable(SMALL, costs)
    arch = SMALL.architecture(3, 4, 3, 16)
    weights = sum(p.numel() for p in SubNetwork(SMALL, arch).parameters())
    assert table(arch) == weights
    # The stem, two kinds of block a stage, the head.
    assert priced == 6
    assert table(arch) == weights
    assert table(SMALL.architecture(3, 4, 2, 16)) < weights
    assert priced == 6


def test_parts_are_measured_in_turn_and_known_ones_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    class Part(torch.nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            ran.append(self.number)
            return x

    class Parts:
        def parts(self, arch: tuple[int, ...]) -> list[Any]:
            return [(n, partial(Part, n), (1, 2, 2)) for n in arch]

    table: LatencyTable[tuple[int, ...]] = measured(Parts(), runs=3)
    assert table.fill([(0, 1), (1, 2, 2)]) is table
    turns = [number for number, _ in itertools.groupby(ran)]
    # What fits in a millisecond is found and all are called once, then come three rounds over all.
    assert turns == [0, 1, 2] * 5
    assert set(table.known) == {0, 1, 2}
    assert table((0, 1, 1)) == table.known[0] + table.known[1] + table.known[1] > 0  # in this order
    ran.clear()
    assert table((0, 3)) > table.known[0]
    assert set(ran) == {3}
    # An interruption keeps what was measured: parts are known a group at a time.
    monkeypatch.setattr(specialize, "_IN_TURN", 2)
    made, costs = [], table.costs

    def interrupted(parts: Any) -> Any:
        made.append(len(parts))
        if len(made) == 2:
            raise KeyboardInterrupt
        return costs(parts)

    table.costs = interrupted
    with pytest.raises(KeyboardInterrupt):
        table((4, 5, 6, 7))
    assert set(table.known) == {0, 1, 2, 3, 4, 5}
    assert table((4, 5, 6, 7)) > 0
    assert made == [2, 2, 2]


def test_measured_latencies_are_positive_and_add_up() -> None:
    table = measured(SMALL, runs=1)
    small = table(SMALL.architecture(3, 3, 1, 12))
    assert small > 0
    assert table(SMALL.architecture(3, 3, 2, 12)) > small  # the same parts and two more
    assert seconds_of(torch.nn.Identity(), torch.zeros(1), runs=1) > 0


def test_the_predictor_has_the_paper_s_shape() -> None:
    predictor = AccuracyPredictor(OFAConfig())
    linear = [m for m in predictor.layers if isinstance(m, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(145, 400), (400, 400), (400, 400), (400, 1)]
    assert linear[-1].bias is None
    # Before it has learned, all are its constant and what random weights say.
    assert predictor.codes([OFAConfig().architecture()]).shape == (1, 145)


def test_the_predictor_learns_an_order() -> None:
    rng = random.Random(0)
    archs = list(dict.fromkeys(SMALL.sample(rng) for _ in range(260)))
    truth = [0.5 + 0.001 * w for w in worth(archs)]
    predictor = AccuracyPredictor(SMALL).fit(archs[:200], truth[:200], steps=200)
    found = predictor.predict(archs[200:])
    pairs = [(i, j) for i in range(len(found)) for j in range(i)]
    right = sum((found[i] - found[j]) * (truth[200 + i] - truth[200 + j]) > 0 for i, j in pairs)
    assert right > 0.9 * len(pairs)
    error = sum((a - b) ** 2 for a, b in zip(found, truth[200:], strict=True)) / len(found)
    spread = torch.tensor(truth).var().item()
    assert error < 0.1 * spread
    judged = predictor.judged(dict(zip(archs[200:], truth[200:], strict=True)))
    assert judged == (pytest.approx(error**0.5), pytest.approx(kendall(found, truth[200:])))


def test_the_predictor_needs_something_to_learn_from() -> None:
    arch = SMALL.architecture()
    for archs, accuracies in (([arch], [0.5]), ([arch, arch], [0.5])):
        with pytest.raises(HastenError, match="at least two"):
            AccuracyPredictor(SMALL).fit(archs, accuracies)


def test_kendall_counts_pairs() -> None:
    assert kendall([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert kendall([1, 2, 3, 4], [4, 3, 2, 1]) == -1
    assert kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)
    assert kendall([1, 1, 2], [1, 2, 3]) == pytest.approx(2 / 6**0.5)  # tau-b: one pair is tied in the first
    assert kendall([1, 1], [1, 2]) == 0


def test_nothing_over_the_limit_is_ever_scored() -> None:
    limit, scored = 1500.0, []

    def score(archs: list[Architecture]) -> list[float]:
        scored.extend(archs)
        return worth(archs)

    found = evolve(SPACE, score, work, limit, population=20, generations=10)
    assert all(work(a) <= limit for a in scored)
    assert len(set(scored)) == len(scored)  # none twice
    assert found.latency == work(found.arch) <= limit
    assert found.score == max(worth(scored))
    assert list(found.history) == sorted(found.history)
    assert len(found.history) == 11


def test_evolution_beats_as_many_random_draws() -> None:
    limit, count = 1000.0, [0]

    def score(archs: list[Architecture]) -> list[float]:
        count[0] += len(archs)
        return worth(archs)

    found = evolve(SPACE, score, work, limit, population=30, generations=30, seed=1)
    rng = random.Random(1)

    def draws() -> Iterator[Architecture]:
        while True:
            arch = SMALL.sample(rng)
            if work(arch) <= limit:
                yield arch

    source = draws()
    assert found.score > max(worth([next(source) for _ in range(count[0])]))


def test_a_loose_limit_leaves_the_best_of_all() -> None:
    found = evolve(SPACE, worth, work, 1e9, population=30, generations=40)
    assert found.arch == SMALL.architecture()


def test_the_same_seed_finds_the_same() -> None:
    one, same, other = (evolve(SPACE, worth, work, 1200.0, population=10, generations=3, seed=s) for s in (0, 0, 1))
    assert one == same
    assert one.history != other.history


def test_a_limit_that_nothing_meets() -> None:
    with pytest.raises(HastenError, match="raise the limit"):
        evolve(SPACE, worth, work, 1.0, population=4, generations=1, tries=50)


def test_picks_within_measured_limits_beside_random_search() -> None:
    rng = random.Random(0)
    drawn = dict.fromkeys((SMALL.sample(rng) for _ in range(6)), 0.0)
    drawn = {a: worth([a])[0] for a in drawn}
    threads = torch.get_num_threads()
    picks = picks_within(SPACE, worth, drawn, (0.5, 0.9), random_ones=4, population=4, generations=1)
    assert torch.get_num_threads() == threads
    assert len(picks) == 2
    assert picks[0].limit <= picks[1].limit
    for pick in picks:
        assert SPACE.valid(pick.arch)
        assert pick.random in drawn.values()
        assert pick.over > -1
