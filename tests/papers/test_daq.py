"""DAQ's checks: a quick run runs all of them, and what is only computed is judged."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hasten.papers import paper
from hasten.papers.experiment import HOLDS, Outcome


def test_every_piece_is_there() -> None:
    assert paper("daq").status == "checked"
    assert set(paper("daq").checked) == {"D1", "D2", "D3", "D4", "D5", "D6", "cascade", "cascade.optimum"}


def test_a_quick_run_runs_everything(quick: Callable[[str], dict[str, Outcome]]) -> None:
    found = quick("daq")
    assert {o.verdict for o in found.values()} == {"not judged: quick run"}
    assert "51.60 MW" in found["D5"].seen


@pytest.mark.parametrize("claim", ["D1", "D2", "D3", "D4", "D5"])
def test_the_model_says_what_the_paper_does(claim: str, outcome: Callable[..., Outcome]) -> None:
    assert outcome("daq", claim).verdict == HOLDS
