"""A circuit from high-level synthesis: cycles and resources of a design, without synthesising it.

The analytical estimator of ScaleHLS and HIDA (arXiv 2406.10903, section 4): a pipeline of N iterations with an interval
of I takes (N - 1) I + depth cycles; I is the greater of what folding into the same element and what the banks of arrays
allow; units are shared over the interval; a bank of an array takes whole block RAMs, and as many blocks of it are held
as stages stand between its maker and its reader. With dataflow a new input begins when the slowest stage is done.

Routing, the clock that is reached, and what a synthesis tool shares or moves are not in it: nothing here was
synthesised. The figures of operators are those that Vitis HLS reports for its cores at clocks of 100 to 200 MHz.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from hasten.cost.chips.chip_cost import ChipCost
from hasten.errors import HastenError
from hasten.hardware.chips.fpga_board import RESOURCES, FpgaBoard
from hasten.hardware.hls.directives import PORTS, HlsDesign, NestSchedule, crowding, schedule
from hasten.workload.arithmetic import FOLD, Expression
from hasten.workload.einsum import Role
from hasten.workload.loops import ArrayUse, LoopProgram, LoopStage

BLOCK_BITS = 18432
"""Of a block RAM."""
SMALL_BITS = 1024
"""A bank of no more is made of lookup tables."""


class OperatorCost(NamedTuple):
    """An operator's core: cycles until its result, and what it is made of."""

    latency: int
    dsp: int
    lut: int
    ff: int


_FP32 = {
    # Latencies: cores fadd_32_5_full_dsp, fmul_32_4_max_dsp, fdiv_32_16, fexp_32_9_full_dsp of Vitis HLS's reports;
    # lookup tables and flip-flops as those reports give for 7 series (from memory).
    "add": OperatorCost(4, 2, 390, 205),
    "mul": OperatorCost(3, 3, 321, 143),
    "div": OperatorCost(15, 0, 994, 761),
    "exp": OperatorCost(8, 7, 924, 277),
    "log": OperatorCost(12, 4, 1200, 500),
    "sqrt": OperatorCost(15, 0, 615, 405),
    "tanh": OperatorCost(28, 9, 2300, 1240),
    "erf": OperatorCost(40, 20, 5000, 3000),
    "pow": OperatorCost(30, 25, 3500, 2000),
    "max": OperatorCost(1, 0, 271, 66),
}
_FIXED16 = {
    "add": OperatorCost(1, 0, 23, 16),
    "mul": OperatorCost(3, 1, 20, 40),
    "div": OperatorCost(20, 0, 600, 600),
    "exp": OperatorCost(4, 1, 150, 100),
    "log": OperatorCost(4, 1, 150, 100),
    "sqrt": OperatorCost(10, 0, 300, 200),
    "tanh": OperatorCost(4, 1, 150, 100),
    "erf": OperatorCost(4, 1, 150, 100),
    "pow": OperatorCost(12, 3, 400, 300),
    "max": OperatorCost(1, 0, 24, 16),
}
OPERATORS: Mapping[str, Mapping[str, OperatorCost]] = {
    "fp32": _FP32,
    "fixed16": _FIXED16,
    # Products of 8 bits still take a slice each, those of 6 and fewer none (hls4ml's syntheses, arXiv 2511.05615).
    "fixed8": {**_FIXED16, "add": OperatorCost(1, 0, 16, 8), "max": OperatorCost(1, 0, 12, 8)},
    "fixed6": {**_FIXED16, "add": OperatorCost(1, 0, 12, 6), "mul": OperatorCost(2, 0, 40, 20),
               "max": OperatorCost(1, 0, 9, 6)},
}  # fmt: skip
"""Number format -> function of expressions -> its core."""
BITS = {"fp32": 32, "fixed16": 16, "fixed8": 8, "fixed6": 6}
# Functions that are another's core, or wires.
_ALIKE = {"sub": "add", "min": "max", "neg": "", "abs": "", "select": "", "upto": "", "below": ""}
# Of a stage's control: counters of its loops and its state machine; an estimate.
_STAGE_LUT, _STAGE_FF, _LEVEL_LUT, _LEVEL_FF = 60, 40, 40, 32
_READ, _WRITE = 1, 1  # cycles to reach a block RAM


@dataclass(frozen=True)
class StageCost:
    """What one stage takes.

    Args:
        latency: cycles for one input.
        interval: cycles between two iterations of its pipeline.
        depth: cycles of one iteration.
        trips: iterations.
        bound: what sets the interval: ``fold`` (the same element again), ``banks``, or ``directive``.
        dsp, lut, ff, bram18: its units, and what it folds into.
    """

    latency: int
    interval: int
    depth: int
    trips: int
    bound: str
    dsp: int
    lut: int
    ff: int
    bram18: int


@dataclass(frozen=True, kw_only=True)
class HlsCost(ChipCost):
    """What a design takes: resources in place of an area, energy NaN and no bytes (not known); bound by a stage.

    Args:
        cycles: from an input to its result.
        interval: cycles from an input to the next that can begin.
        stages: by name.
        dsp, bram18, lut, ff: of all, arrays included.
        clock: Hz.
    """

    cycles: int
    interval: int
    stages: Mapping[str, StageCost]
    dsp: int
    bram18: int
    lut: int
    ff: int
    clock: float

    @property
    def throughput(self) -> float:
        """Inputs a second."""
        return self.clock / self.interval

    def used(self, board: FpgaBoard) -> dict[str, float]:
        """Share of a board that is used, by resource; above 1 it does not fit."""
        return {name: getattr(self, name) / getattr(board, name) for name in RESOURCES}

    def fits(self, board: FpgaBoard) -> bool:
        return max(self.used(board).values()) <= 1


def operator_counts(expression: Expression, times: int = 1) -> Counter[str]:
    """Cores that an expression takes, by the name of their function."""
    found: Counter[str] = Counter()
    kind, *parts = expression
    core = _ALIKE.get(kind, kind)
    if core and kind not in ("read", "acc", "const"):
        found[core] += times
    for part in parts:
        if isinstance(part, tuple):
            found += operator_counts(part, times)
    return found


def _path(expression: Expression, cores: Mapping[str, OperatorCost]) -> int:
    """Cycles along the longest way through an expression."""
    kind, *parts = expression
    core = _ALIKE.get(kind, kind)
    own = 0 if kind in ("read", "acc", "const") or not core else cores[core].latency
    return own + max((_path(p, cores) for p in parts if isinstance(p, tuple)), default=0)


def folding_latency(stage: LoopStage, plan: NestSchedule, number: str) -> int:
    """Cycles from reading an element that is folded into until it can be read again; 0 where nothing is folded."""
    if stage.reduce is None:
        return 0
    core = FOLD[stage.reduce]
    own = OPERATORS[number][_ALIKE.get(core, core)].latency
    # In registers where one element is folded at a time, else in a memory that is read and written.
    return own + (_READ if plan.distance > 1 else 0)


def stage_cost(stage: LoopStage, design: HlsDesign) -> StageCost:
    """Cycles and units of one stage in its design.

    Raises:
        HastenError: directives that do not fit the stage, or an unknown number format.
    """
    if design.number not in OPERATORS:
        raise HastenError(f"there is no number format {design.number!r}: choose one of {', '.join(OPERATORS)}")
    cores, bits = OPERATORS[design.number], BITS[design.number]
    directives = design.of(stage)
    plan = schedule(stage, directives)
    copies = directives.copies
    folded = math.prod(n for r, n in plan.unrolled if r in stage.reduced)
    finished = copies // folded

    folding = folding_latency(stage, plan, design.number)
    reasons = {"directive": max(1, directives.interval), "banks": math.ceil(_crowded(stage, plan, design) / PORTS)}
    if plan.distance and stage.reduced:
        reasons["fold"] = math.ceil(folding / plan.distance)
    interval = max(reasons.values())
    bound = next(name for name, value in reasons.items() if value == interval)

    units = operator_counts(stage.value, copies)
    # Where a bank is asked for much, the last copy begins that much later.
    depth = max(_READ, reasons["banks"]) + _path(stage.value, cores) + _WRITE
    if stage.reduce is not None:
        core = _ALIKE.get(FOLD[stage.reduce], FOLD[stage.reduce])
        across = plan.distance > 0
        # A tree adds up what copies found, and one more folds it into what was there.
        units[core] += finished * (folded - 1 + across)
        depth += cores[core].latency * (math.ceil(math.log2(folded)) + across)
        units += operator_counts(stage.finish, finished)
        depth += _path(stage.finish, cores)
    trips = plan.trips
    # In a pipeline a unit works for as many copies as there are cycles between iterations.
    shared = {name: math.ceil(count / interval) if directives.pipeline else count for name, count in units.items()}
    if not directives.pipeline:
        interval, bound = depth, "directive"
    latency = (trips - 1) * interval + depth
    levels = len(plan.levels)
    bram, lut, ff = _accumulators(stage, plan, finished, bits)
    return StageCost(
        latency=latency,
        interval=interval,
        depth=depth,
        trips=trips,
        bound=bound,
        dsp=sum(cores[name].dsp * n for name, n in shared.items()),
        lut=lut + sum(cores[name].lut * n for name, n in shared.items()) + _STAGE_LUT + _LEVEL_LUT * levels,
        # Results wait in registers until those of longer ways are there.
        ff=ff + sum(cores[name].ff * n for name, n in shared.items()) + _STAGE_FF + _LEVEL_FF * levels + bits * copies,
        bram18=bram,
    )


def _crowded(stage: LoopStage, plan: NestSchedule, design: HlsDesign) -> int:
    """The most elements of one bank in an iteration, over all arrays of a stage."""
    uses: dict[str, list[ArrayUse]] = {}
    for use in (*stage.reads, *stage.writes):
        uses.setdefault(use.array, []).append(use)
    arrays = design.program.arrays
    return max(crowding(found, plan, design.banks(name), arrays[name].shape) for name, found in uses.items())


def _memory(banks: int, elements: int, bits: int) -> tuple[int, int, int]:
    """(block RAMs, lookup tables, flip-flops) of an array in banks."""
    if banks >= elements:
        return 0, 0, elements * bits
    each = math.ceil(elements / banks) * bits
    if each <= SMALL_BITS:
        return 0, banks * math.ceil(each / 32), 0
    return banks * math.ceil(each / BLOCK_BITS), 0, 0


def _accumulators(stage: LoopStage, plan: NestSchedule, finished: int, bits: int) -> tuple[int, int, int]:
    """What a stage folds into."""
    if stage.reduce is None or not plan.distance:
        return 0, 0, 0
    within = math.prod(level.trips for level in plan.levels[plan.kept :] if level.rank not in stage.reduced)
    return _memory(finished, within * finished, bits)


def design_cost(design: HlsDesign, board: FpgaBoard) -> HlsCost:
    """Cycles and resources of a design on a board.

    Raises:
        HastenError: directives that do not fit the program, or an unknown number format.
    """
    program, bits = design.program, BITS.get(design.number, 0)
    stages = {stage.name: stage_cost(stage, design) for stage in program.stages}
    held = design.depths()
    total = {name: sum(getattr(cost, name) for cost in stages.values()) for name in RESOURCES}
    for name, array in program.arrays.items():
        # What is given and asked for is read and written by others while stages are at work.
        given = name in program.inputs or name in program.outputs
        blocks = held.get(name, 1) if array.role is not Role.WEIGHT else 1
        if given and design.dataflow:
            blocks = max(blocks, 2)
        for resource, used in zip(
            ("bram18", "lut", "ff"), _memory(math.prod(design.banks(name)), array.elements, bits), strict=True
        ):
            total[resource] += blocks * used
    cycles = _first_result(program, stages) if design.dataflow else sum(c.latency for c in stages.values())
    interval = max(c.latency for c in stages.values()) if design.dataflow else cycles
    slowest = max(stages, key=lambda name: stages[name].latency)
    return HlsCost(
        latency=cycles / board.clock,
        energy=math.nan,
        bytes={},
        bound=slowest,
        cycles=cycles,
        interval=interval,
        stages=stages,
        clock=board.clock,
        **total,
    )


def _first_result(program: LoopProgram, stages: Mapping[str, StageCost]) -> int:
    """Cycles along the longest way from the inputs to the outputs: a stage begins when all that it reads is made."""
    done: dict[str, int] = {}
    for stage in program.stages:
        end = stages[stage.name].latency + max((done.get(u.array, 0) for u in stage.reads), default=0)
        done.update({u.array: end for u in stage.writes})
    return max(done[name] for name in program.outputs)


__all__ = [
    "BITS", "OPERATORS", "HlsCost", "OperatorCost", "StageCost", "design_cost", "folding_latency",
    "operator_counts", "stage_cost",
]  # fmt: skip
