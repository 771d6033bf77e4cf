"""The checks of Once-for-All: the exact ones, and the trained ones on a small budget."""

from __future__ import annotations

import pytest
import torch

from hasten.data import assets
from hasten.papers import once_for_all
from hasten.papers.card import Context
from hasten.papers.once_for_all import paper


def test_the_count_is_exact() -> None:
    seen = paper.checks["c3"](Context())
    assert seen.holds
    assert "2.176e+19" in seen.value


def test_hours_grow_with_the_schedule() -> None:
    hours = once_for_all._schedule_hours(0)
    assert list(hours) == ["largest", "kernel", "depth 1", "depth 2", "width 1", "width 2"]
    assert hours["width 2"] > hours["kernel"] > hours["width 1"] > 0
    seen = paper.checks["c6"](Context())
    assert seen.verdict != "does not hold"


@pytest.mark.slow
def test_a_small_budget_does_not_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    if not assets.asset("fashion-mnist").cached:
        pytest.skip("needs `hasten assets get fashion-mnist`")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for claim in ("c1", "c2", "c7", "c8"):
            assert "too short to judge" in paper.checks[claim](Context(budget=2)).value, claim
    finally:
        torch.set_num_threads(threads)
