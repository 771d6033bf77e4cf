"""SimpleNets that grow by their principles: what pays best is taken, every step keeps the rules, and growth ends."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch import nn

from hasten.cost.growing import DEEPER_NOISE
from hasten.cost.preserving import difference
from hasten.errors import HastenError
from hasten.models import SimpleNet, SimpleNetConfig
from hasten.models.vision.backbone import multiply_accumulates
from hasten.models.vision.design_rules import design_rules
from hasten.processes import one_thread
from hasten.search.networks.gradual_growth import GROWTH_RULES, GrownSimpleNet, grow
from hasten.tasks.images import Digits
from hasten.train.fitting import fit_task

IMAGE = (1, 8, 8)
START = SimpleNetConfig("8 8 p 8 8", channels=1)
EXAMPLES = torch.randn(16, *IMAGE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def depth(network: SimpleNet) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in network.modules())


def width(network: SimpleNet) -> int:
    return sum(m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d))


def start(config: SimpleNetConfig = START) -> SimpleNet:
    torch.manual_seed(0)
    return SimpleNet(config)


def check_steps(found: GrownSimpleNet, gain: float, limit: float = math.inf, begun: SimpleNetConfig = START) -> None:
    """What every growth keeps."""
    sizes = [multiply_accumulates(SimpleNet(begun), IMAGE)]
    for step in found.steps:
        network = SimpleNet(step.config)
        sizes.append(multiply_accumulates(network, IMAGE))
        assert step.products == sizes[-1] <= limit
        assert step.gain >= gain
        rules = {f.rule: f.holds for f in design_rules(network, IMAGE)}
        assert all(rules[name] for name in GROWTH_RULES)
    assert all(b > a for a, b in pairwise(sizes))
    assert found.products == sizes[-1] == multiply_accumulates(found.network, IMAGE)
    assert not found.network.training


@pytest.mark.parametrize("wanted", [4, 7])
def test_it_grows_as_deep_as_depth_pays(wanted: int) -> None:
    asked: list[SimpleNetConfig] = []

    def score(network: SimpleNet) -> float:
        assert network.training
        asked.append(network.config)
        return min(depth(network), wanted) / wanted

    network = start()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = grow(network, score, EXAMPLES, gain=0.01, products=1e9)
    assert depth(found.network) == wanted
    assert found.score == 1
    assert [s.move for s in found.steps] == ["deepen"] * (wanted - 4)
    assert "the best step gains 0 for a million multiply-accumulates, 0.01 is asked for" in found.ended
    check_steps(found, 0.01)
    # Each round asks for the network as it is, and for both steps of both groups at most.
    assert asked[0] == START
    assert len(asked) <= 5 * (wanted - 3)
    assert network.config == START
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_it_grows_as_wide_as_width_pays() -> None:
    found = grow(start(), lambda network: min(width(network), 40) / 40, EXAMPLES, gain=0.01, products=1e9)
    assert {s.move for s in found.steps} == {"widen"} or width(found.network) >= 40
    assert found.score == 1
    check_steps(found, 0.01)


def test_of_equal_gains_the_cheaper_step_is_taken() -> None:
    found = grow(start(), lambda network: float(depth(network)), EXAMPLES, gain=0.01, products=75_000)
    # A layer costs 9,216 products behind the pooling, and four times as many in front of it.
    assert [(s.move, s.group) for s in found.steps] == [("deepen", 1)]
    assert found.steps[0].gain == pytest.approx(1 / 0.009216)


def test_no_step_below_the_threshold_is_taken() -> None:
    # A layer behind the pooling gains 1 / 0.009216 = 108.5 a million, until there are six of the eight.
    def score(network: SimpleNet) -> float:
        return min(depth(network), 6) + 0.1 * max(0, depth(network) - 6)

    found = grow(start(), score, EXAMPLES, gain=50, products=1e9)
    assert depth(found.network) == 6
    check_steps(found, 50)
    none = grow(start(), score, EXAMPLES, gain=200, products=1e9)
    assert none.steps == ()
    assert none.network.config == START
    assert "gains 109 for a million" in none.ended


def test_the_limit_is_kept() -> None:
    found = grow(start(), lambda network: float(depth(network)), EXAMPLES, gain=0, products=100_000)
    check_steps(found, 0, 100_000)
    assert len(found.steps) >= 3
    assert found.ended.startswith("the next step takes ")
    assert found.ended.endswith(" multiply-accumulates of 100,000 allowed")


def test_where_no_step_keeps_the_rules_it_says_so() -> None:
    asked: list[SimpleNetConfig] = []

    def score(network: SimpleNet) -> float:
        asked.append(network.config)
        return 0.5

    # Its last layer has nearly all of the weights that one may have: one more like it, or wider ones, have more.
    config = SimpleNetConfig("8 8 16", channels=1, classes=120)
    found = grow(start(config), score, EXAMPLES, gain=0, products=1e9)
    assert (found.steps, found.score, asked) == ((), 0.5, [config])
    assert found.ended == "every step breaks a rule: balance"
    assert grow(start(config), score, EXAMPLES, gain=0, products=1e6, rules=()).steps


def test_what_cannot_begin_is_told() -> None:
    def grown(config: SimpleNetConfig = START, score: float = 0.5, products: float = 1e9, **options: object) -> None:
        grow(start(config), lambda network: score, EXAMPLES, products=products, **{"gain": 0.1, **options})  # type: ignore[arg-type]

    with pytest.raises(HastenError, match="breaks a rule that it is to keep: homogeneous groups, balance"):
        grown(SimpleNetConfig("8 16 p 16 32", channels=1))
    with pytest.raises(HastenError, match="takes 59,984 multiply-accumulates of 50,000 allowed"):
        grown(products=50_000)
    with pytest.raises(HastenError, match="for 3 channels, the examples have 1"):
        grown(SimpleNetConfig("8 8 p 8 8"))
    with pytest.raises(HastenError, match="there is no rule 'depth': rules are gradual growth, "):
        grown(rules=("depth",))
    for gain in (-1.0, math.nan):
        with pytest.raises(HastenError, match="is from 0: got"):
            grown(gain=gain)
    with pytest.raises(HastenError, match="the score of the network to grow is nan"):
        grown(score=math.nan)
    with pytest.raises(HastenError, match="one tensor of images"):
        grow(start(), lambda network: 0.5, EXAMPLES[0], gain=0.1, products=1e9)


def test_a_step_whose_score_is_no_number_is_not_taken() -> None:
    found = grow(
        start(), lambda n: 0.5 if depth(n) == 4 and width(n) == 32 else math.nan, EXAMPLES, gain=0, products=1e9
    )
    assert found.steps == ()
    assert "the best step gains nothing that is a number" in found.ended


def test_weights_are_kept() -> None:
    network = start()
    network(torch.randn(64, *IMAGE))  # statistics of its own

    def deeper(other: SimpleNet) -> float:
        return float(min(depth(other), 6))

    exact = grow(network, deeper, EXAMPLES, gain=0.1, products=1e9, noise=False)
    assert len(exact.steps) == 2
    assert difference(network, exact.network, (EXAMPLES,)) < 1e-5
    noisy = grow(network, deeper, EXAMPLES, gain=0.1, products=1e9)
    assert 1e-5 < difference(network, noisy.network, (EXAMPLES,)) < 100 * DEEPER_NOISE


def test_a_network_that_learns_digits_grows() -> None:
    task = Digits((512, 256, 256))
    examples = next(task.batches("training", 64, 0)).inputs

    def score(network: SimpleNet) -> float:
        fit_task(network, task, size=64, seed=0, steps=40, peak=1e-2)
        return task.evaluate(network.eval(), "validation")

    narrow = SimpleNetConfig("4 4 p 4 4", channels=1)
    found = grow(start(narrow), score, examples, gain=0.1, products=36_000)
    check_steps(found, 0.1, 36_000, narrow)
    assert found.steps
    assert found.score == task.evaluate(found.network, "validation") > 0.4
