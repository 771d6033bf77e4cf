"""Nests under directives, and the banks that copies of a loop need."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from hasten.errors import HastenError
from hasten.hardware.hls.directives import (
    PORTS,
    HlsDesign,
    LoopLevel,
    StageDirectives,
    crowding,
    divisors,
    known_banks,
    offsets,
    partitioned,
    schedule,
    wanted_banks,
)
from hasten.workload.loops import LoopProgram, LoopStage, loop_program

PRODUCT = loop_program(nn.Linear(12, 8), torch.randn(6, 12))
STAGE = PRODUCT.stages[0]  # m 6, n 8, k 12


def test_tiles_go_around_what_is_within_them_and_copies_inside_of_all() -> None:
    plan = schedule(STAGE, StageDirectives(("k", "m"), {"n": 4, "m": 2}, {"n": 2}))
    assert [(v.rank, v.trips, v.step, v.outer) for v in plan.levels] == [
        ("m", 3, 2, True), ("n", 2, 4, True), ("k", 12, 1, False), ("m", 2, 1, False), ("n", 2, 2, False),
    ]  # fmt: skip
    assert plan.unrolled == (("n", 2),)
    assert plan.kept == 2
    assert plan.distance == 4, "two rows and two columns are folded into in turn"
    assert plan.trips * 2 == STAGE.points


@pytest.mark.parametrize("order", list(itertools.permutations("mnk")))
def test_every_point_is_computed_once(order: tuple[str, ...]) -> None:
    plan = schedule(STAGE, StageDirectives(order, {"k": 6, "n": 4}, {"k": 3, "m": 2}))
    copies = dict(plan.unrolled)
    points = set()
    for counters in itertools.product(*(range(v.trips) for v in plan.levels)):
        for extra in itertools.product(*(range(n) for n in copies.values())):
            at = dict.fromkeys("mnk", 0)
            for level, c in zip(plan.levels, counters, strict=True):
                at[level.rank] += c * level.step
            for rank, c in zip(copies, extra, strict=True):
                at[rank] += c
            points.add(tuple(at.values()))
    assert len(points) == STAGE.points
    assert points == set(itertools.product(range(6), range(8), range(12)))


@pytest.mark.parametrize(
    ("directives", "why"),
    [
        (StageDirectives(unroll={"m": 4}), "each must divide"),
        (StageDirectives(tile={"n": 3}), "each must divide"),
        (StageDirectives(tile={"n": 4}, unroll={"n": 8}), "each must divide"),
        (StageDirectives(("z",)), "has no rank 'z'"),
        (StageDirectives(("m", "m")), "in the order twice"),
        (StageDirectives(unroll={"m": 0}), "each must divide"),
    ],
)
def test_what_does_not_fit_a_nest_is_refused(directives: StageDirectives, why: str) -> None:
    with pytest.raises(HastenError, match=why):
        schedule(STAGE, directives)


def brute_force_crowding(stage: LoopStage, program: LoopProgram, directives: StageDirectives, array: str,
                         banks: tuple[int, ...]) -> int:  # fmt: skip
    """The most elements of one bank in any iteration, from addresses."""
    plan = schedule(stage, directives)
    copies = dict(plan.unrolled)
    worst = 0
    for counters in itertools.product(*(range(v.trips) for v in plan.levels)):
        at = dict.fromkeys(stage.sizes, 0)
        for level, c in zip(plan.levels, counters, strict=True):
            at[level.rank] += c * level.step
        asked = set()
        for extra in itertools.product(*(range(n) for n in copies.values())):
            here = {**at, **{r: at[r] + c for r, c in zip(copies, extra, strict=True)}}
            for use in (*stage.reads, *stage.writes):
                if use.array == array:
                    element = tuple(sum(f * here[r] for r, f in s.terms) + s.offset for s in use.subscripts)
                    if all(0 <= e < n for e, n in zip(element, program.arrays[array].shape, strict=True)):
                        asked.add(element)
        found = [tuple(e % b for e, b in zip(element, banks, strict=True)) for element in asked]
        worst = max([worst, *(found.count(b) for b in set(found))])
    return worst


@pytest.mark.parametrize("seed", range(12))
def test_crowding_is_never_below_what_addresses_give_and_equal_where_banks_stay(seed: int) -> None:
    rng = np.random.default_rng(seed)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, stride=int(rng.integers(1, 3)), padding=int(rng.integers(2))))
    program = loop_program(net, torch.randn(1, 2, 8, 8))
    stage = program.stages[0]
    unroll = {r: int(rng.choice([d for d in divisors(n) if d <= 4])) for r, n in stage.loops}
    directives = StageDirectives(tuple(rng.permutation(list(stage.sizes))), {}, unroll)
    plan = schedule(stage, directives)
    for use in (*stage.reads, *stage.writes):
        shape = program.arrays[use.array].shape
        banks = tuple(int(rng.choice(divisors(n))) for n in shape)
        if math.prod(banks) >= math.prod(shape):
            continue
        uses = [u for u in (*stage.reads, *stage.writes) if u.array == use.array]
        found = crowding(uses, plan, banks, shape)
        counted = brute_force_crowding(stage, program, directives, use.array, banks)
        assert found >= counted
        if use.outside is None and all(known_banks(use, plan.levels, d, n) == n for d, n in enumerate(banks)):
            assert found == counted
        wanted = wanted_banks(use, plan, shape)
        alone = crowding(uses, plan, wanted, shape)
        assert alone <= crowding(uses, plan, (1,) * len(shape), shape)
        assert all(n % b == 0 for n, b in zip(shape, wanted, strict=True)), "banks divide what they share"


def test_offsets_are_those_of_copies() -> None:
    weight = next(u for u in STAGE.reads if u.array == "weight")
    assert offsets(weight, (("n", 2), ("k", 3))).tolist() == [[a, b] for a in range(2) for b in range(3)]
    assert offsets(weight, (("m", 2),)).tolist() == [[0, 0]], "all rows read the same weight"


def test_banks_are_told_apart_but_for_what_loops_advance_by() -> None:
    weight = next(u for u in STAGE.reads if u.array == "weight")
    assert known_banks(weight, [LoopLevel("n", 4, 2, False)], 0, 2) == 2
    assert known_banks(weight, [LoopLevel("n", 4, 2, False)], 0, 4) == 2, "of four banks a copy has one of two"
    assert known_banks(weight, [LoopLevel("n", 8, 1, False)], 0, 4) == 1
    assert known_banks(weight, [LoopLevel("m", 6, 1, False)], 0, 4) == 4, "rows do not move it"


def test_an_array_has_the_banks_of_the_stage_with_the_most_copies() -> None:
    program = loop_program(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), torch.randn(4))
    first, second = program.stages
    middle = first.writes[0].array
    design = partitioned(
        HlsDesign(program, {first.name: StageDirectives(unroll={"n": 2}),
                            second.name: StageDirectives(unroll={"k": 4})})
    )  # fmt: skip
    assert design.banks(middle) == (4,)
    assert design.banks(first.reads[0].array) == (1,)


def test_copies_share_banks_where_two_ports_serve_them() -> None:
    program = loop_program(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)), torch.randn(16, 4))
    first, second = program.stages
    middle = first.writes[0].array
    stages = {first.name: StageDirectives(unroll={"n": 8}), second.name: StageDirectives(unroll={"k": 4})}
    apart, shared = (partitioned(HlsDesign(program, stages), shared=s) for s in (False, True))
    assert (apart.banks(middle), shared.banks(middle)) == ((1, 8), (1, 4))
    for design in (apart, shared):
        for stage in program.stages:
            plan = schedule(stage, design.of(stage))
            for use in (*stage.reads, *stage.writes):
                assert crowding([use], plan, design.banks(use.array), program.arrays[use.array].shape) <= PORTS


def test_a_block_is_held_for_every_stage_between_maker_and_reader() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.c(self.b(y).relu()) * y

    program = loop_program(Residual(), torch.randn(4))
    held = HlsDesign(program, dataflow=True).depths()
    assert sorted(held.values()) == [2, 2, 3]
    assert set(HlsDesign(program).depths().values()) == {1}
