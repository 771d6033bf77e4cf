"""What a model computes, from its configuration alone: one description whatever it is and wherever it is from."""

from hasten.models.description.describe import describe

__all__ = ["describe"]
