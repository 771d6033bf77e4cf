"""What tests of checks share."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hasten.papers import Result, paper, run_checks
from hasten.papers.experiment import Outcome, Runner
from hasten.papers.registry import VARIABLE, checks_of

# Quick runs of these papers stand for all in the default run; the slow tests, and CI, have one of each.
DAILY = {"alisa", "attention_io", "bolt", "daq", "hourglass", "kinetics", "resistive_lsm"}

# A folder for results of quick runs, a file for each process of tests: `make test` does not run them again.
KEPT = os.environ.get("QUICK_RESULTS")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        quick = item.path.parent == Path(__file__).parent and {"quick", "outcome"} & {
            *getattr(item, "fixturenames", ())
        }
        if quick and item.name.startswith("test_a_quick_run") and item.path.stem.removeprefix("test_") not in DAILY:
            item.add_marker(pytest.mark.slow)


@functools.cache
def quick_results(slug: str) -> dict[str, Result]:
    """Claim -> result of every check of a paper, run once as ``hasten check SLUG --quick`` does."""
    file = Path(KEPT) / f"{os.environ.get('PYTEST_XDIST_WORKER', 'here')}.jsonl" if KEPT else None
    found = run_checks([slug], length="quick", save=file, again=True)
    return {r.claim: r for r in found if r.claim in paper(slug).checked}


@pytest.fixture
def outcome() -> Callable[..., Outcome | Result]:
    """Runs the check of one claim: ``outcome(slug, claim, budget=...)``."""

    def run(slug: str, claim: str, **options: Any) -> Outcome | Result:
        if options == {"length": "quick"}:
            return quick_results(slug)[claim]
        module = checks_of(paper(slug))
        assert module is not None
        return Runner(slug, vars(module), **options).run(claim)

    return run


@pytest.fixture
def quick() -> Callable[[str], dict[str, Result]]:
    """Runs every check of a paper: all code runs, and nothing is judged."""

    def run(slug: str) -> dict[str, Result]:
        found = quick_results(slug)
        for claim, seen in found.items():
            assert seen.verdict == "not judged: quick run" or "not checkable here" in seen.verdict, f"{claim}: {seen}"
        return found

    return run


@pytest.fixture
def needed() -> Callable[[str], dict[str, float]]:
    """Claim -> seconds of a budget below which its check does not judge, where it says so in advance."""

    def of(slug: str) -> dict[str, float]:
        module = checks_of(paper(slug))
        assert module is not None
        return {claim: c.needs for claim, c in Runner(slug, vars(module)).checks.items() if c.needs}

    return of


CARD = """
title = "Doubling a vector"
arxiv = "2401.00001"
year = 2024
field = "training"
summary = "Twice as much of everything."
pieces = ["{block}:Double"]

[[claims]]
id = "D1"
metric = "sum of a doubled vector"
value = "twice the sum"
baseline = "the vector"

[[claims]]
id = "D2"
metric = "norm of a doubled vector"
value = "twice the norm"

[[claims]]
id = "D3"
metric = "a city's vectors"
value = "twice as many"
how = "none"
"""

BLOCK = """
import torch


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x
"""

CHECKS = """
import torch
from {block} import Double

from hasten.papers.experiment import Experiment, Seen, check, shared


@shared()
def _vector(experiment: Experiment) -> torch.Tensor:
    return torch.randn(100, generator=torch.Generator().manual_seed(experiment.seed))


@check("D1")
def total(experiment: Experiment) -> Seen:
    x = experiment.once(_vector)
    ratio = float(Double()(x).sum() / x.sum())
    return experiment.judge(f"{{ratio:.3f}}", holds=abs(ratio - 2) < 1e-3)


def _norm(x: torch.Tensor, factor: float) -> float:
    if factor < 0:
        raise ValueError("a factor below 0")
    return float((factor * x).norm())


@check("D2", weight=2)
def norm(experiment: Experiment) -> Seen:
    x = experiment.once(_vector)
    arms = {{"one": (x, 1.0), "two": (x, 2.0), "less": (x, -1.0)}}
    found = experiment.arms(_norm, arms, processes=experiment.at(quick=1, normal=2))
    seen = f"{{found['two'] / found['one']:.3f}}, {{found['less'].error}}"
    return experiment.judge(seen, holds=False, direction=True)
"""


def write_papers(folder: Path, block: str, slug: str = "doubling") -> Path:
    """A folder of papers with one card, its checks, and beside them the module of the block they are about."""
    (folder / "cards").mkdir(parents=True, exist_ok=True)
    (folder / "checks").mkdir(exist_ok=True)
    (folder / "cards" / f"{slug}.toml").write_text(CARD.format(block=block), "utf-8")
    (folder / "checks" / f"{slug.replace('-', '_')}.py").write_text(CHECKS.format(block=block), "utf-8")
    return folder


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of papers of one's own with the paper ``doubling``, for this process and those it starts."""
    block = f"blocks_{abs(hash(tmp_path))}"  # modules stay imported: each test has its own
    folder = write_papers(tmp_path / "shelf", block)
    (folder / f"{block}.py").write_text(BLOCK, "utf-8")
    monkeypatch.setenv(VARIABLE, str(folder))
    monkeypatch.setattr(sys, "path", [*sys.path])
    return folder
