"""Searches of networks."""
