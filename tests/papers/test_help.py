"""HELP's checks: a quick run runs all of them, a small budget does not judge, and what they make of curves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hasten.cost.latency.regimes import MeasuredRegimes
from hasten.papers import paper
from hasten.papers.checks import help as checks
from hasten.papers.experiment import DIRECTION, FAILS, HOLDS, Outcome, Runner, shared
from hasten.search.networks import architecture_space


def test_every_piece_is_there() -> None:
    assert paper("help").status == "checked"
    assert set(paper("help").checked) == {"H1", "H2", "H3", "H4", "H6"}


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("help")
    assert {o.verdict for o in found.values()} == {"not judged: quick run"}
    assert "held-out devices" in found["H1"].seen
    assert "targets met" in found["H4"].seen


@pytest.mark.parametrize("claim", ["H1", "H2", "H3", "H4", "H6"])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str) -> None:
    assert outcome("help", claim, budget=2).verdict == "not judged: needs 180 s"


def test_a_slow_machine_needs_longer(monkeypatch: pytest.MonkeyPatch, outcome: Callable[..., Outcome]) -> None:
    def slow(space: Any, archs: Any, regimes: Any, **rest: Any) -> MeasuredRegimes:
        halves = {r.name: np.full((len(archs), 2), np.nan) for r in regimes}
        for row in halves.values():
            row[:5] = 1e-3 * (1 + np.arange(5))[:, None]
        return MeasuredRegimes(tuple(archs), tuple(regimes), halves, 1.0)

    monkeypatch.setattr(architecture_space, "measured_latencies", slow)
    assert outcome("help", "H1", budget=200).verdict == "not judged: needs 400 s"


@pytest.mark.parametrize(
    ("needed", "verdict"), [({}, HOLDS), ({"MLP": 900}, HOLDS), ({"MLP": 400}, DIRECTION), ({"GNN": 10}, FAILS)]
)
def test_h3_is_judged_by_what_reaches_help(
    monkeypatch: pytest.MonkeyPatch, needed: dict[str, int], verdict: str
) -> None:
    counts = {"measured": checks._COUNTS[:3], "modelled": checks._COUNTS}
    curves = {
        kind: {"HELP": dict.fromkeys(some[:3], 0.9)}
        | {m: {n: 0.95 if n >= needed.get(m, 10_000) else 0.5 for n in some} for m in ("MLP", "GNN")}
        for kind, some in counts.items()
    }
    monkeypatch.setattr(checks, "_curves", shared()(lambda experiment: curves))
    assert Runner("help", vars(checks)).run("H3").verdict == verdict
