"""The checks of Once-for-All: the exact ones, and the trained ones on a small budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hasten.data import assets
from hasten.papers.checks import once_for_all
from hasten.papers.experiment import Outcome
from hasten.spaces import once_for_all as fashion


def test_the_count_is_exact(outcome: Callable[..., Outcome]) -> None:
    seen = outcome("once-for-all", "c3")
    assert seen.verdict == "holds"
    assert "2.176e+19" in seen.seen


def test_hours_grow_with_the_schedule(outcome: Callable[..., Outcome]) -> None:
    hours = once_for_all._schedule_hours(0)
    assert list(hours) == ["largest", "kernel", "depth 1", "depth 2", "width 1", "width 2"]
    assert hours["width 2"] > hours["kernel"] > hours["width 1"] > 0
    seen = outcome("once-for-all", "c6")
    assert seen.verdict != "does not hold"


@pytest.mark.slow
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    if not assets.asset("fashion-mnist").cached:
        pytest.skip("needs `hasten assets get fashion-mnist`")
    d = fashion.images()
    few = fashion.Images(
        d.training[:500], d.training_labels[:500], d.held[:100], d.held_labels[:100], d.test[:100], d.test_labels[:100]
    )
    monkeypatch.setattr(fashion, "images", lambda: few)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so that the arms run in this process, on these images
    try:
        for claim in ("c1", "c2", "c7", "c8"):
            assert outcome("once-for-all", claim, budget=2).verdict.startswith("not judged"), claim
    finally:
        torch.set_num_threads(threads)
        once_for_all._arms.cache_clear()
        once_for_all._sampled.cache_clear()
