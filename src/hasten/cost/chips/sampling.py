"""Deformable convolutions on an engine with a line buffer or a cache, driven by the reads of real offsets.

Where taps may lie anywhere each neighbour of each tap is a request to memory, and a cache helps as far as the very
addresses let it; where they stay within B places a line buffer of 2 B + 3 rows has them all, and every byte comes from
memory once. A 3x3 engine takes places one after the other, and the channels of a place in rounds of as many as it has
lanes for.

    latency = prologue + max(multiply, stream, read)        from a line buffer
    latency = prologue + max(multiply, stream, request)     from memory, through a cache or past it

The prologue loads weights and the first rows. With offsets of 0 any convolution looks regular: traces are those of
trained networks (`hasten.nn.DeformableConv2d.trace_offsets`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.cost.chips.chip_cost import ChipCost
from hasten.errors import HastenError
from hasten.hardware.chips.sampling_engine import MemoryWay, SamplingEngine
from hasten.kernels.deform_conv import FORMS, TAPS, corners_of, shares_of
from hasten.workload.einsum import Cascade, Op
from hasten.workload.memories import ManagedCache

KINDS = ("plain", *FORMS)
_SAMPLING = "hasten::deform_conv2d"
# Multiplications that a sample between places takes at least.
_INTERPOLATION = 6


@dataclass(frozen=True)
class SampledLayer:
    """A 3x3 convolution at stride 1.

    Args:
        channels, outputs: equal if ``depthwise``.
        height, width: of the map.
        kind: ``plain``, or one of `hasten.kernels.deform_conv.FORMS`.
        depthwise: whether each channel has a kernel of its own.
        bound: how far taps are moved at most, in places; of ``bound`` and ``square``.
        predicted: the side of the kernel that predicts offsets.

    Raises:
        HastenError: an unknown kind, or a depthwise one that changes the number of channels.
    """

    channels: int
    outputs: int
    height: int
    width: int
    kind: str = "plain"
    depthwise: bool = False
    bound: int = 8
    predicted: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise HastenError(f"a layer's taps are {', '.join(KINDS)}, not {self.kind!r:.40}")
        if min(self.channels, self.outputs, self.height, self.width) < 1 or self.bound < 0:
            raise HastenError("a layer has a channel and a place at least, and a bound from 0")
        if self.depthwise and self.channels != self.outputs:
            raise HastenError(f"a depthwise layer keeps its {self.channels} channels: give {self.channels} outputs")

    @property
    def places(self) -> int:
        return self.height * self.width

    @property
    def offsets(self) -> int:
        """Numbers that are predicted for a place."""
        return {"plain": 0, "square": 1}.get(self.kind, 2 * TAPS)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the taps."""
        return self.places * TAPS * self.channels * (1 if self.depthwise else self.outputs)

    @property
    def offset_macs(self) -> int:
        """Multiply-accumulates of the convolution that predicts offsets."""
        return self.places * self.channels * self.offsets * self.predicted**2

    @property
    def weights(self) -> int:
        """Of the taps."""
        return TAPS * self.channels * (1 if self.depthwise else self.outputs)

    @property
    def offset_weights(self) -> int:
        """Of the convolution that predicts offsets, its bias included."""
        return self.offsets * (self.channels * self.predicted**2 + 1)

    @property
    def rows(self) -> int:
        """Rows of the map that a line buffer needs to have every neighbour; 0 where no number of them is enough."""
        return {"plain": 3, "original": 0}.get(self.kind, 2 * self.bound + 3)


@dataclass(frozen=True, kw_only=True)
class SampledCost(ChipCost):
    """What a layer costs on a sampling engine: levels ``buffer`` (or the cache) and ``memory``.

    Bound by ``multiply``, ``stream`` (tensors from and to memory), ``read`` (of the line buffer) or ``request`` (of
    single neighbours).

    Args:
        cycles: of multiplying, in the engine's clock.
        reads: neighbours of all taps and places.
        requests: that they are, a round of channels each; 0 with a line buffer.
        misses: lines that the cache had to fetch.
        buffer_size: bytes of the rows that the line buffer holds, of a round of channels.
        interpolations: multiplications for samples between places.
    """

    cycles: int
    reads: int
    requests: int
    misses: int
    buffer_size: int
    interpolations: int


def reads_of(offsets: Tensor) -> tuple[Tensor, int]:
    """The places that a layer reads, by place, tap and neighbour, (reads,); and how many samples lie between places.

    A neighbour that counts nothing is not read, nor one outside of the map.

    Args:
        offsets: (18, height, width), down and across of each tap, in places.
    """
    places, inside, down, across = corners_of(offsets[None].float(), 3)
    read = shares_of(inside, down, across) > 0
    # (neighbour, map, tap, height, width) -> (place, tap, neighbour)
    order = (3, 4, 2, 0, 1)
    found = places.permute(order).reshape(-1)[read.permute(order).reshape(-1)]
    return found, int((read.sum(0) > 1).sum())


def line_misses(offsets: Tensor, rows: int) -> int:
    """Reads that a line buffer of so many rows has not, for one map: the window that misses least of all.

    Rows arrive from top to bottom; while a row of the map is convolved the buffer holds the last ``rows`` that came, up
    to some number of rows ahead.

    Args:
        offsets: (18, height, width).
        rows: from 1.
    """
    height, width = offsets.shape[1:]
    places, inside, down, across = corners_of(offsets[None].float(), 3)
    read = shares_of(inside, down, across) > 0
    away = (places // width - torch.arange(height)[:, None])[read]
    if not len(away):
        return 0
    least = range(int(away.min()), int(away.max()) + 1)
    return min(int(((away < first) | (away >= first + rows)).sum()) for first in least)


def plain_offsets(layer: SampledLayer) -> Tensor:
    """Those of taps that stay: (18, height, width) zeros."""
    return torch.zeros(2 * TAPS, layer.height, layer.width)


def sampled_cost(
    layer: SampledLayer, engine: SamplingEngine, offsets: Tensor | None = None, *, cache: int | None = None
) -> SampledCost:
    """Cost of a layer whose offsets are these.

    Args:
        engine: with lanes for such a layer.
        offsets: (18, height, width), of one map; needed but for ``plain`` taps.
        cache: bytes between an ``original`` layer and memory (least recently used goes first), or the way that other
            layers' tensors take; 0 for none, the engine's when None.

    Raises:
        HastenError: no offsets or of another map, no lanes for such a layer, or rows that its line buffer has not.
    """
    given = plain_offsets(layer) if offsets is None and layer.kind == "plain" else offsets
    if given is None or tuple(given.shape) != (2 * TAPS, layer.height, layer.width):
        raise HastenError(
            f"a {layer.kind} layer is priced by its offsets: give them as (18, {layer.height}, {layer.width})"
        )
    lanes = (engine.depthwise, 1) if layer.depthwise else engine.dense
    if not lanes[0]:
        raise HastenError(f"{engine.name} has no lanes for {'depthwise' if layer.depthwise else 'dense'} layers")
    if layer.kind != "original" and layer.rows > engine.rows:
        raise HastenError(f"a layer of bound {layer.bound} needs {layer.rows} rows, {engine.name} has {engine.rows}")
    size = engine.cache_bytes if cache is None else cache
    way = engine.cache if size else engine.memory
    places, between = reads_of(given)
    rounds = -(-layer.channels // lanes[0])
    cycles = layer.places * rounds * (1 if layer.depthwise else -(-layer.outputs // lanes[1]))
    byte = engine.activation_bits / 8
    row = layer.width * layer.channels * byte
    streamed = layer.places * (layer.outputs * byte + layer.offsets)
    weights = layer.weights * engine.weight_bits / 8
    requests = misses = 0
    if layer.kind == "original":
        prologue, requests = weights / way.bandwidth, len(places) * rounds
        misses = _misses(places, layer.channels * byte, size, engine.line) if size else 0
        reading, reader = _requesting(requests, misses, way, engine.clock), "request"
        memory = streamed + weights + (misses * engine.line if size else requests * max(lanes[0] * byte, engine.beat))
        buffer = requests * lanes[0] * byte if size else 0.0
    else:
        ahead = (layer.rows + 1) // 2
        prologue = (weights + ahead * row) / way.bandwidth
        ports = {"plain": TAPS, "square": engine.square_ports}.get(layer.kind, engine.ports)
        reading, reader = -(-len(places) * rounds // ports) / engine.clock, "read"
        streamed += layer.height * row
        memory, buffer = streamed + weights, len(places) * layer.channels * byte
    parts = {"multiply": cycles / engine.clock, "stream": streamed / way.bandwidth, reader: reading}
    bound = max(parts, key=lambda p: parts[p])
    energy = layer.macs * engine.mac_energy + buffer * engine.buffer_energy + memory * engine.memory_energy
    return SampledCost(
        latency=prologue + parts[bound], energy=energy, bytes={"buffer": buffer, "memory": memory}, bound=bound,
        cycles=cycles, reads=len(places), requests=requests, misses=misses,
        buffer_size=int(layer.rows * layer.width * lanes[0] * byte),
        interpolations=_INTERPOLATION * between * layer.channels,
    )  # fmt: skip


def _requesting(requests: int, misses: int, way: MemoryWay, clock: float) -> float:
    return requests * (way.cycles / clock + way.seconds) + misses * way.miss


def _misses(places: Tensor, size: float, cache: int, line: int) -> int:
    """Lines that a cache of ``cache`` bytes has not, where each place is ``size`` bytes of channels side by side."""
    held = ManagedCache(cache - cache % line)
    if held.capacity < line:
        raise HastenError(f"a cache of {cache} bytes holds no line of {line}: make it larger, or 0 for none")
    lines = max(1, -(-int(size) // line))
    for place in places.tolist():
        for part in range(place * lines, (place + 1) * lines):
            held.use(part, line)
    return held.misses


def network_cost(cascade: Cascade, engine: SamplingEngine) -> ChipCost:
    """Cost of a network's convolutions one after the other, maps through memory, the first on the processor.

    A layer's taps are served by the line buffer at the engine's rate, as offsets form squares. What a processor does to
    shuffle channels and enlarge maps is not in it. Level ``memory``; bound by ``multiply``, ``stream`` or
    ``processor``, whichever takes the most of the time.

    Args:
        cascade: of one image, traced.

    Raises:
        HastenError: an engine without processor, no convolution, or a layer that the engine has no lanes for.
    """
    layers = [e for e in cascade.einsums if e.op in (Op.CONV, Op.MATMUL)]
    if engine.processor is None or not engine.pointwise[0] or not engine.depthwise or not layers:
        raise HastenError(f"{engine.name} runs no whole network: it lacks 1x1 lanes, depthwise ones or a processor")
    spent = {"processor": layers[0].flops / 2 / engine.processor, "multiply": 0.0, "stream": 0.0}
    moved = energy = 0.0
    for layer in layers[1:]:
        sizes = layer.sizes
        taps, places = sizes.get("r0", 0) * sizes.get("r1", 0), sizes.get("o0", 0) * sizes.get("o1", 0)
        groups, inputs, outputs = (sizes.get(rank, 1) for rank in "gck")
        if taps == 1 and groups == 1:
            steps = -(-inputs // engine.pointwise[0]) * -(-outputs // engine.pointwise[1])
        elif taps == TAPS and inputs == outputs == 1:
            steps = -(-groups // engine.depthwise)
        else:
            raise HastenError(
                f"{engine.name} has no lanes for {layer.name}: it runs 1x1 and depthwise 3x3 convolutions"
            )
        # Samples of taps come from the line buffer, which reads the map once.
        read = places * groups if layer.source == _SAMPLING else layer.touched(layer.inputs[0])
        size = (read + places * groups * outputs) * engine.activation_bits / 8
        parts = {"multiply": places * steps / engine.clock, "stream": size / engine.memory.bandwidth}
        longest = max(parts, key=lambda p: parts[p])
        spent[longest] += parts[longest]
        moved += size
        energy += layer.flops / 2 * engine.mac_energy + size * engine.memory_energy
    return ChipCost(
        latency=sum(spent.values()), energy=energy, bytes={"memory": moved}, bound=max(spent, key=lambda p: spent[p])
    )
