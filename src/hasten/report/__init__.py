"""What was found, for people: tables in the terminal, plots, and pages that open offline."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.report.claims_page import write_claims
    from hasten.report.html import write_html
    from hasten.report.search import search_table, trials_document, write_search
    from hasten.report.tables import (
        asset_table,
        check_table,
        comparison_table,
        paper_table,
        print_table,
        print_tune,
        tune_table,
    )

# A table needs nothing of the plots.
_HOMES = {
    "asset_table": "tables",
    "check_table": "tables",
    "comparison_table": "tables",
    "paper_table": "tables",
    "print_table": "tables",
    "print_tune": "tables",
    "search_table": "search",
    "trials_document": "search",
    "tune_table": "tables",
    "write_claims": "claims_page",
    "write_html": "html",
    "write_search": "search",
}

__all__ = [
    "asset_table",
    "check_table",
    "comparison_table",
    "paper_table",
    "print_table",
    "print_tune",
    "search_table",
    "trials_document",
    "tune_table",
    "write_claims",
    "write_html",
    "write_search",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(f"hasten.report.{_HOMES[name]}"), name)
        globals()[name] = value  # a module of the same name is not in its way
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
