"""The survey on LLM acceleration: a small budget does not judge, and a quick run runs all on a tiny model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable

import pytest

from hasten.kernels import native
from hasten.papers.experiment import Outcome


@pytest.mark.parametrize(("claim", "seconds"), [("L1", 60), ("L2", 60), ("L5", 250)])
def test_a_small_budget_does_not_judge(outcome: Callable[..., Outcome], claim: str, seconds: int) -> None:
    assert outcome("llm-acceleration", claim, budget=2).verdict == f"not judged: needs {seconds} s"


@pytest.mark.skipif(native() is None, reason="the compiled kernels are not installed")
@pytest.mark.parametrize("claim", ["L1", "L2", "L5"])
def test_a_quick_run(outcome: Callable[..., Outcome], claim: str) -> None:
    found = outcome("llm-acceleration", claim, length="quick")
    assert found.verdict == "not judged: quick run"
    if claim == "L1":
        assert found.seen.startswith("text identical to greedy")
        assert found.detail.startswith("early exit: ")


def test_networks_become_circuits_in_a_quick_run(outcome: Callable[..., Outcome]) -> None:
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("no C++ compiler is here")
    found = outcome("llm-acceleration", "L4", length="quick")
    assert found.verdict == "not judged: quick run"
    assert re.match(r"lenet on zu3eg: an input every [\d,]+ cycles .*equal copies, the C\+\+ within", found.seen)
    assert found.seen.endswith("flip-flops")
