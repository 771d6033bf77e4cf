"""An FPGA's engine for language models: dense and 2:4 sparse products, low-bit numbers packed into DSP slices (AccLLM).

A DSP slice multiplies 27 by 18 bits: one 8-bit activation times several low-bit weights side by side. Prompts are read
in matrix-matrix mode, tokens decoded in matrix-vector mode; each operation takes as long as the slower of the engine
and the memory. arXiv 2505.03745, sections 4 and 5. Constants of energy are estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hasten.cost.chips.chip_cost import ChipCost
from hasten.errors import HastenError
from hasten.workload.decoder import DecoderSizes

# Products of one 8-bit number in a DSP slice, by the other's bits.
PRODUCTS = {2: 3, 4: 2, 8: 2, 16: 1}


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
    if operand >= 1 << 26 or not -128 <= activation < 128 or any(not 0 <= w < 1 << bits for w in weights):
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
class DspEngine:
    """An FPGA's slices and memory.

    Args:
        slices: DSP slices used by the engine.
        clock: Hz.
        bandwidth: B/s of the memory.
        efficiency: of that, what long reads get.
        static: W.
        per_slice: J of a slice for a cycle.
        per_byte: J of a byte from memory.
    """

    slices: int = 6144
    clock: float = 225e6
    bandwidth: float = 460e9
    efficiency: float = 0.85
    static: float = 14.0
    per_slice: float = 8e-12
    per_byte: float = 31e-12


@dataclass(frozen=True)
class Plan:
    """How a model is stored and multiplied.

    Args:
        weight_bits: of a kept weight; with ``sparse`` two of four are kept, each with a place of 2 bits.
        overhead_bits: of scales and zero points, a weight.
        cache_bits: of a number in the cache.
        window: tokens that stay visible; 0 for all.
        sparse: 2:4.
        head_bits: of the output head.
    """

    weight_bits: int = 16
    overhead_bits: float = 0.0
    cache_bits: int = 16
    window: int = 0
    sparse: bool = False
    head_bits: int = 16


LLAMA_2_7B = DecoderSizes("Llama-2-7B", layers=32, hidden=4096, heads=32, inner=11008, vocabulary=32000)
"""The model that AccLLM was evaluated on."""


@dataclass(frozen=True, kw_only=True)
class StepCost(ChipCost):
    """What a step (a prompt, or a token) costs: level ``memory``; bound by ``compute`` or ``memory``; no area.

    Args:
        compute, memory: seconds of the engine and of its memory, which overlap.
        products: slice cycles of the weights' products.
    """

    compute: float
    memory: float
    products: float


def weight_bytes(plan: Plan, sizes: DecoderSizes) -> float:
    """Bytes of all weights that a step reads."""
    # Half of the weights are kept, each with its place: as many bits as all of them would take without.
    stored = (plan.weight_bits + 2) / 2 if plan.sparse else plan.weight_bits
    return (
        sizes.layer_parameters * (stored + plan.overhead_bits) / 8
        + sizes.hidden * sizes.vocabulary * plan.head_bits / 8
    )


def packing(bits: int) -> int:
    """Products in a slice and cycle, see `PRODUCTS`."""
    return PRODUCTS[bits]


def without_packing(bits: int) -> int:
    """One product in a slice and cycle, however narrow: what `packing` is compared with."""
    return 1


def run(
    engine: DspEngine,
    plan: Plan,
    sizes: DecoderSizes,
    context: int,
    tokens: int = 1,
    products: Callable[[int], int] = packing,
) -> StepCost:
    """``tokens`` new tokens at once behind ``context``: 1 is a step of decoding, many a prompt.

    Args:
        engine, plan, sizes: what runs where.
        context: tokens in the cache.
        tokens: new ones.
        products: by the bits of the narrower number, how many a slice makes in a cycle.

    Raises:
        HastenError: no tokens.
    """
    if tokens < 1:
        raise HastenError("a step has at least one token")
    seen = min(context, plan.window) if plan.window else context
    reads = weight_bytes(plan, sizes) + 2 * sizes.layers * sizes.kv_width * seen * plan.cache_bits / 8
    macs = tokens * sizes.layer_parameters * (0.5 if plan.sparse else 1.0)
    attention = 2 * tokens * sizes.layers * sizes.query_width * (seen + (tokens / 2 if not plan.window else 0))
    head = sizes.hidden * sizes.vocabulary
    of_weights = macs / products(plan.weight_bits)
    cycles = (of_weights + attention / products(plan.cache_bits) + head / products(plan.head_bits)) / engine.slices
    compute, memory = cycles / engine.clock, reads / (engine.bandwidth * engine.efficiency)
    latency = max(compute, memory)
    return StepCost(
        latency=latency,
        energy=engine.static * latency + engine.per_slice * cycles * engine.slices + engine.per_byte * reads,
        bytes={"memory": reads},
        bound="compute" if compute > memory else "memory",
        compute=compute,
        memory=memory,
        products=of_weights,
    )


PLANS = {
    "dense fp16": Plan(),
    "2:4": Plan(sparse=True),
    "2:4, W2": Plan(2, 18 / 64, sparse=True, head_bits=8),
    "2:4, W2, KV4": Plan(2, 18 / 64, 4, sparse=True, head_bits=8),
    "2:4, W2, KV4, window 2048": Plan(2, 18 / 64, 4, 2048, True, 8),
}


def best_slices(engine: DspEngine, plan: Plan, sizes: DecoderSizes, context: int, choices: Sequence[int]) -> int:
    """The fewest slices that keep decoding bound by memory, else the most."""
    for slices in sorted(choices):
        if run(replace(engine, slices=slices), plan, sizes, context).bound == "memory":
            return slices
    return max(choices)
