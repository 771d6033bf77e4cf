"""Papers: a card each in ``cards/``, its checks in ``checks/``. Adding the files adds a paper."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hasten.papers.card import FIELDS, Claim, Paper, read_card
from hasten.papers.registry import paper, papers

if TYPE_CHECKING:
    from hasten.papers.experiment import Experiment, Seen
    from hasten.papers.results import Result, read_results
    from hasten.papers.running import check, run_checks

# A listing needs none of these.
_HOMES = {
    "Experiment": "hasten.papers.experiment",
    "Result": "hasten.papers.results",
    "Seen": "hasten.papers.experiment",
    "check": "hasten.papers.running",
    "read_results": "hasten.papers.results",
    "run_checks": "hasten.papers.running",
}

__all__ = [
    "FIELDS",
    "Claim",
    "Experiment",
    "Paper",
    "Result",
    "Seen",
    "check",
    "paper",
    "papers",
    "read_card",
    "read_results",
    "run_checks",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
