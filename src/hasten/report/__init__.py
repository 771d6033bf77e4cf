"""What was found, for people: tables in the terminal, plots, and pages that open offline."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten.exports import TypedExports

# A table needs nothing of the plots: each is imported when it is asked for.
if TYPE_CHECKING:
    from hasten.report.claims_page import write_claims as write_claims
    from hasten.report.estimate_page import write_estimates as write_estimates
    from hasten.report.estimates import estimate_table as estimate_table
    from hasten.report.estimates import estimates_document as estimates_document
    from hasten.report.html import write_html as write_html
    from hasten.report.search import search_table as search_table
    from hasten.report.search import trials_document as trials_document
    from hasten.report.search import write_search as write_search
    from hasten.report.tables import asset_table as asset_table
    from hasten.report.tables import check_table as check_table
    from hasten.report.tables import comparison_table as comparison_table
    from hasten.report.tables import paper_table as paper_table
    from hasten.report.tables import print_table as print_table
    from hasten.report.tables import print_tune as print_tune
    from hasten.report.tables import tune_table as tune_table

_exports = TypedExports(__name__)
__getattr__ = _exports.find
__dir__ = _exports.names
