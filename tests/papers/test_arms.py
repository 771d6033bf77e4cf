"""Arms of a check: one that fails costs the others nothing, and a quick run begins no process."""

from __future__ import annotations

import os

import pytest

from hasten.errors import HastenError
from hasten.papers.experiment import Experiment, Failure, Runner, Seen, check, succeeded


def halved(number: int) -> int:
    """An arm's function."""
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2


def where(number: int) -> int:
    """The process that an arm runs in."""
    return os.getpid()


def test_what_did_not_fail_and_why_the_others_did() -> None:
    found, clause = succeeded({"four": 2, "three": Failure("ValueError: 3 is odd")}, needed=["four"])
    assert found == {"four": 2}
    assert clause == "; three failed (ValueError: 3 is odd)"
    assert succeeded({"four": 2}) == ({"four": 2}, "")
    with pytest.raises(HastenError, match=r"three failed \(3 is odd\), and nothing is judged without it"):
        succeeded({"three": Failure("3 is odd")}, needed=["three"])


def test_a_quick_run_stays_in_one_process_and_on_one_thread() -> None:
    import torch

    before, threads = torch.get_num_threads(), []

    @check("A")
    def arms(experiment: Experiment) -> Seen:
        threads.append(torch.get_num_threads())
        found, clause = succeeded(experiment.arms(halved, {"two": (2,), "three": (3,)}))
        places = experiment.arms(where, {"a": (1,), "b": (2,)})
        return experiment.judge(f"{found}{clause}", set(places.values()) == {os.getpid()})

    outcome = Runner("toy", {"arms": arms}, length="quick").run("A")
    assert outcome.seen == "{'two': 1}; three failed (ValueError: 3 is odd)"
    assert outcome.verdict == "not judged: quick run"
    assert threads == [1]
    assert torch.get_num_threads() == before
