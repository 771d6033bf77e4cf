"""FuseMax's checks run end to end in a quick run; those of the cost model need no budget."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.checks import fusemax
from hasten.papers.experiment import Outcome, Runner

Quick = Callable[[str], dict[str, Outcome]]


def test_a_quick_run_runs_everything(quick: Quick) -> None:
    found = quick("fusemax")
    assert found.keys() == {f"F{i}" for i in range(1, 10)}
    assert all(seen.seen for seen in found.values())
    assert "random numbers" in found["F8"].seen


def test_verdicts_of_the_cost_model() -> None:
    run = Runner("fusemax", vars(fusemax))
    verdicts = {f"F{i}": run.run(f"F{i}").verdict for i in range(1, 8)}
    assert verdicts == dict.fromkeys(verdicts, "holds")


def test_footprints_are_not_taken_in_a_small_budget(outcome: Callable[..., Outcome]) -> None:
    assert outcome("fusemax", "F9", budget=59).verdict == "not judged: needs 60 s"
