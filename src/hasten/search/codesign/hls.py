"""Directives of a program of loops for an FPGA: HIDA's rule of parallelism, and the space of all of them.

The rule (HIDA, in arXiv 2406.10903, section 4): copies are handed out to stages in proportion to their work, so that
none keeps the others waiting; stages with the most neighbours choose first how to unroll; who comes later unrolls so
that at every array that both use the banks are multiples of one another. The greatest number of copies that fits the
board is found by trying.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.cost.chips.hls import OPERATORS, HlsCost, StageCost, design_cost, folding_latency, stage_cost
from hasten.errors import HastenError
from hasten.hardware.chips.fpga_board import RESOURCES, FpgaBoard
from hasten.hardware.hls.directives import HlsDesign, StageDirectives, divisors, partitioned, schedule, wanted_banks
from hasten.hardware.hls.reuse import nearest_reuse
from hasten.search.parameter import Params, categorical, ordinal
from hasten.search.problem import Objective, Problem
from hasten.search.space import Space
from hasten.workload.einsum import Op
from hasten.workload.loops import LoopProgram, LoopStage

Banks = dict[str, tuple[int, ...]]
MOST_COPIES = 64
"""Of one rank, in the space."""
INTERVALS = (1, 2, 4)
WITHIN = (1, 2, 5, 10, 20)
"""Results in turn: 2 hide a largest value's wait for itself, 5 a sum's of floats."""


def tiled(
    stage: LoopStage, unroll: Mapping[str, int], within: int, pipeline: bool = True, interval: int = 1
) -> StageDirectives:
    """Directives with which at least ``within`` results are folded into in turn, so that none waits for its own sum.

    Tiles of the innermost ranks of the result go inside of the loops that fold; the others stay outside.
    """
    tile: dict[str, int] = {}
    folding = set(stage.reduced)
    reached = 1
    for rank, size in reversed(stage.loops):
        if rank in folding:
            continue
        copies = unroll.get(rank, 1)
        left = size // copies
        rounds = next((n for n in divisors(left) if reached * n >= within), left)
        tile[rank] = copies * rounds
        reached *= rounds
    order = (*stage.reduced, *(r for r, _ in stage.loops if r not in folding))
    return StageDirectives(order, tile, {r: n for r, n in unroll.items() if n > 1}, pipeline, interval)


def hidden(stage: LoopStage, unroll: Mapping[str, int], number: str = "fp32") -> StageDirectives:
    """Directives whose pipeline does not wait for sums, where the stage has enough results to go round."""
    folds = math.prod(stage.sizes[r] // unroll.get(r, 1) for r in stage.reduced) > 1
    if stage.reduce is None or not folds:
        return tiled(stage, unroll, 1)
    found = tiled(stage, unroll, 2)
    return tiled(stage, unroll, folding_latency(stage, schedule(stage, found), number))


def _unrollings(loops: Sequence[tuple[str, int]], most: int) -> Iterator[dict[str, int]]:
    """Copies of each rank, at most ``most`` together."""
    if not loops:
        yield {}
        return
    (rank, size), *rest = loops
    for n in divisors(size):
        if n > most:
            break
        for others in _unrollings(rest, most // n):
            yield {rank: n, **others}


@dataclass(frozen=True)
class _Choice:
    """A way to unroll a stage, in the banks that it wants."""

    directives: StageDirectives
    banks: Banks
    cost: StageCost


class _Choices:
    """Ways to unroll the stages of a program, each looked at once."""

    def __init__(self, program: LoopProgram, number: str) -> None:
        self.program, self.number = program, number
        self._known: dict[tuple[str, tuple[int, ...]], _Choice] = {}

    def of(self, stage: LoopStage, most: int) -> list[_Choice]:
        """Those with at most ``most`` copies, and not many fewer, the fastest first."""
        ways = {tuple(u.values()): u for u in _unrollings(stage.loops, most)}
        copies = {way: math.prod(way) for way in ways}
        least = max(copies.values()) // 4
        found = [self._choice(stage, ways[way]) for way, n in copies.items() if n >= least]
        return sorted(found, key=lambda c: (c.cost.latency, c.cost.dsp, sum(map(math.prod, c.banks.values()))))

    def _choice(self, stage: LoopStage, unroll: dict[str, int]) -> _Choice:
        key = (stage.name, tuple(unroll.values()))
        if key not in self._known:
            directives = hidden(stage, unroll, self.number)
            plan = schedule(stage, directives)
            banks: Banks = {}
            for use in (*stage.reads, *stage.writes):
                mine = wanted_banks(use, plan, self.program.arrays[use.array].shape)
                banks[use.array] = tuple(map(max, banks.get(use.array, mine), mine))
            alone = HlsDesign(self.program, {stage.name: directives}, banks, number=self.number)
            self._known[key] = _Choice(directives, banks, stage_cost(stage, alone))
        return self._known[key]


def _agree(banks: Banks, taken: Banks) -> bool:
    """Whether at every array that both use, banks are multiples of one another."""
    return all(
        a % b == 0 or b % a == 0
        for name in banks.keys() & taken.keys()
        for a, b in zip(banks[name], taken[name], strict=True)
    )


def parallelized(
    program: LoopProgram, copies: int, *, balanced: bool = True, aware: bool = True, number: str = "fp32"
) -> HlsDesign:
    """A dataflow design with about ``copies`` copies of units.

    Args:
        program: what is computed.
        copies: handed out to all stages together.
        balanced: in proportion to the stages' work; the same to each otherwise.
        aware: of neighbours: banks at shared arrays are multiples of one another.
        number: number format.

    Raises:
        HastenError: no copies, or an unknown number format.
    """
    return _parallelized(_Choices(program, number), copies, balanced, aware)


def _parallelized(choices: _Choices, copies: int, balanced: bool, aware: bool) -> HlsDesign:
    program, number = choices.program, choices.number
    if copies < 1:
        raise HastenError("a design has at least 1 copy of its units")
    work = sum(s.points for s in program.stages)
    shared = {u.array for s in program.stages for u in s.writes}
    neighbours = {s.name: sum(u.array in shared for u in (*s.reads, *s.writes)) for s in program.stages}
    chosen: dict[str, StageDirectives] = {}
    taken: Banks = {}
    for stage in sorted(program.stages, key=lambda s: (-neighbours[s.name], -s.points)):
        share = 1 + copies * stage.points // work if balanced else max(1, copies // len(program.stages))
        options = choices.of(stage, share)
        fitting = [c for c in options if _agree(c.banks, taken)] if aware else options
        best = (fitting or options)[0]
        chosen[stage.name] = best.directives
        for name, banks in best.banks.items():
            taken[name] = tuple(map(max, taken.get(name, banks), banks))
    return partitioned(HlsDesign(program, chosen, dataflow=True, number=number))


@dataclass(frozen=True)
class Found:
    """A design with its cost, and the copies that it was made for."""

    design: HlsDesign
    cost: HlsCost
    copies: int = 1


def naive(program: LoopProgram, board: FpgaBoard, number: str = "fp32", pipeline: bool = True) -> Found:
    """One stage after the other, nothing unrolled: with pipelines as recent tools make them unasked, or without."""
    stages = {s.name: StageDirectives(pipeline=pipeline) for s in program.stages}
    design = HlsDesign(program, stages, number=number)
    return Found(design, design_cost(design, board))


def explore(
    program: LoopProgram,
    board: FpgaBoard,
    *,
    balanced: bool = True,
    aware: bool = True,
    number: str = "fp32",
    most: int = 1 << 14,
) -> Found:
    """The dataflow design with the shortest interval that fits a board, over numbers of copies.

    Args:
        program, board: what is computed where.
        balanced, aware, number: see `parallelized`.
        most: copies that are tried at most.

    Raises:
        HastenError: not even one copy of each unit fits.
    """
    best: Found | None = None
    copies, failed = 1, 0
    choices = _Choices(program, number)
    while copies <= most and failed < 3:
        design = _parallelized(choices, copies, balanced, aware)
        cost = design_cost(design, board)
        if cost.fits(board):
            failed = 0
            if best is None or cost.interval < best.cost.interval:
                best = Found(design, cost, copies)
        else:
            failed += 1
        copies = max(copies + 1, math.ceil(copies * 1.4))
    if best is None:
        used = design_cost(parallelized(program, 1, number=number), board).used(board)
        short = max(used, key=lambda name: used[name])
        raise HastenError(f"{program.name} does not fit {board.name}: it takes {used[short]:.0%} of its {short}")
    return best


def reused(program: LoopProgram, reuse: int | Sequence[int], number: str = "fixed16") -> HlsDesign:
    """A design after hls4ml's manner: each dense layer's multipliers are used ``reuse`` times, one layer after another.

    Args:
        program: of dense layers.
        reuse: of all layers, or of each; the nearest valid one is taken.
        number: see `hasten.cost.chips.hls.OPERATORS`.

    Raises:
        HastenError: a program with other stages than dense layers, or another number of reuses.
    """
    stages = {}
    asked = [reuse] * len(program.stages) if isinstance(reuse, int) else list(reuse)
    if len(asked) != len(program.stages):
        raise HastenError(f"{len(asked)} reuses are given for {len(program.stages)} layers")
    for stage, wanted in zip(program.stages, asked, strict=True):
        made = [r for r, _ in stage.loops if r not in stage.reduced]
        if stage.op is not Op.MATMUL or len(made) != 1 or len(stage.reduced) != 1:
            raise HastenError(f"stage {stage.name} is no dense layer: reuse is of those alone")
        inputs, outputs = stage.sizes[stage.reduced[0]], stage.sizes[made[0]]
        factor = nearest_reuse(inputs, outputs, wanted)
        copies = inputs * outputs // factor
        # All inputs of some outputs, or some inputs of all.
        unroll = {made[0]: min(copies, outputs), stage.reduced[0]: max(1, copies // outputs)}
        stages[stage.name] = StageDirectives((*made, *stage.reduced), {}, unroll)
    return partitioned(HlsDesign(program, stages, number=number))


def _copies(stage: LoopStage) -> Iterator[tuple[str, list[int]]]:
    """Each rank of which there may be copies, and how many."""
    for rank, size in stage.loops:
        choices = [n for n in divisors(size) if n <= MOST_COPIES]
        if len(choices) > 1:
            yield rank, choices


def space(program: LoopProgram) -> Space:
    """What may be chosen.

    Dataflow, whether copies share banks, and for each stage the copies of every rank (unroll), results that are made in
    turn (tile and order), the pipeline and its interval.
    """
    parameters = [categorical("dataflow", [True, False]), categorical("shared_banks", [False, True])]
    for stage in program.stages:
        parameters += [ordinal(f"{stage.name}.{rank}", choices) for rank, choices in _copies(stage)]
        if stage.reduced:
            parameters.append(ordinal(f"{stage.name}.within", list(WITHIN)))
        parameters.append(categorical(f"{stage.name}.pipeline", [True, False]))
        parameters.append(ordinal(f"{stage.name}.interval", list(INTERVALS), when={f"{stage.name}.pipeline": True}))
    return Space(parameters)


def design_of(program: LoopProgram, params: Mapping[str, Any], number: str = "fp32") -> HlsDesign:
    """The design of a point of the space; arrays are in the banks that its copies want."""
    stages = {}
    for stage in program.stages:
        unroll = {r: int(params.get(f"{stage.name}.{r}", 1)) for r, _ in stage.loops}
        pipeline = bool(params[f"{stage.name}.pipeline"])
        interval = int(params.get(f"{stage.name}.interval", 1))
        stages[stage.name] = tiled(stage, unroll, int(params.get(f"{stage.name}.within", 1)), pipeline, interval)
    design = HlsDesign(program, stages, dataflow=bool(params["dataflow"]), number=number)
    return partitioned(design, bool(params["shared_banks"]))


def point_of(design: HlsDesign) -> Params:
    """The point of the space nearest to a design: where a search may begin."""
    params: Params = {"dataflow": design.dataflow, "shared_banks": False}
    for stage in design.program.stages:
        directives = design.of(stage)
        for rank, choices in _copies(stage):
            wanted = directives.unroll.get(rank, 1)
            params[f"{stage.name}.{rank}"] = max(n for n in choices if n <= wanted)
        if stage.reduced:
            distance = max(1, schedule(stage, directives).distance)
            params[f"{stage.name}.within"] = max(n for n in WITHIN if n <= distance)
        params[f"{stage.name}.pipeline"] = directives.pipeline
        if directives.pipeline:
            params[f"{stage.name}.interval"] = max(n for n in INTERVALS if n <= directives.interval)
    return params


def hls_problem(program: LoopProgram, board: FpgaBoard, number: str = "fp32") -> Problem:
    """The directives of a program: the shortest interval and the fewest DSP slices, within a board.

    Raises:
        HastenError: an unknown number format.
    """
    if number not in OPERATORS:
        raise HastenError(f"there is no number format {number!r}: choose one of {', '.join(OPERATORS)}")

    def evaluate(params: Params) -> Mapping[str, Any]:
        cost = design_cost(design_of(program, params, number), board)
        used = cost.used(board)
        return {
            "interval": cost.interval / board.clock,
            "dsp_used": used["dsp"],
            **{name: used[name] - 1 for name in RESOURCES},
            "latency": cost.latency,
            "bound": cost.bound,
        }

    return Problem(
        f"hls-{program.name}-{board.name}",
        space(program),
        (Objective("interval", unit="s"), Objective("dsp_used")),
        evaluate,
        constraints=RESOURCES,
        identity={"program": repr(program), "board": repr(board), "number": number},
        units={"latency": "s"},
    )


__all__ = [
    "Found", "design_of", "explore", "hidden", "hls_problem", "naive", "parallelized", "point_of", "reused", "space",
    "tiled",
]  # fmt: skip
