"""Recipes that train a module, and the one loop that they stand on."""

from hasten.train.fitting import fit, make_optimizer, parameter_groups
from hasten.train.loop import Trained, descend, moving_average, train

__all__ = ["Trained", "descend", "fit", "make_optimizer", "moving_average", "parameter_groups", "train"]
