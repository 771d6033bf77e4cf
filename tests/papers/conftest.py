"""What tests of checks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hasten.papers import paper
from hasten.papers.experiment import Outcome, Runner
from hasten.papers.registry import checks_of


@pytest.fixture
def outcome() -> Callable[..., Outcome]:
    """Runs the check of one claim: ``outcome(slug, claim, budget=...)``."""

    def run(slug: str, claim: str, **options: Any) -> Outcome:
        module = checks_of(paper(slug))
        assert module is not None
        return Runner(slug, vars(module), **options).run(claim)

    return run
