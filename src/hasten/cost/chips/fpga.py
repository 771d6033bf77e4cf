"""An FPGA's engine for language models: dense and 2:4 sparse products, low-bit numbers packed into DSP slices (AccLLM).

A DSP slice multiplies 27 by 18 bits: one 8-bit activation times several low-bit weights side by side. Prompts are read
in matrix-matrix mode, a chunk of tokens at a time, tokens decoded in matrix-vector mode. Each operation (a layer's
weights, its attention, the output head) takes as long as the slower of the engine and the memory, and they follow each
other. arXiv 2505.03745, sections 4 and 5. Constants of energy and of logic are estimates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from hasten.cost.chips.chip_cost import ChipCost
from hasten.errors import HastenError
from hasten.workload.decoder import DecoderSizes

_OPERAND = 26  # bits of a DSP slice's wide operand beside its sign
_MOST_BITS = 16


def _fit(bits: int) -> int:
    """How many unsigned numbers of ``bits`` stand in the wide operand, each as far apart as its product with 8 bits."""
    return 1 if bits > 8 else 1 + (_OPERAND - bits) // (8 + bits)


# Products of one 8-bit number in a DSP slice, by the other's bits; above 8 bits both are wide, and there is one.
PRODUCTS = {bits: _fit(bits) for bits in range(1, _MOST_BITS + 1)}


def pack_products(activation: int, weights: Sequence[int], bits: int) -> list[int]:
    """The products of one signed 8-bit number and several unsigned ones of ``bits``, by a single multiplication.

    The weights stand apart in one operand, their products come out of one result; a negative lower product borrows
    from the one above it, which is put right.

    Args:
        activation: -128 to 127.
        weights: 0 to 2^bits - 1 each.
        bits: of a weight.

    Raises:
        HastenError: operands that do not fit 27 by 18 bits.
    """
    field = 8 + bits
    operand = sum(w << field * i for i, w in enumerate(weights))
    if operand >= 1 << _OPERAND or not -128 <= activation < 128 or any(not 0 <= w < 1 << bits for w in weights):
        raise HastenError(f"{len(weights)} weights of {bits} bits do not fit one DSP operand")
    whole = activation * operand
    products = []
    for _ in weights:
        low = whole & ((1 << field) - 1)
        if low >= 1 << (field - 1):
            low -= 1 << field
        products.append(low)
        whole = (whole - low) >> field
    return products


@dataclass(frozen=True)
class FpgaResources:
    """What an FPGA has, or what a design takes of it.

    Args:
        slices: DSP slices.
        luts: look-up tables.
        bram, uram: blocks of 36 and of 288 Kbit of memory on the chip.
        memory: bytes beside the chip.
    """

    slices: int
    luts: int
    bram: int
    uram: int
    memory: float

    def over(self, has: FpgaResources) -> tuple[str, ...]:
        """What is more than ``has`` has, in words; empty when all fits."""
        found = []
        for name in (f.name for f in fields(self)):
            mine, most = getattr(self, name), getattr(has, name)
            if mine > most:
                figures = f"{mine / 1e9:.1f} of {most / 1e9:.1f} GB" if name == "memory" else f"{mine} of {most}"
                found.append(f"{name} {figures}")
        return tuple(found)


U280 = FpgaResources(slices=9024, luts=1_303_680, bram=2016, uram=960, memory=8e9)
"""Xilinx Alveo U280, data sheet DS963: 8 GB of HBM2, 9 MB of block memory, 34.6 MB of UltraRAM."""

_BRAM_BYTES, _BRAM_BITS, _URAM_BYTES = 4608, 72, 36864


@dataclass(frozen=True)
class DspEngine:
    """An FPGA's slices and memory.

    Args:
        slices: DSP slices used by the engine.
        clock: Hz.
        bandwidth: B/s of the memory.
        efficiency: of that, what long reads get: about 0.8, see `EFFICIENCIES`.
        static: W.
        per_slice: J of a slice for a cycle.
        per_byte: J of a byte from memory.
        chunk: tokens of a prompt that go through the engine together; the weights are read again for the next.
        luts: that controllers, transfers and the units for softmax, norms and rotation take; an estimate.
        chip: what there is.

    Raises:
        HastenError: a size that is not above 0, or an efficiency above 1.
    """

    slices: int = 6144
    clock: float = 225e6
    bandwidth: float = 460e9
    efficiency: float = 0.8
    static: float = 14.0
    per_slice: float = 8e-12
    per_byte: float = 31e-12
    chunk: int = 512
    luts: int = 150_000
    chip: FpgaResources = U280

    def __post_init__(self) -> None:
        if min(self.slices, self.chunk) < 1 or min(self.clock, self.bandwidth, self.efficiency) <= 0:
            raise HastenError("an engine has slices, a clock, bandwidth and chunks above 0")
        if self.efficiency > 1:
            raise HastenError(f"reads get at most all of the bandwidth, not {self.efficiency:.0%} of it")


EFFICIENCIES = (0.75, 0.8, 0.85)
"""What "about 0.8" of the bandwidth may be: an answer that one of them gives and another does not is not known."""


@dataclass(frozen=True)
class Plan:
    """How a model is stored and multiplied.

    Args:
        weight_bits: of a kept weight; with ``sparse`` two of four are kept, each with a place of 2 bits. May be a mean
            of several widths: it is stored so, and multiplied with whole bits.
        overhead_bits: of scales and zero points, a weight.
        cache_bits: of a number in the cache.
        window: tokens that stay visible, sinks and the present one among them; 0 for all.
        sparse: 2:4.
        head_bits: of the output head and of the embedding.

    Raises:
        HastenError: bits that are not above 0 and at most 16, or a negative overhead or window.
    """

    weight_bits: float = 16
    overhead_bits: float = 0.0
    cache_bits: float = 16
    window: int = 0
    sparse: bool = False
    head_bits: float = 16

    def __post_init__(self) -> None:
        for bits in (self.weight_bits, self.cache_bits, self.head_bits):
            packing(bits)
        if not 0 <= self.overhead_bits < math.inf or self.window < 0:
            raise HastenError("a plan has no fewer than 0 bits of overhead, and no fewer than 0 tokens in its window")


LLAMA_2_7B = DecoderSizes("Llama-2-7B", layers=32, hidden=4096, heads=32, inner=11008, vocabulary=32000)
"""The model that AccLLM was evaluated on."""


@dataclass(frozen=True, kw_only=True)
class StepCost(ChipCost):
    """What a step (a prompt, or a token) costs: level ``memory``; no area.

    Bound by ``compute`` or ``memory``: whichever the operations take longer with that wait for it.

    Args:
        compute, memory: seconds of the engine and of its memory, each if it never waited.
        products: slice cycles of the weights' products.
        needs: what the design takes of the chip.
        misfits: what the chip has too little of, in words; empty when the design fits. Its times are then those of a
            larger chip.
    """

    compute: float
    memory: float
    products: float
    needs: FpgaResources
    misfits: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the chip has room for the design, the weights and the cache."""
        return not self.misfits


def _layer_bits(plan: Plan) -> float:
    """Stored bits of a weight of a layer."""
    # Half of the weights are kept, each with its place: as many bits as all of them would take without.
    return ((plan.weight_bits + 2) / 2 if plan.sparse else plan.weight_bits) + plan.overhead_bits


def weight_bytes(plan: Plan, sizes: DecoderSizes) -> float:
    """Bytes of all weights that a step of one token reads."""
    return (sizes.layer_parameters * _layer_bits(plan) + sizes.hidden * sizes.vocabulary * plan.head_bits) / 8


def packing(bits: float) -> int:
    """Products in a slice and cycle with numbers of ``bits``, see `PRODUCTS`; a part of a bit takes a whole one.

    Raises:
        HastenError: bits that are not above 0 and at most 16.
    """
    if not 0 < bits <= _MOST_BITS:
        raise HastenError(f"the engine multiplies numbers of up to {_MOST_BITS} bits, not of {bits:g}")
    return PRODUCTS[math.ceil(bits)]


def without_packing(bits: float) -> int:
    """One product in a slice and cycle, however narrow: what `packing` is compared with."""
    return 1


def _visible(first: int, count: int, window: int) -> int:
    """Tokens that ``count`` tokens from position ``first`` on see, itself each, summed."""
    if not window:
        return count * first + count * (count + 1) // 2
    growing = min(count, max(0, window - first))  # those that see fewer than the window
    return growing * first + growing * (growing + 1) // 2 + (count - growing) * window


@dataclass(frozen=True)
class EngineOperation:
    """A product of the engine.

    Args:
        name: ``weights`` or ``attention`` of a layer, or ``head``.
        times: how often a step makes it, one after the other.
        cycles: slice cycles of one, over all slices.
        bytes: of one, from and to memory.
    """

    name: str
    times: int
    cycles: float
    bytes: float


def operations(
    engine: DspEngine,
    plan: Plan,
    sizes: DecoderSizes,
    context: int,
    tokens: int = 1,
    products: Callable[[float], int] = packing,
) -> list[EngineOperation]:
    """What a step does, in order, as for `run`: a prompt's chunks, and of each the layers' weights and attention.

    A chunk's own keys and values are on the chip while it is read, and are written to memory; those before it are read
    from there once for all its tokens.

    Raises:
        HastenError: no tokens, or a negative context.
    """
    if tokens < 1 or context < 0:
        raise HastenError("a step has at least one token, behind 0 or more")
    layers = sizes.layers
    token_bytes = 2 * sizes.kv_width * plan.cache_bits / 8
    kept = sizes.layer_parameters / layers * (0.5 if plan.sparse else 1.0)
    stored = sizes.layer_parameters / layers * _layer_bits(plan) / 8
    found = []
    for done in range(0, tokens, engine.chunk):
        count, before = min(engine.chunk, tokens - done), context + done
        seen = 2 * sizes.query_width * _visible(before, count, plan.window)
        read = min(before, plan.window - 1) if plan.window else before
        found += [
            EngineOperation("weights", layers, count * kept / products(plan.weight_bits), stored),
            EngineOperation("attention", layers, seen / products(plan.cache_bits), (read + count) * token_bytes),
        ]
    head = sizes.hidden * sizes.vocabulary
    return [*found, EngineOperation("head", 1, head / products(plan.head_bits), head * plan.head_bits / 8)]


def needs(engine: DspEngine, plan: Plan, sizes: DecoderSizes, context: int, tokens: int = 1) -> FpgaResources:
    """What a design takes of a chip to run a model; logic and buffers are estimates.

    Memory holds all weights, those of experts that a token does not use too, the embedding, and the cache. A slice's
    look-up tables put the products apart, add each up in 24 bits, and with ``sparse`` select its operand from four.
    Block memory takes the weights as fast as they come, twice, so that one half fills while the other is used. A
    chunk's activations and a tile of a head's keys and values, twice as well, lie in UltraRAM and, when that is full,
    in block memory.
    """
    embeddings = (1 if sizes.tied else 2) * sizes.vocabulary * sizes.hidden
    in_layers = (sizes.total_parameters - embeddings) * _layer_bits(plan) / 8
    held = context + tokens
    held = min(held, plan.window) if plan.window else held
    cache = 2 * sizes.layers * sizes.kv_width * held * plan.cache_bits / 8
    bits = math.ceil(plan.weight_bits)
    each = packing(bits) * (8 + bits + 24) + (8 if plan.sparse else 0)
    count, tile = min(tokens, engine.chunk), min(held, engine.chunk)
    wide = max(sizes.query_width + 2 * sizes.kv_width, 2 * max(sizes.inner, sizes.expert_inner))
    buffers = count * (3 * sizes.hidden + wide)  # 16-bit residuals, 8-bit inputs and what is made of them
    buffers += math.ceil(2 * tile * 2 * sizes.head_dim * plan.cache_bits / 8) + 2 * count * tile
    uram = min(engine.chip.uram, math.ceil(buffers / _URAM_BYTES))
    rest = max(0, buffers - uram * _URAM_BYTES)
    feeding = 2 * math.ceil(engine.bandwidth * 8 / engine.clock / _BRAM_BITS)
    return FpgaResources(
        slices=engine.slices,
        luts=engine.luts + engine.slices * each,
        bram=feeding + math.ceil(rest / _BRAM_BYTES),
        uram=uram,
        memory=in_layers + embeddings * plan.head_bits / 8 + cache,
    )


def run(
    engine: DspEngine,
    plan: Plan,
    sizes: DecoderSizes,
    context: int,
    tokens: int = 1,
    products: Callable[[float], int] = packing,
) -> StepCost:
    """``tokens`` new tokens at once behind ``context``: 1 is a step of decoding, many a prompt.

    Args:
        engine, plan, sizes: what runs where.
        context: tokens in the cache.
        tokens: new ones.
        products: by the bits of the narrower number, how many a slice makes in a cycle.

    Returns:
        its cost; ``misfits`` says what the chip has no room for.

    Raises:
        HastenError: no tokens, or a negative context.
    """
    latency = waited = 0.0
    cycles = moved = weights = 0.0
    for o in operations(engine, plan, sizes, context, tokens, products):
        compute = o.cycles / engine.slices / engine.clock
        memory = o.bytes / (engine.bandwidth * engine.efficiency)
        latency += o.times * max(compute, memory)
        waited += o.times * memory if memory >= compute else 0.0
        cycles, moved = cycles + o.times * o.cycles, moved + o.times * o.bytes
        weights += o.times * o.cycles if o.name == "weights" else 0.0
    needed = needs(engine, plan, sizes, context, tokens)
    return StepCost(
        latency=latency,
        energy=engine.static * latency + engine.per_slice * cycles + engine.per_byte * moved,
        bytes={"memory": moved},
        bound="memory" if waited >= latency / 2 else "compute",
        compute=cycles / engine.slices / engine.clock,
        memory=moved / (engine.bandwidth * engine.efficiency),
        products=weights,
        needs=needed,
        misfits=needed.over(engine.chip),
    )


PLANS = {
    "dense fp16": Plan(),
    "2:4": Plan(sparse=True),
    "2:4, W2": Plan(2, 18 / 64, sparse=True, head_bits=8),
    "2:4, W2, KV4": Plan(2, 18 / 64, 4, sparse=True, head_bits=8),
    "2:4, W2, KV4, window 2048": Plan(2, 18 / 64, 4, 2048, True, 8),
}


def best_slices(engine: DspEngine, plan: Plan, sizes: DecoderSizes, context: int, choices: Sequence[int]) -> int:
    """The fewest slices that keep decoding bound by memory, else the most that fit.

    Raises:
        HastenError: no choice fits the chip.
    """
    most = None
    for slices in sorted(choices):
        cost = run(replace(engine, slices=slices), plan, sizes, context)
        if cost.fits:
            most = slices
            if cost.bound == "memory":
                break
    if most is None:
        listed = ", ".join(map(str, choices))
        raise HastenError(f"no design of {listed} slices fits ({'; '.join(cost.misfits)}): give fewer, or another plan")
    return most


def joules_a_token(
    engine: DspEngine,
    plan: Plan,
    sizes: DecoderSizes,
    context: int,
    *,
    spread: float = 0.3,
    efficiencies: Sequence[float] = EFFICIENCIES,
) -> tuple[float, float]:
    """The least and the most energy of a token where the estimated constants are off by ``spread`` either way."""
    found = []
    for a, b, c in itertools.product((1 - spread, 1 + spread), repeat=3):
        for efficiency in efficiencies:
            other = replace(
                engine,
                efficiency=efficiency,
                static=engine.static * a,
                per_slice=engine.per_slice * b,
                per_byte=engine.per_byte * c,
            )
            found.append(run(other, plan, sizes, context).energy)
    return min(found), max(found)
