"""Searches by sampled paths: who learns from what, every rule, and the latency in the loss."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hasten.cost.latency.expected import ExpectedLatency
from hasten.errors import HastenError
from hasten.models.vision.proxyless import ProxylessConfig, ProxylessSuperNet
from hasten.nn.mixed_edge import MixedEdge
from hasten.search.networks import path_search
from hasten.search.networks.bilevel import Spending, halves
from hasten.search.networks.path_search import RULES, PathSearch, latency_loss, reinforce_loss, search_paths
from hasten.tasks.associative_recall import AssociativeRecall
from hasten.tasks.images import Digits
from hasten.tasks.restoration import DenoiseDigits

CONFIG = ProxylessConfig((8, 12), (2, 1), (1, 2), 8, 8, 16, 1, resolution=8, channels=1, classes=10)
TABLE = ExpectedLatency.of_choices(lambda arch: float(CONFIG.macs(arch)), CONFIG.choices())


@pytest.fixture(scope="module")
def task() -> Digits:
    return Digits((128, 64, 64))


def searched(task: Digits, **options: Any) -> tuple[ProxylessSuperNet, ProxylessSuperNet, PathSearch]:
    """The super-network before and after, and what was found."""
    torch.manual_seed(0)
    supernet = ProxylessSuperNet(CONFIG)
    before = copy.deepcopy(supernet)
    options = {"steps": 6, "warm": 0.3, "every": 1, "batch": 16, "networks": 3, **options}
    return before, supernet, search_paths(supernet, task, TABLE, **options)


def moved(one: list[Any], other: list[Any]) -> list[bool]:
    return [not torch.equal(p, q) for p, q in zip(one, other, strict=True)]


@pytest.mark.slow_cases("reinforce")
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_searches(task: Digits, rule: Any) -> None:
    limit = 0.5 * (TABLE.of([5, 5, 5]) + TABLE.fixed)
    before, after, found = searched(task, rule=rule, limit=limit)
    assert found.steps == (6, 4)
    assert TABLE.of(found.arch) <= limit
    assert any(moved(before.logits(), after.logits()))
    assert len(found.expected) == 4
    assert all(abs(sum(row) - 1) < 1e-5 for row in found.probabilities)
    again = searched(task, rule=rule, limit=limit)[2]
    assert again == found


def test_logits_wait_and_weights_stay(task: Digits) -> None:
    before, after, found = searched(task, warm=1.0)
    assert found.steps == (6, 0)
    assert not any(moved(before.logits(), after.logits()))
    assert any(moved(list(before.weights()), list(after.weights())))
    for rule in ("full_v2", "two"):
        before, after, found = searched(task, rate=0.0, warm=0.0, rule=rule)
        assert any(moved(before.logits(), after.logits()))
        assert not any(moved(list(before.weights()), list(after.weights())))


def test_logits_wait_for_the_first_epoch_after_evenly_drawn_paths(
    task: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 120 epochs, as published: here of 240 steps each two."""
    drawn: list[tuple[str, bool]] = []
    draw = MixedEdge.draw

    def recorded(self: MixedEdge, paths: Any, *arguments: Any, evenly: bool = False, **options: Any) -> None:
        drawn.append((paths, evenly))
        draw(self, paths, *arguments, evenly=evenly, **options)

    monkeypatch.setattr(MixedEdge, "draw", recorded)
    monkeypatch.setattr(path_search, "_JOINT", 3)
    assert searched(task, steps=8, warm=0.25)[2].steps == (8, 4)
    steps = [row for place, row in enumerate(drawn) if place % 3 == 0]  # three edges are drawn at a time
    weights = ("one", True), ("one", False)
    assert steps == [weights[0]] * 2 + [weights[1]] * 2 + [weights[1], ("full_v2", False)] * 4
    monkeypatch.undo()
    assert path_search._JOINT == 120
    assert searched(task, steps=2, warm=0.0)[2].steps == (2, 1)  # even without a share of their own


def test_logits_learn_by_adam_without_momentum_and_smooth_no_labels(
    task: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    adam, loss = torch.optim.Adam, F.cross_entropy
    smoothed: list[float] = []

    def made(parameters: Any, **options: Any) -> torch.optim.Adam:
        given.append(options)
        return adam(parameters, **options)

    def recorded(logits: torch.Tensor, targets: torch.Tensor, **options: Any) -> torch.Tensor:
        smoothed.append(options.get("label_smoothing", 0.0))
        return loss(logits, targets, **options)

    monkeypatch.setattr(torch.optim, "Adam", made)
    monkeypatch.setattr(path_search.F, "cross_entropy", recorded)
    assert searched(task, steps=4, warm=0.4, logit_rate=0.02)[2].steps == (4, 2)
    assert given == [{"lr": 0.02, "betas": (0.0, 0.999)}]
    assert smoothed == [0.1, 0.1, 0.1, 0.0, 0.1, 0.0]  # weights, logits in their turn


def test_reinforce_rewards_accuracy_by_latency_over_a_moving_baseline(
    task: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = TABLE.of([3, 4, 3])
    losses: list[tuple[list[float], float]] = []
    drawn: list[tuple[int, ...]] = []
    of = ExpectedLatency.of

    def recorded(chances: Any, rewards: list[float], baseline: float) -> torch.Tensor:
        losses.append((list(rewards), baseline))
        return reinforce_loss(chances, rewards, baseline)

    def asked(self: ExpectedLatency, chosen: Any) -> float:
        drawn.append(tuple(chosen))
        return of(self, chosen)

    monkeypatch.setattr(path_search, "reinforce_loss", recorded)
    monkeypatch.setattr(ExpectedLatency, "of", asked)
    monkeypatch.setattr(Digits, "evaluate_batch", lambda self, answer, batch: 0.5)
    found = searched(task, rule="reinforce", limit=limit, steps=4, warm=0.0, networks=5)[2]
    assert found.steps == (4, 3)
    rewards = [reward for row, _ in losses for reward in row]
    assert rewards == pytest.approx([0.5 * (limit / of(TABLE, arch)) ** 0.1 for arch in drawn[:15]])
    assert len(set(drawn[:15])) > 5
    baseline = 0.0
    for row, used in losses:
        baseline += 0.99 * (sum(row) / len(row) - baseline)
        assert used == pytest.approx(baseline)


def test_it_searches_with_the_published_form_of_the_loss(task: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = TABLE.of([0, 6, 0]) * 1.2
    forms: list[tuple[str, float]] = []

    def recorded(loss: Any, expected: Any, reference: float, form: Any, strength: float, unit: float) -> torch.Tensor:
        forms.append((form, reference))
        return latency_loss(loss, expected, reference, form, strength, unit)

    monkeypatch.setattr(path_search, "latency_loss", recorded)
    options: dict[str, Any] = {"steps": 60, "warm": 0.0, "logit_rate": 0.2, "limit": limit}
    # In a unit a little below the fastest network's time the logarithm counts for much.
    before, after, found = searched(task, form="multiplicative", unit=0.9 * TABLE.fixed, **options)
    assert forms == [("multiplicative", limit)] * 59
    assert any(moved(before.logits(), after.logits()))
    assert found.expected[-1] < 0.9 * found.expected[0]
    assert TABLE.of(found.arch) <= limit


def test_logits_begin_near_0() -> None:
    torch.manual_seed(0)
    rows = torch.cat([torch.cat([p.detach() for p in ProxylessSuperNet(CONFIG).logits()]) for _ in range(30)])
    assert float(rows.std()) == pytest.approx(1e-3, rel=0.1)
    assert abs(float(rows.mean())) < 2e-4


def test_latency_in_the_loss_pulls_to_faster_choices(task: Digits) -> None:
    limit = TABLE.of([0, 6, 0]) * 1.2
    options: dict[str, Any] = {"steps": 60, "warm": 0.0, "logit_rate": 0.2}
    pulled = searched(task, limit=limit, strength=3.0, **options)[2]
    free = searched(task, **options)[2]
    assert pulled.expected[-1] < 0.9 * pulled.expected[0]
    assert pulled.expected[-1] < free.expected[-1]


def test_losses_with_latency() -> None:
    loss, expected = torch.tensor(2.0), torch.tensor(0.1)
    assert float(latency_loss(loss, expected, 0.08)) == pytest.approx(2 + 0.1 * 0.25)
    found = latency_loss(loss, expected, 0.08, "multiplicative")
    assert float(found) == pytest.approx(0.2 * 2 * (math.log(100) / math.log(80)) ** 0.3, rel=1e-5)
    for time, reference, form, why in (
        (0.1, 0.0, "additive", "above 0"),
        (0.1, 1e-3, "multiplicative", "of 0.001 s has no logarithm"),
        (5e-4, 0.08, "multiplicative", "of 0.0005 s has no logarithm"),
    ):
        with pytest.raises(HastenError, match=why):
            latency_loss(loss, torch.tensor(time), reference, form)  # type: ignore[arg-type]


def test_reinforce_weighs_by_what_was_not_expected() -> None:
    chances = [torch.tensor(-1.0), torch.tensor(-3.0)]
    assert float(reinforce_loss(chances, [0.9, 0.5], 0.6)) == pytest.approx((0.3 * 1 - 0.1 * 3) / 2)


def test_halves_never_mix(task: Digits) -> None:
    parts = halves(task, 0.25, (48, 40), 3)
    seen = [{tuple(x.flatten().tolist()) for _ in range(9) for x in next(part).inputs} for part in parts]
    assert (len(seen[0]), len(seen[1])) == (96, 32)
    assert not seen[0] & seen[1]
    test = {tuple(x.flatten().tolist()) for split in ("validation", "test") for x in task.parts[split][0]}
    assert not (seen[0] | seen[1]) & test
    endless = halves(AssociativeRecall(length=32, pairs=3), 0.5, (4, 4), 0)
    assert not torch.equal(next(endless.weights).inputs, next(endless.logits).inputs)
    with pytest.raises(HastenError, match="leaves nothing"):
        halves(task, 0.0, (1, 1), 0)


def test_what_cannot_be_searched_is_said(task: Digits) -> None:
    with pytest.raises(HastenError, match="logits learn by full"):
        searched(task, rule="three")
    with pytest.raises(HastenError, match="raise the limit"):
        searched(task, limit=1.0)
    with pytest.raises(HastenError, match="needs a classification"):
        search_paths(ProxylessSuperNet(CONFIG), DenoiseDigits(), TABLE, steps=1)
    with pytest.raises(HastenError, match="give one of them"):
        Spending(None, None)
