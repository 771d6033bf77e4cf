"""Latency tables of devices that are not here: sums over parts of networks, each part priced once by a model.

Prices come from `hasten.cost.estimate` on any device of the catalogue, or from the dataflow equations of small arrays.
Tables made so are marked ``modelled``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from hasten.cost.chips.dataflow import CLOCK, SubAccelerator, layer_cost
from hasten.cost.chips.module_layers import grouped_shapes
from hasten.cost.latency.tables import Arch, LatencyTables
from hasten.cost.roofline import Schedule, estimate
from hasten.errors import HastenError
from hasten.hardware import Device
from hasten.workload import Workload, trace

# What a network is a sum of: a name by which equal parts are known, the part, and the shape of its input for one image.
Part = tuple[Hashable, Callable[[], nn.Module], tuple[int, ...]]


@dataclass(frozen=True)
class EstimatedDevice:
    """A device of the catalogue, or any other, priced by `hasten.cost.estimate`.

    Args:
        device: which.
        batch: images at once.
        schedule: ``eager`` or ``fused``.
    """

    device: Device
    batch: int = 1
    schedule: Schedule = "eager"

    @property
    def name(self) -> str:
        return f"{self.device.name}-b{self.batch}-{self.schedule}"


@dataclass(frozen=True)
class ArrayDevice:
    """An accelerator of one small array at 1 GHz, one image at a time, priced by `hasten.cost.chips.dataflow`.

    Convolutions and fully connected layers follow each other; what lies between them is part of them. A convolution
    with groups is as many small ones.

    Args:
        unit: the array.
    """

    unit: SubAccelerator

    @property
    def name(self) -> str:
        return f"{self.unit.dataflow}-{self.unit.pes}pe-{self.unit.bandwidth:g}GBs"

    def seconds(self, part: nn.Module, shape: tuple[int, ...]) -> float:
        """Seconds of a part for one image."""
        found = grouped_shapes(part, (1, *shape))
        cycles = sum(groups * layer_cost(layer, self.unit).cycles for layer, groups in found)
        return cycles / CLOCK


class _Prices:
    """Seconds of every part on every device, each asked once."""

    def __init__(self, devices: Sequence[EstimatedDevice | ArrayDevice]) -> None:
        self._devices = devices
        self._known: dict[Hashable, list[float]] = {}

    def of(self, part: Part) -> list[float]:
        key, make, shape = part
        if key not in self._known:
            module = make().eval()
            traced: dict[int, Workload] = {}
            row = []
            for device in self._devices:
                if isinstance(device, ArrayDevice):
                    row.append(device.seconds(module, shape))
                    continue
                if device.batch not in traced:
                    traced[device.batch] = trace(module, torch.zeros(device.batch, *shape))
                row.append(estimate(traced[device.batch], device.device, schedule=device.schedule).latency)
            self._known[key] = row
        return self._known[key]


def modelled_tables(
    parts: Callable[[Arch], Sequence[Part]],
    archs: Sequence[Arch],
    devices: Sequence[EstimatedDevice | ArrayDevice],
    progress: Callable[[float], None] = lambda share: None,
) -> LatencyTables:
    """Seconds of networks on devices that are modelled, by summing their parts.

    Args:
        parts: what a network is a sum of.
        archs: the networks.
        devices: with different names.
        progress: told the share done.

    Raises:
        HastenError: two devices of one name.
    """
    names = [d.name for d in devices]
    if len(set(names)) < len(names):
        raise HastenError("two modelled devices have the same name: leave one out")
    prices = _Prices(devices)
    rows = np.zeros((len(archs), len(devices)))
    for i, arch in enumerate(archs):
        for part in parts(arch):
            rows[i] += prices.of(part)
        progress((i + 1) / len(archs))
    seconds: Mapping[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = {n: rows[:, j] for j, n in enumerate(names)}
    return LatencyTables(tuple(archs), dict(seconds), dict.fromkeys(names, "modelled"))
