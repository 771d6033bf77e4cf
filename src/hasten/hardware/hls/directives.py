"""How a program of loops becomes a circuit: tiles, unrolling, pipelines, partitions of arrays, dataflow.

The directives of ScaleHLS and HIDA (arXiv 2406.10903, section 4): loops are reordered and tiled, the innermost part of
a tile is unrolled, what is left is one pipeline; arrays are split into banks so that unrolled copies find their
elements at once; stages run one after the other, or all at a time on successive inputs with buffers between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError
from hasten.workload.loops import ArrayUse, LoopProgram, LoopStage

PORTS = 2
"""Elements that a block RAM gives or takes in a cycle."""
MOST_BANKS = 4096
"""Banks that one array is split into at most; a tool gives up long before."""


@dataclass(frozen=True)
class StageDirectives:
    """How one nest runs.

    Args:
        order: ranks, outermost first; those left out follow in the nest's own order. It holds for the loops over tiles,
            and again for those within a tile.
        tile: rank -> size of a tile, a divisor of its size; the whole where none is given.
        unroll: rank -> copies that work at once, a divisor of its tile.
        pipeline: whether an iteration begins before the last one ended.
        interval: cycles between two iterations at least; more than 1 shares units between copies.
    """

    order: tuple[str, ...] = ()
    tile: Mapping[str, int] = field(default_factory=dict)
    unroll: Mapping[str, int] = field(default_factory=dict)
    pipeline: bool = True
    interval: int = 1

    @property
    def copies(self) -> int:
        return math.prod(self.unroll.values())


@dataclass(frozen=True)
class HlsDesign:
    """A program with its directives.

    Args:
        program: what is computed.
        stages: stage -> directives; those left out have none but a pipeline.
        partition: array -> banks of each of its dimensions, cyclic; where an array is left out, one bank.
        dataflow: whether stages work at the same time, on successive inputs.
        number: number format, a key of `hasten.cost.chips.hls.OPERATORS`.
    """

    program: LoopProgram
    stages: Mapping[str, StageDirectives] = field(default_factory=dict)
    partition: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    dataflow: bool = False
    number: str = "fp32"

    def of(self, stage: LoopStage) -> StageDirectives:
        return self.stages.get(stage.name, StageDirectives())

    def banks(self, array: str) -> tuple[int, ...]:
        """Banks of each dimension of an array."""
        return self.partition.get(array, (1,) * len(self.program.arrays[array].shape))

    def depths(self) -> dict[str, int]:
        """Array between stages -> blocks of it that are held: 1, with dataflow at least 2 (ping and pong).

        A stage that reads what was made several stages before needs a block for every stage between, or all wait.
        """
        level: dict[str, int] = {}
        made: dict[str, int] = {}
        for stage in self.program.stages:
            level[stage.name] = max((made.get(u.array, -1) + 1 for u in stage.reads), default=0)
            made.update({u.array: level[stage.name] for u in stage.writes})
        held = {}
        for stage in self.program.stages:
            for use in stage.reads:
                if use.array in made:
                    held[use.array] = 1 + level[stage.name] - made[use.array] if self.dataflow else 1
        return held


@dataclass(frozen=True)
class LoopLevel:
    """A loop of the pipeline: its rank advances by ``step`` in each of ``trips`` rounds."""

    rank: str
    trips: int
    step: int
    outer: bool

    @property
    def variable(self) -> str:
        """Name of its counter in C."""
        return f"{self.rank}_{'t' if self.outer else 'p'}"


@dataclass(frozen=True)
class NestSchedule:
    """The nest of one stage as it runs.

    Args:
        levels: loops of the pipeline, outermost first; those of one round are left out.
        unrolled: (rank, copies) of those that have more than one.
        kept: of the levels, how many stand outside of all that fold; what is folded at a time lies within them.
        distance: iterations between two that fold into the same element; 0 where nothing is folded across iterations.
    """

    levels: tuple[LoopLevel, ...]
    unrolled: tuple[tuple[str, int], ...]
    kept: int
    distance: int

    @property
    def trips(self) -> int:
        """Iterations of the pipeline."""
        return math.prod(level.trips for level in self.levels)


def schedule(stage: LoopStage, directives: StageDirectives) -> NestSchedule:
    """The loops of a stage under its directives.

    Raises:
        HastenError: a rank that the stage has not, or a tile or number of copies that does not divide.
    """
    key = (directives.order, tuple(directives.tile.items()), tuple(directives.unroll.items()))
    return _schedule(stage, *key)


@lru_cache(maxsize=65536)
def _schedule(
    stage: LoopStage, order: tuple[str, ...], tiles: tuple[tuple[str, int], ...], unrolls: tuple[tuple[str, int], ...]
) -> NestSchedule:
    sizes, tile, unroll = stage.sizes, dict(tiles), dict(unrolls)
    if unknown := [r for r in (*order, *tile, *unroll) if r not in sizes]:
        raise HastenError(f"stage {stage.name} has no rank {unknown[0]!r}: it has {', '.join(sizes)}")
    if len(set(order)) < len(order):
        raise HastenError(f"stage {stage.name}: a rank is in the order twice: name each once")
    for rank, size in sizes.items():
        t, u = tile.get(rank, size), unroll.get(rank, 1)
        if t < 1 or u < 1 or size % t or t % u:
            raise HastenError(
                f"stage {stage.name}: rank {rank!r} of {size} in tiles of {t} with {u} copies: each must divide"
            )
    ranks = [*order, *(r for r in sizes if r not in order)]
    levels = [LoopLevel(r, sizes[r] // tile.get(r, sizes[r]), tile.get(r, sizes[r]), True) for r in ranks]
    levels += [LoopLevel(r, tile.get(r, sizes[r]) // unroll.get(r, 1), unroll.get(r, 1), False) for r in ranks]
    levels = [level for level in levels if level.trips > 1]
    folding = [i for i, level in enumerate(levels) if level.rank in stage.reduced]
    kept = folding[0] if folding else len(levels)
    distance = math.prod(level.trips for level in levels[folding[-1] + 1 :]) if folding else 0
    return NestSchedule(tuple(levels), tuple((r, unroll[r]) for r in ranks if unroll.get(r, 1) > 1), kept, distance)


@lru_cache(maxsize=65536)
def offsets(use: ArrayUse, unrolled: tuple[tuple[str, int], ...]) -> NDArray[np.int64]:
    """Where copies find their elements, seen from where the iteration stands: (different ones, dimensions)."""
    mine = [(r, n) for r, n in unrolled if r in use.ranks]
    grid = np.indices([n for _, n in mine]).reshape(len(mine), -1) if mine else np.zeros((0, 1), np.int64)
    at = {r: grid[i] for i, (r, _) in enumerate(mine)}
    columns = [
        sum((f * at[r] for r, f in s.terms if r in at), np.zeros(grid.shape[1], np.int64)) + s.offset
        for s in use.subscripts
    ]
    return np.unique(np.stack(columns, 1), axis=0) if columns else np.zeros((1, 0), np.int64)


def known_banks(use: ArrayUse, levels: Sequence[LoopLevel], dimension: int, banks: int) -> int:
    """Of the banks of a dimension, how many can be told apart whatever the iteration: a divisor of ``banks``.

    The place of a copy is known but for multiples of what the loops advance by. All banks where copies keep to their
    own, 1 where a copy's bank may be any.
    """
    factors = dict(use.subscripts[dimension].terms)
    return math.gcd(banks, *(factors.get(level.rank, 0) * level.step for level in levels))


def crowding(uses: Sequence[ArrayUse], plan: NestSchedule, banks: Sequence[int], shape: Sequence[int]) -> int:
    """The most elements that one bank must give or take in an iteration.

    A bank that changes from one iteration to the next is unknown to a schedule that is made once: elements that may be
    in the same bank are counted as if they were, as a synthesis tool must count them.
    """
    if math.prod(banks) >= math.prod(shape):
        return 0  # registers, all at hand
    alike: dict[tuple[tuple[tuple[str, int], ...], ...], list[ArrayUse]] = {}
    for use in uses:
        alike.setdefault(tuple(s.terms for s in use.subscripts), []).append(use)
    counts: dict[tuple[int, ...], int] = {}
    anywhere = 0
    for same in alike.values():
        found = np.unique(np.concatenate([offsets(u, plan.unrolled) for u in same]), axis=0)
        apart = [known_banks(same[0], plan.levels, d, n) for d, n in enumerate(banks)]
        classes, within = np.unique(found % np.array(apart, np.int64), axis=0, return_counts=True)
        if apart == list(banks):
            for bank, count in zip(classes, within, strict=True):
                key = tuple(map(int, bank))
                counts[key] = counts.get(key, 0) + int(count)
        else:
            anywhere += int(within.max())
    return max(counts.values(), default=0) + anywhere


def divisors(number: int) -> list[int]:
    """In order."""
    return [n for n in range(1, number + 1) if number % n == 0]


def wanted_banks(use: ArrayUse, plan: NestSchedule, shape: Sequence[int]) -> tuple[int, ...]:
    """Banks of each dimension with which the copies of one stage do not meet: the fewest that divide it.

    One where more would not help, as a copy's bank would change from iteration to iteration.
    """
    found = []
    at = offsets(use, plan.unrolled)
    for d, size in enumerate(shape):
        places = np.unique(at[:, d])
        if len(places) == 1:
            found.append(1)
            continue
        enough = (
            n
            for n in divisors(size)
            if n >= len(places)
            and len(np.unique(places % n)) == len(places)
            and known_banks(use, plan.levels, d, n) == n
        )
        found.append(next(enough, 1))
    return tuple(found)


def partitioned(design: HlsDesign, shared: bool = False) -> HlsDesign:
    """The design with each array in the banks that the stage with the most copies at it wants, dimension by dimension.

    A stage whose copies do not divide those of the other stage at an array finds its banks changing, and waits
    (`crowding`): that is what unrolling with regard to neighbours avoids.

    Args:
        design: its directives; what it has of partitions is replaced.
        shared: whether copies share banks as far as their ports serve all: fewer block RAMs, and no longer intervals.
    """
    banks: dict[str, tuple[int, ...]] = {}
    for stage in design.program.stages:
        plan = schedule(stage, design.of(stage))
        for use in (*stage.reads, *stage.writes):
            shape = design.program.arrays[use.array].shape
            mine = wanted_banks(use, plan, shape)
            known = banks.get(use.array, mine)
            both = tuple(map(max, known, mine))
            banks[use.array] = both if math.prod(both) <= MOST_BANKS else known
    if shared:
        banks = {name: _fewest(design, name, b) for name, b in banks.items()}
    return replace(design, partition={n: b for n, b in banks.items() if math.prod(b) > 1})


def _fewest(design: HlsDesign, name: str, banks: tuple[int, ...]) -> tuple[int, ...]:
    """The fewest banks of an array with which no stage waits for it longer than with ``banks``."""
    shape = design.program.arrays[name].shape
    users = []
    for stage in design.program.stages:
        uses = [u for u in (*stage.reads, *stage.writes) if u.array == name]
        if uses:
            plan = schedule(stage, design.of(stage))
            users.append((uses, plan, max(1, math.ceil(crowding(uses, plan, banks, shape) / PORTS))))
    for d, size in enumerate(shape):
        for fewer in divisors(size):
            tried = (*banks[:d], fewer, *banks[d + 1 :])
            if fewer >= banks[d]:
                break
            if all(math.ceil(crowding(uses, plan, tried, shape) / PORTS) <= cycles for uses, plan, cycles in users):
                banks = tried
                break
    return banks
