"""The checks of Terminator run end to end in a quick run, and look at every layer that the claim is of."""

from __future__ import annotations

from collections.abc import Callable

from hasten.papers.experiment import Outcome


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("terminator")
    assert found.keys() == {"Z1", "Z2", "Z3", "Z4", "Z5", "Z6"}
    assert "permuted digits, ResNet" in found["Z1"].seen
    assert "after a third of the steps Terminator" in found["Z2"].seen
    assert "without slow loss" in found["Z4"].seen
    assert "of Kar3 and" in found["Z5"].seen
    assert found["Z6"].seen == "1,336,855"
    # Of a block six: two gates', the fast branch, the mixed and the chosen channels, every other group of the output.
    assert found["Z3"].seen.startswith("12 means at most ")
