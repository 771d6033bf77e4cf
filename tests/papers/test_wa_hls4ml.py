"""wa-hls4ml's checks: a quick run runs all of them, and what needs no training is judged."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers import paper
from hasten.papers.experiment import HOLDS, Outcome


def test_every_piece_is_there() -> None:
    assert paper("wa-hls4ml").status == "checked"
    assert set(paper("wa-hls4ml").checked) == {"W1", "W3", "W4", "W5"}


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("wa-hls4ml")
    assert {o.verdict for o in found.values()} == {"not judged: quick run"}
    assert "really synthesised" in found["W1"].seen


def test_the_rule_is_exact(outcome: Callable[..., Outcome]) -> None:
    found = outcome("wa-hls4ml", "W5")
    assert found.verdict == HOLDS
    assert found.seen == "12 of 12 designs exact in cycles and slices"
