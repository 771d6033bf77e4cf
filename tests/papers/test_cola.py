"""CoLa's verdicts on made-up searches: the control decides, predictors are asked about other questions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hasten.papers.checks import cola
from hasten.papers.experiment import DIRECTION, FAILS, HOLDS, Outcome, Runner, shared
from hasten.search.chain_samples import ChainSample
from hasten.search.layer_chains import ChainResult, Comparison, Path

WHOLE = tuple(range(6))
SHORT, OTHER = (0, 1, 2, 3, 4), (0, 2, 3, 4, 5)


def found(*right: Path) -> ChainResult:
    return ChainResult(WHOLE, {p: float(p in right) for p in (WHOLE, SHORT, OTHER)})


def sample(
    *right: Path, control: tuple[Path, ...] = (), chance: tuple[Path, ...] = (), state: torch.Tensor | None = None
) -> ChainSample:
    says: Callable[[Path], bool] = lambda path: path in right  # noqa: E731
    tree = found(*right)
    arms = Comparison(tree, found(*chance), tree, tree, tree, found(*control))
    return ChainSample(True, says, torch.zeros(4) if state is None else state, arms, 4)


def judge(monkeypatch: pytest.MonkeyPatch, claim: str, samples: list[ChainSample]) -> tuple[str, str]:
    monkeypatch.setattr(cola, "samples", shared()(lambda experiment: samples))
    monkeypatch.setattr(cola, "real_model", shared()(lambda experiment, form: None))
    monkeypatch.setattr(cola, "one_for_all", lambda samples, model, trials: "one for all")
    done = Runner("cola", vars(cola)).run(claim)
    return done.verdict, done.seen


@pytest.mark.parametrize("claim", ["C1", "C2", "C4"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("cola", claim, budget=2).verdict == "not judged: needs 60 s"


@pytest.mark.parametrize("claim", ["C1", "C5"])
def test_a_quick_run(outcome: Callable[..., Outcome], claim: str) -> None:
    found = outcome("cola", claim, length="quick")
    assert found.verdict == "not judged: quick run"
    assert found.seen


def test_mended_counts_less_what_the_control_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = [sample(SHORT, control=(SHORT,))] * 10
    verdict, value = judge(monkeypatch, "C2", wrong)
    assert verdict == FAILS
    assert "+0%: C2 is not supported at this scale" in value
    assert judge(monkeypatch, "C2", [sample(SHORT)] * 10)[0] == HOLDS
    some = [sample(SHORT)] * 2 + [sample()] * 8
    assert judge(monkeypatch, "C2", some)[0] == DIRECTION


def test_shorter_chains_of_right_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    shorter, not_so = sample(WHOLE, SHORT), sample(WHOLE)
    assert judge(monkeypatch, "C1", [shorter] * 8 + [not_so] * 2)[0] == HOLDS
    assert judge(monkeypatch, "C1", [shorter] * 5 + [not_so] * 5)[0] == DIRECTION
    verdict, value = judge(monkeypatch, "C1", [shorter] + [not_so] * 9)
    assert verdict == FAILS
    assert "told the answers" in value


def test_the_tree_against_random(monkeypatch: pytest.MonkeyPatch) -> None:
    better = sample(WHOLE, SHORT, chance=(WHOLE,))
    assert judge(monkeypatch, "C4", [better] * 4)[0] == HOLDS
    worse = sample(WHOLE, chance=(WHOLE, SHORT))
    assert judge(monkeypatch, "C4", [worse] * 4)[0] == FAILS
