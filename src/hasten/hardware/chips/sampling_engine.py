"""Engines for convolutions whose taps are moved: multipliers, a line buffer, the ways to memory, as data files."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hasten.hardware.chips.data_folder import DataFolder


class MemoryWay(BaseModel):
    """A way to memory: tensors that stream through it in order, and single requests.

    Args:
        bandwidth: B/s of what streams.
        cycles, seconds: of the engine's clock, and beside it, from one request to the next where they jump about.
        miss: s that a request for a line takes longer where a cache in between does not hold it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    bandwidth: PositiveFloat
    cycles: NonNegativeFloat = 0.0
    seconds: NonNegativeFloat = 0.0
    miss: NonNegativeFloat = 0.0


class SamplingEngine(BaseModel):
    """An engine on an FPGA that convolves a map whose taps are moved at each place.

    Args:
        name, title: short, and for people.
        dense: inputs and outputs of a dense 3x3 convolution that it multiplies in a cycle, nine taps each; 0 for none.
        depthwise: channels of a depthwise 3x3 convolution that it multiplies in a cycle, nine taps each; 0 for none.
        pointwise: inputs and outputs of a 1x1 convolution that it multiplies in a cycle; 0, 0 for none.
        clock: Hz.
        rows: of the input that the line buffer holds; 0 for no buffer.
        ports: reads of a cycle that the line buffer serves where the taps of a place may lie anywhere in it.
        square_ports: the same where they form a square, three on each of three rows.
        weight_bits, activation_bits: of numbers.
        memory: the way past the cache.
        cache: the way through it.
        cache_bytes, line: of the cache, and what it fetches at once.
        beat: bytes that the least request moves.
        mac_energy, buffer_energy, memory_energy: J of a multiply-accumulate, of a byte from the line buffer or the
            cache, and of a byte from memory.
        processor: multiply-accumulates a second of the processor beside it, which runs what the engine cannot.
        source: where the figures are from.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    name: str
    title: str
    dense: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    depthwise: NonNegativeInt = 0
    pointwise: tuple[NonNegativeInt, NonNegativeInt] = (0, 0)
    clock: PositiveFloat
    rows: NonNegativeInt
    ports: PositiveInt = 1
    square_ports: PositiveInt = 3
    weight_bits: PositiveInt
    activation_bits: PositiveInt
    memory: MemoryWay
    cache: MemoryWay
    cache_bytes: NonNegativeInt
    line: PositiveInt = 64
    beat: PositiveInt = 16
    mac_energy: NonNegativeFloat = 0.0
    buffer_energy: NonNegativeFloat = 0.0
    memory_energy: NonNegativeFloat = 0.0
    processor: PositiveFloat | None = None
    source: str = ""


sampling_engines, sampling_engine = DataFolder("engines", SamplingEngine, "sampling engine").readers()
"""Names of the engines that are here; an engine by name, or from a TOML file of the same form (`DataFolder.read`)."""
