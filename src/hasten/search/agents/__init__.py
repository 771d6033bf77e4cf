"""Agents that search: told points, not steps."""
