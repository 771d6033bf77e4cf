"""Recipes that train a module."""

from hasten.train.fitting import fit

__all__ = ["fit"]
