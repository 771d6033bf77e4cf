"""What was found, for people: tables in the terminal, plots, and a page that opens offline."""

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
    "write_html",
    "write_search",
]
