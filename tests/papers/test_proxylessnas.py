"""ProxylessNAS' checks run end to end in a quick run, and its sizes are exact."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("proxylessnas")
    assert found.keys() == {"c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"}
    assert "full_v2" in found["c1"].seen
    assert "MobileNetV2 (3,504,872 parameters)" in found["c2"].seen
    assert "here, measured" in found["c6"].seen
    assert "random tight" in found["c8"].seen


def test_what_is_computed_is_judged(outcome: Callable[..., Outcome]) -> None:
    assert outcome("proxylessnas", "c3").verdict == "holds"
    assert outcome("proxylessnas", "c4").verdict == "holds"
    small = outcome("proxylessnas", "c5")
    assert (small.verdict, small.seen[:20]) == ("holds", "5,731,530 parameters")
