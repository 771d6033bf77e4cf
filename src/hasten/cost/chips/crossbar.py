"""Linear layers on crossbar tiles: reads, conversions and bytes, in seconds, joules and square metres.

Weights stay where they were programmed. A row of inputs is driven bit by bit; at every read all columns of a layer's
tiles settle at once, and the converters of each tile go through its columns. Layers follow each other, and so do rows
of inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hasten.cost.chips.chip_cost import ChipCost
from hasten.errors import HastenError
from hasten.hardware.chips.crossbar import CrossbarChip
from hasten.workload.einsum import Role, Workload

# Bytes of a sum that leaves a layer.
_SUM = 2
ANALOG = "hasten::analog_linear"


@dataclass(frozen=True)
class ReadLayer:
    """A linear layer as crossbars see it.

    Args:
        inputs, outputs: of the layer.
        rows: of inputs that go through it.
        held: whether its weights take tiles; those of a layer that is read again are there already.
        name, phase: of the layer, and of what runs it, for people.
    """

    inputs: int
    outputs: int
    rows: float
    held: bool = True
    name: str = ""
    phase: str = ""


@dataclass(frozen=True, kw_only=True)
class CrossbarCost(ChipCost):
    """What linear layers cost on crossbars: level ``buffer``; bound by ``arrays``, ``converters`` or ``buffer``.

    Args:
        tiles: that hold weights; the area is theirs.
        conversions: of currents to numbers.
    """

    tiles: int
    conversions: float


def crossbar_cost(
    layers: Sequence[ReadLayer], chip: CrossbarChip, *, input_bits: int = 8, active: float = 1.0
) -> CrossbarCost:
    """Cost of layers that hold their weights on a chip.

    Args:
        layers: read one after the other.
        input_bits: reads of a row of inputs; 1 for spikes.
        active: share of the inputs' bits that are 1: their rows are driven.

    Raises:
        HastenError: the layers need more tiles than the chip has, or bits or a share that no input has.
    """
    if input_bits < 1 or not 0 <= active <= 1:
        raise HastenError(f"inputs have at least 1 bit and a share of ones from 0 to 1, not {input_bits} and {active}")
    tiles = sum(_tiles(layer, chip) for layer in layers if layer.held)
    if tiles > chip.tiles:
        raise HastenError(
            f"the layers need {tiles} tiles, {chip.name} has {chip.tiles}: take fewer layers or another chip"
        )
    seconds = dict.fromkeys(("arrays", "converters", "buffer"), 0.0)
    energy = moved = conversions = latency = 0.0
    for layer in layers:
        reads = layer.rows * input_bits
        down, across = -(-layer.inputs // chip.rows), -(-layer.outputs // chip.columns)
        converted = reads * down * layer.outputs
        bytes_ = layer.rows * (layer.inputs * input_bits / 8 + layer.outputs * _SUM)
        turns = math.ceil(min(layer.outputs, chip.columns) / chip.adcs)
        each = {
            "arrays": reads * chip.read, "converters": reads * turns / chip.adc_rate,
            "buffer": bytes_ / chip.buffer_rate,
        }  # fmt: skip
        longest = max(each, key=lambda part: each[part])
        seconds[longest] += each[longest]
        latency += each[longest]
        driven = active * reads * layer.inputs
        energy += driven * (layer.outputs * chip.cell_energy + across * chip.row_energy)
        energy += converted * (chip.adc_energy + chip.sum_energy) + bytes_ * chip.buffer_energy
        moved, conversions = moved + bytes_, conversions + converted
    return CrossbarCost(
        latency=latency,
        energy=energy,
        bytes={"buffer": moved},
        area=tiles * (chip.rows * chip.columns * chip.cell_area + chip.tile_area),
        bound=max(seconds, key=lambda part: seconds[part]),
        tiles=tiles,
        conversions=conversions,
    )


def _tiles(layer: ReadLayer, chip: CrossbarChip) -> int:
    return -(-layer.inputs // chip.rows) * -(-layer.outputs // chip.columns)


def analog_layers(workload: Workload) -> list[ReadLayer]:
    """The linear layers of a description that lie on analogue arrays, in the order they run, of all its phases."""
    found, seen = [], set()
    for phase in workload.phases:
        tensors = phase.cascade.tensors
        for e in phase.cascade.einsums:
            if e.source == ANALOG:
                cells = next(a.tensor for a in e.inputs if tensors[a.tensor].role is Role.WEIGHT)
                rows, name = e.sizes["m"] * phase.repeats, cells.rpartition(".")[0]
                found.append(ReadLayer(e.sizes["k"], e.sizes["n"], rows, name not in seen, name, phase.name))
                seen.add(name)
    return found
