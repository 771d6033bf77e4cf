"""How much a workload costs: estimates on any device, and measurements in the same shape."""

from hasten.cost.estimate import EinsumCost, Estimate, Measurement, PhaseCost, Spread
from hasten.cost.measuring import measure
from hasten.cost.roofline import estimate  # the function: the module of that name holds the nouns

__all__ = ["EinsumCost", "Estimate", "Measurement", "PhaseCost", "Spread", "estimate", "measure"]
