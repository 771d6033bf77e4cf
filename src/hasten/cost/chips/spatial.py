"""Attention on a spatial array: which part computes what, what overlaps, what it costs (FuseMax, arXiv 2406.10491).

A binding says of each Einsum of a cascade whether the grid or the vector lanes compute it, in stages: within a stage
grid and lanes work at the same time, on different tiles of the software pipeline; stages follow each other. How long
an Einsum keeps its part busy follows from its points and from the operations of its map and reduction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from hasten.cost.chips.chip_cost import ChipCost
from hasten.errors import HastenError
from hasten.hardware.chips.spatial import FLAT, FUSEMAX, OPERATIONS, SpatialArray
from hasten.workload.attention import attention
from hasten.workload.einsum import Cascade, Einsum, Op

# The primitive operations of a map or a reduction that an element takes one after the other.
_MAPS = {"sub-exp": ("sub", "exp"), "max": ("max",), "div": ("div",), "times": ("times",), "mul": ("times",),
         "add": ("add",), "sub": ("sub",), "identity": ()}  # fmt: skip
_REDUCTIONS = {"sum": ("add",), "max": ("max",)}


def operations(einsum: Einsum) -> tuple[str, ...]:
    """Primitive operations at each point of an Einsum; a product that is summed is one multiply-accumulate.

    Raises:
        HastenError: an operator without known operations.
    """
    if einsum.op is Op.MATMUL:
        return ("mac",)
    if not einsum.inputs:
        return ()  # what a running value begins with
    if einsum.map not in _MAPS or (einsum.reduce or "sum") not in _REDUCTIONS:
        raise HastenError(f"no operations are known for {einsum.map!r} with {einsum.reduce!r}: use another cascade")
    return (*_MAPS[einsum.map], *(_REDUCTIONS[einsum.reduce] if einsum.reduce else ()))


@dataclass(frozen=True)
class Stage:
    """What runs side by side.

    Args:
        grid, lanes: names of the tensors computed there.
        stall: cycles that the grid waits for each of its tiles, times its side.
    """

    grid: tuple[str, ...] = ()
    lanes: tuple[str, ...] = ()
    stall: int = 0


@dataclass(frozen=True)
class AttentionAccelerator:
    """A chip with the way attention runs on it.

    Args:
        name: for people.
        chip: the array.
        cascade: kind of `hasten.workload.attention`.
        stages: the binding and its pipeline.
        fused: what is kept on chip: ``online`` (the tile alone), ``rows`` (whole rows of scores), ``nothing``.
        serial_exp: whether a subtraction before an exponential takes a cycle of its own.
        accesses: numbers that lanes and grid pass each other through the buffer for each score.
    """

    name: str
    chip: SpatialArray
    cascade: str
    stages: tuple[Stage, ...]
    fused: str = "online"
    serial_exp: bool = True
    accesses: int = 0


_ROWS = (Stage(("QK", "AV"), ("GM", "SN", "SD", "A")),)
_ONE = ("RM", "PRM", "SPD", "RD", "SPNV", "RNV", "AV")

DESIGNS = {
    "unfused": AttentionAccelerator(
        "unfused", FLAT, "three-pass", _ROWS, fused="nothing", serial_exp=False, accesses=8
    ),
    "flat": AttentionAccelerator("flat", FLAT, "three-pass", _ROWS, fused="rows", serial_exp=False, accesses=8),
    "cascade": AttentionAccelerator(
        "cascade", FLAT, "one-pass", (Stage(("BQK", "SLNV"), ("LM", "SLN", "SLD", *_ONE)),), accesses=6
    ),
    "architecture": AttentionAccelerator(
        "architecture",
        FUSEMAX,
        "one-pass",
        (
            Stage(("BQK", "LM"), ("RD", "AV")),
            Stage(stall=1),
            Stage((), ("RM",)),
            Stage(("SLN", "SLD"), ("PRM", "SPD")),
            Stage(("SLNV",), ("SPNV", "RNV")),
        ),
    ),
    "fusemax": AttentionAccelerator(
        "fusemax",
        FUSEMAX,
        "one-pass",
        (
            Stage(("BQK", "LM"), ("RD", "RNV", "AV")),
            Stage((), ("RM",)),
            Stage(("SLN", "SLD"), ("PRM", "SPD")),
            Stage(("SLNV",), ("SPNV",)),
        ),
    ),
}
"""Attention left unfused, FLAT's, and FuseMax's in three steps: its cascade, its array, its pipeline."""


@dataclass(frozen=True, kw_only=True)
class SpatialCost(ChipCost):
    """What attention of all heads, or linear layers, cost: level ``memory``; bound by the part
    that takes most of the time: ``grid``, ``lanes`` or ``memory``.

    Args:
        cycles: of the array, were the memory no limit.
        utilization: share of the grid's cycles at work.
        lanes: the same of the vector lanes.
    """

    cycles: float
    utilization: float
    lanes: float


@dataclass(frozen=True)
class Transformer:
    """Sizes of a model of attention and linear layers: a batch of sequences, heads, channels, hidden channels."""

    name: str
    heads: int
    channels: int
    width: int
    hidden: int
    batch: int = 64

    @classmethod
    def of(cls, config: object, batch: int = 64) -> Transformer:
        """From a transformers configuration: an object, or its JSON as a mapping.

        Raises:
            HastenError: it has no heads or no width, or a size that is not a whole number above 0.
        """
        given: Mapping[str, object] = config if isinstance(config, Mapping) else vars(config)
        # An object has its type by its class, not among its own values.
        name = given.get("model_type") or getattr(config, "model_type", None) or "model"

        def size(*names: str) -> int | None:
            found = next((given[n] for n in names if given.get(n) is not None), None)
            if found is not None and (isinstance(found, bool) or not isinstance(found, int) or found < 1):
                raise HastenError(f"the configuration's {names[0]} is {found!r:.20}: it must be a whole number above 0")
            return found

        heads = size("num_attention_heads", "num_heads", "n_heads", "n_head")
        width = size("hidden_size", "d_model", "n_embd", "emb_dim")
        if heads is None or width is None:
            raise HastenError("the configuration has no attention: give num_attention_heads and hidden_size")
        channels = size("head_dim", "d_kv") or width // heads
        hidden = size("intermediate_size", "d_ff", "n_inner", "ffn_dim") or 4 * width
        return cls(str(name), heads, channels, width, hidden, batch)


MODELS = (
    Transformer("BERT", 12, 64, 768, 3072),
    Transformer("TrXL", 16, 64, 1024, 4096),
    Transformer("T5", 8, 64, 512, 2048),
    Transformer("XLM", 16, 128, 2048, 8192),
)
"""The models that FuseMax was evaluated on."""

LENGTHS = tuple(1024 * 4**i for i in range(6))
"""The numbers of tokens that it was evaluated at, 1K to 1M."""


def attention_cost(design: AttentionAccelerator, *, heads: int, p: int, m: int, e: int, f: int) -> SpatialCost:
    """Cost of attention of ``heads`` independent heads (a batch counts as more heads).

    Args:
        design: chip and binding.
        heads: batch times heads.
        p, m: queries and keys.
        e, f: channels of queries and keys, and of values.

    Raises:
        HastenError: sizes that are not whole tiles of the grid.
    """
    side = design.chip.side
    if p % side or m % side:
        raise HastenError(f"a spatial array takes whole tiles: make queries and keys multiples of {side}")
    chip = design.chip
    cascade = attention(design.cascade, p=p, m=m, e=e, f=f, m0=side)
    made = {x.output.tensor: x for x in cascade.einsums}
    busy = [(_busy(design, made, s.grid, chip.elements), _busy(design, made, s.lanes, side)) for s in design.stages]
    tiles = -(-p // side) * -(-m // side)
    cycles = sum(max(pair) for pair in busy) + sum(s.stall for s in design.stages) * tiles * side
    compute = heads * cycles / chip.clock
    traffic = heads * _traffic(design, p, m, e, f)
    if design.fused == "nothing":
        latency, waiting = _unfused(design, made, heads, p, m, e, f)
    elif design.fused == "rows" and chip.word * side * m <= chip.buffer:
        latency, waiting = compute, 0.0  # what is read fits beside the rows, and is read while they are computed
    else:
        latency = max(compute, traffic / chip.bandwidth)
        waiting = latency if latency > compute else 0.0
    spent = latency * chip.clock / heads
    grid, lanes = sum(g for g, _ in busy), sum(v for _, v in busy)
    return SpatialCost(
        latency=latency,
        energy=heads * _energy(design, cascade, p, m, e, f) + traffic * chip.per_byte,
        bytes={"memory": traffic},
        area=chip.total_area,
        bound="memory" if 2 * waiting > latency else "grid" if grid >= lanes else "lanes",
        cycles=heads * cycles,
        utilization=grid / spent,
        lanes=lanes / spent,
    )


def linear_cost(chip: SpatialArray, model: Transformer, tokens: int) -> SpatialCost:
    """Cost of a layer's linear parts (projections of queries, keys, values and outputs, both of the feed-forward)."""
    rows = model.batch * tokens
    inner = model.heads * model.channels
    sizes = [(model.width, inner)] * 3 + [
        (inner, model.width),
        (model.width, model.hidden),
        (model.hidden, model.width),
    ]
    cycles = latency = traffic = energy = waiting = 0.0
    for k, n in sizes:
        moved = chip.word * (rows * k + k * n + rows * n)
        work = rows * k * n / chip.elements
        cycles += work
        traffic += moved
        latency += max(moved / chip.bandwidth, work / chip.clock)
        waiting += moved / chip.bandwidth if moved / chip.bandwidth > work / chip.clock else 0.0
        energy += rows * k * n * (OPERATIONS["mac"] + chip.register) + moved * chip.per_byte
    return SpatialCost(
        latency=latency,
        energy=energy,
        bytes={"memory": traffic},
        area=chip.total_area,
        bound="memory" if 2 * waiting > latency else "grid",
        cycles=cycles,
        utilization=cycles / (latency * chip.clock),
        lanes=0.0,
    )


def model_cost(design: AttentionAccelerator, model: Transformer, tokens: int) -> tuple[SpatialCost, SpatialCost]:
    """(attention, linear layers) of one layer of a model on ``tokens`` tokens a sequence."""
    heads = model.batch * model.heads
    part = attention_cost(design, heads=heads, p=tokens, m=tokens, e=model.channels, f=model.channels)
    return part, linear_cost(design.chip, model, tokens)


def _work(design: AttentionAccelerator, einsum: Einsum) -> int:
    """Cycles that the points of an Einsum take on one element."""
    names = operations(einsum)
    cycles = sum(design.chip.cycles(o) for o in names)
    if not design.serial_exp and "exp" in names:
        cycles -= design.chip.cycles("sub")
    return einsum.points * cycles


def _busy(design: AttentionAccelerator, made: dict[str, Einsum], names: Sequence[str], elements: int) -> float:
    return sum(_work(design, made[name]) for name in names) / elements


def query_tile(design: AttentionAccelerator, p: int, e: int, f: int) -> int:
    """Queries that stay on chip while all keys pass by: a divisor of ``p`` in whole tiles of the array."""
    chip, side, word = design.chip, design.chip.side, design.chip.word
    buffer, scores = chip.buffer, 0
    if chip.exponential_unit:  # half of the buffer, and of it a part for the tiles that grid and lanes hand each other
        buffer, scores = buffer // 2, 2 * side
    room = (buffer - word * side * (e + f)) // (word * side * (e + f + 2 + scores))
    return side * _divisor(p // side, max(1, room))


@lru_cache(maxsize=1024)
def _divisor(n: int, limit: int) -> int:
    """The largest divisor of ``n`` that is at most ``limit``."""
    return max(d for d in range(1, min(n, limit) + 1) if n % d == 0)


def _traffic(design: AttentionAccelerator, p: int, m: int, e: int, f: int) -> float:
    """Bytes that one head moves to and from memory."""
    chip = design.chip
    word, side = chip.word, chip.side
    if design.fused == "online":
        return word * (p * e + p * f + m * (e + f) * (p // query_tile(design, p, e, f)))
    if design.fused == "nothing":
        return word * (4 * m * p + 2 * (p + m) * (e + f) // 2)
    if word * side * m <= chip.buffer:
        return word * (p * (e + f) + m * (e + f) * (p // side))
    # Rows of scores no longer fit: they are spilled, and keys and values are read for groups of 1024 queries.
    return word * (4 * m * p + (2 + 2 * p / 1024) * m * e)


def _unfused(
    design: AttentionAccelerator, made: dict[str, Einsum], heads: int, p: int, m: int, e: int, f: int
) -> tuple[float, float]:
    """Seconds, each of the three steps as long as the slower of its arithmetic and its own traffic; and of them those
    of steps whose traffic is."""
    chip = design.chip
    scores = chip.word * m * p
    steps = (
        (_busy(design, made, ("QK",), chip.elements), scores + chip.word * (p + m) * e),
        (_busy(design, made, ("GM", "SN", "SD", "A"), chip.side), 2 * scores),
        (_busy(design, made, ("AV",), chip.elements), scores + chip.word * (p + m) * f),
    )
    times = [(cycles / chip.clock, moved / chip.bandwidth) for cycles, moved in steps]
    return heads * sum(max(pair) for pair in times), heads * sum(b for a, b in times if b > a)


def _energy(design: AttentionAccelerator, cascade: Cascade, p: int, m: int, e: int, f: int) -> float:
    """J of one head without its memory: operations, registers and the buffer."""
    chip = design.chip
    total = 0.0
    for einsum in cascade.einsums:
        if "PAD" in {a.tensor for a in einsum.inputs}:
            continue  # whole tiles have none
        total += einsum.points * sum(chip.energy(o) for o in operations(einsum))
        if einsum.op is Op.MATMUL:
            # Of a product each step reads its running sum, and a tile's operands enter along two edges.
            total += einsum.points * (chip.register + 2 * chip.line / 256 / chip.side)
    return total + design.accesses * m * p * chip.operand
