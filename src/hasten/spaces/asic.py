"""A chip of several small accelerators for given networks: time, energy and area (NASAIC's chip part)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from hasten.cost.chips.dataflow import ConvShape
from hasten.cost.chips.module_layers import conv_shapes
from hasten.errors import HastenError
from hasten.models.vision.resnet9 import ResNet9
from hasten.search.codesign.chips import ChipSpace, chip_problem
from hasten.search.problem import Problem

# (size of the picture, stem, filters and skip layers of the blocks): of CIFAR-10's and STL-10's pictures, as in
# the paper; widths and depths are our choice from the middle of its ranges.
_NETWORKS: Mapping[str, tuple[int, int, tuple[int, ...], tuple[int, ...]]] = {
    "cifar": (32, 32, (64, 128, 256), (1, 1, 1)),
    "stl": (96, 32, (64, 128, 256, 256, 256), (1, 1, 1, 1, 1)),
}
WORKLOADS: Mapping[str, tuple[str, ...]] = {
    "cifar": ("cifar",),
    "cifar-stl": ("cifar", "stl"),
    "cifar-cifar": ("cifar", "cifar"),
}
"""Networks that a chip has to run, by name: one, two different ones, and the same twice."""


def _layers(name: str) -> tuple[ConvShape, ...]:
    size, stem, filters, skips = _NETWORKS[name]
    with torch.device("meta"):
        network = ResNet9(10, 3, stem, filters, skips)
    return conv_shapes(network, (1, 3, size, size))


def problem(
    workload: str | Sequence[Sequence[ConvShape]] = "cifar-stl", *, deadline: float = 1e-3,
    chips: ChipSpace | None = None,
) -> Problem:  # fmt: skip
    """The chip that runs one picture through each network: least time, energy and area.

    Args:
        workload: one of `WORKLOADS`, or the layers of each network (`hasten.cost.chips.module_layers.conv_shapes`).
        deadline: seconds within which layers are assigned for the least energy; where none is within it, the soonest.
        chips: to choose from; NASAIC's two sub-accelerators with 4096 elements and 64 GB/s together when None.

    Raises:
        HastenError: an unknown workload, or no time.
    """
    if not deadline > 0:
        raise HastenError("the deadline is in seconds, above 0")
    if isinstance(workload, str):
        if workload not in WORKLOADS:
            raise HastenError(f"no workload {workload!r}: take one of {', '.join(WORKLOADS)}, or give layers")
        networks: Sequence[Sequence[ConvShape]] = [_layers(n) for n in WORKLOADS[workload]]
    else:
        networks = workload
    if not networks or not all(networks):
        raise HastenError("a chip needs at least one network, and each at least one layer")
    return chip_problem(networks, chips or ChipSpace(), deadline)
