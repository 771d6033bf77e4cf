"""Papers: one file each, a card and its checks. Adding a file adds a paper."""

from hasten.papers.card import FIELDS, Claim, Context, Paper, Result, Seen
from hasten.papers.registry import check, paper, papers

__all__ = ["FIELDS", "Claim", "Context", "Paper", "Result", "Seen", "check", "paper", "papers"]
