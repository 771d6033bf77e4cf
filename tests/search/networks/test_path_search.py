"""Searches by sampled paths: who learns from what, every rule, and the latency in the loss."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from hasten.cost.latency.expected import ExpectedLatency
from hasten.errors import HastenError
from hasten.models.vision.proxyless import ProxylessConfig, ProxylessSuperNet
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
    for reference, form, why in ((0.0, "additive", "above 0"), (1e-3, "multiplicative", "no logarithm")):
        with pytest.raises(HastenError, match=why):
            latency_loss(loss, expected, reference, form)  # type: ignore[arg-type]


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
