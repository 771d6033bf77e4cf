"""The estimator of circuits: its formulas, against counting, and against designs that were really synthesised."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from hasten.cost.chips.hls import OPERATORS, HlsCost, design_cost, operator_counts, stage_cost
from hasten.cost.chips.hls_simulation import count_dataflow, count_stage
from hasten.cost.chips.published_syntheses import SYNTHESES
from hasten.errors import HastenError
from hasten.hardware.chips.fpga_board import RESOURCES, fpga_board
from hasten.hardware.hls.directives import HlsDesign, StageDirectives, divisors, known_banks, partitioned, schedule
from hasten.hardware.hls.reuse import nearest_reuse, valid_reuse
from hasten.search.codesign.hls import parallelized, reused
from hasten.search.codesign.hls_comparison import dense, published_error
from hasten.workload.arithmetic import ACC, const, read
from hasten.workload.loops import LoopProgram, loop_program

BOARD = fpga_board("u280")


class Doubled(nn.Module):
    """N elements, each by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def elements(n: int) -> LoopProgram:
    return loop_program(Doubled(), torch.zeros(n))


def three_layers() -> LoopProgram:
    return loop_program(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)),
                        torch.zeros(16, 32))  # fmt: skip


def test_a_pipeline_of_n_iterations_takes_n_less_1_and_its_depth() -> None:
    program = elements(100)
    (stage,) = program.stages
    cost = stage_cost(stage, HlsDesign(program))
    assert (cost.interval, cost.trips) == (1, 100)
    assert cost.latency == 100 - 1 + cost.depth
    assert cost.depth == 1 + OPERATORS["fp32"]["mul"].latency + 1, "read, multiply, write"
    slow = stage_cost(stage, HlsDesign(program, {stage.name: StageDirectives(interval=3)}))
    assert slow.latency == 99 * 3 + slow.depth
    none = stage_cost(stage, HlsDesign(program, {stage.name: StageDirectives(pipeline=False)}))
    assert none.latency == 100 * none.depth


def test_copies_divide_the_iterations_and_multiply_the_units_which_an_interval_shares() -> None:
    program = elements(96)
    (stage,) = program.stages

    def cost(copies: int, interval: int = 1) -> tuple[int, int]:
        directives = {stage.name: StageDirectives(unroll={"d0": copies}, interval=interval)}
        found = stage_cost(stage, partitioned(HlsDesign(program, directives)))
        return found.trips, found.dsp

    each = OPERATORS["fp32"]["mul"].dsp
    assert cost(1) == (96, each)
    assert cost(8) == (12, 8 * each)
    assert cost(8, 2) == (12, 4 * each)
    assert cost(8, 3) == (12, 3 * each)
    alone = HlsDesign(program, {stage.name: StageDirectives(unroll={"d0": 8}, pipeline=False)})
    assert stage_cost(stage, partitioned(alone)).dsp == 8 * each, "what is no pipeline shares no units"
    assert stage_cost(stage, alone).depth == stage_cost(stage, partitioned(alone)).depth + 3, "one bank, read by twos"


def test_the_interval_is_what_folding_and_banks_allow() -> None:
    program = loop_program(nn.Linear(64, 32), torch.zeros(16, 64))
    (stage,) = program.stages
    add = OPERATORS["fp32"]["add"].latency
    innermost = stage_cost(stage, HlsDesign(program))
    assert (innermost.interval, innermost.bound) == (add, "fold"), "the same sum in every iteration"
    apart = stage_cost(stage, HlsDesign(program, {stage.name: StageDirectives(("k",), {"n": 8, "m": 1})}))
    assert (apart.interval, apart.bound) == (1, "directive"), "eight sums in turn"
    near = stage_cost(stage, HlsDesign(program, {stage.name: StageDirectives(("k",), {"n": 2, "m": 1})}))
    assert near.interval == math.ceil((add + 1) / 2)
    crowded = HlsDesign(program, {stage.name: StageDirectives(("k",), {"m": 1}, {"k": 8})})
    assert (stage_cost(stage, crowded).interval, stage_cost(stage, crowded).bound) == (4, "banks")
    assert stage_cost(stage, partitioned(crowded)).interval == 1


def test_banks_that_are_no_multiples_cost_an_interval() -> None:
    program = three_layers()
    first, second, _ = program.stages
    shared = first.writes[0].array

    def interval(made: int, read_: int) -> int:
        stages = {first.name: StageDirectives(("k",), {}, {"n": made}),
                  second.name: StageDirectives(("k", "m"), {"m": 8}, {"k": read_})}  # fmt: skip
        design = partitioned(HlsDesign(program, stages))
        assert design.banks(shared)[-1] == max(made, read_)
        return stage_cost(first, design).interval

    assert interval(8, 16) == 1
    assert interval(16, 16) == 1
    assert interval(4, 64) == 1
    odd = loop_program(nn.Sequential(nn.Linear(8, 48), nn.Linear(48, 8)), torch.zeros(8, 8))
    one, two = odd.stages
    stages = {one.name: StageDirectives(("k",), {}, {"n": 16}), two.name: StageDirectives(unroll={"k": 24})}
    design = partitioned(HlsDesign(odd, stages))
    assert design.banks(one.writes[0].array)[1] == 24
    assert stage_cost(one, design).interval == 1, "16 copies in 24 banks are told apart by 8: two in each, two ports"
    stages[one.name] = StageDirectives(("k",), {}, {"n": 12})
    stages[two.name] = StageDirectives(unroll={"k": 16})
    assert stage_cost(one, partitioned(HlsDesign(odd, stages))).interval == 2, "12 in 16: by 4, three in each"


def test_twice_the_copies_everywhere_halve_the_interval() -> None:
    program = three_layers()

    def cost(copies: int) -> HlsCost:
        stages = {s.name: StageDirectives(("k",), {"m": 1}, {"n": copies}) for s in program.stages}
        return design_cost(partitioned(HlsDesign(program, stages, dataflow=True)), BOARD)

    one, two, four = cost(1), cost(2), cost(4)
    assert one.interval / two.interval == pytest.approx(2, rel=0.01)
    assert two.interval / four.interval == pytest.approx(2, rel=0.01)
    assert one.dsp * 4 == four.dsp


def test_a_dataflow_takes_inputs_as_fast_as_its_slowest_stage_and_a_sequence_as_all_together() -> None:
    program = three_layers()
    flow, sequence = (design_cost(HlsDesign(program, dataflow=d), BOARD) for d in (True, False))
    latencies = [c.latency for c in flow.stages.values()]
    assert flow.interval == max(latencies)
    assert flow.cycles == sum(latencies), "the stages of a chain follow each other"
    assert sequence.interval == sequence.cycles == sum(latencies) >= flow.interval
    assert flow.stages[flow.bound].latency == flow.interval
    assert flow.throughput == pytest.approx(BOARD.clock / flow.interval)
    assert flow.bram18 > sequence.bram18, "ping and pong"


def test_memories_take_whole_blocks_banks_and_small_ones_none() -> None:
    program = elements(4096)
    (stage,) = program.stages
    plain = design_cost(HlsDesign(program), BOARD)
    assert plain.bram18 == 2 * math.ceil(4096 * 32 / 18432)
    split = design_cost(partitioned(HlsDesign(program, {stage.name: StageDirectives(unroll={"d0": 32})})), BOARD)
    assert split.bram18 == 2 * 32, "a bank of 4 Kb takes a block of its own"
    small = design_cost(HlsDesign(elements(32)), BOARD)
    assert small.bram18 == 0, "1 Kb is made of lookup tables"
    assert set(plain.used(BOARD)) == set(RESOURCES)
    assert plain.fits(BOARD)
    assert not design_cost(HlsDesign(elements(10**7)), BOARD).fits(BOARD)


def test_units_of_an_expression() -> None:
    gate = ("div", read(0), ("add", const(1), ("exp", ("neg", read(0)))))
    assert operator_counts(gate, 3) == {"div": 3, "add": 3, "exp": 3}
    assert operator_counts(("sub", ACC, ("min", read(0), const(1)))) == {"add": 1, "max": 1}


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(HastenError, match="no number format 'fp7'"):
        design_cost(HlsDesign(elements(8), number="fp7"), BOARD)


@pytest.mark.parametrize("seed", range(8))
def test_estimated_cycles_are_those_counted_iteration_by_iteration(seed: int) -> None:
    """Equal where each copy keeps to its banks; elsewhere a schedule that is made once cannot know, and waits."""
    rng = np.random.default_rng(seed)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 12))
    program = loop_program(net, torch.zeros(1, 2, 8, 8))
    stages = {}
    for stage in program.stages:
        tile = {r: int(rng.choice(divisors(n))) for r, n in stage.loops}
        unroll = {r: int(rng.choice([d for d in divisors(t) if d <= 4])) for r, t in tile.items()}
        order = tuple(map(str, rng.permutation(list(stage.sizes))))
        stages[stage.name] = StageDirectives(order, tile, unroll, interval=int(rng.integers(1, 3)))
    design = partitioned(HlsDesign(program, stages))
    for stage in program.stages:
        cost, count = stage_cost(stage, design), count_stage(stage, design)
        assert cost.trips == count.trips
        assert cost.interval >= count.interval
        plan = schedule(stage, stages[stage.name])
        steady = all(
            known_banks(u, plan.levels, d, n) == n and u.outside is None
            for u in (*stage.reads, *stage.writes)
            for d, n in enumerate(design.banks(u.array))
        )
        # What is read once at a sum's end has a place in every iteration's schedule.
        if steady and cost.bound != "banks":
            assert cost.interval == count.interval


def test_successive_inputs_come_out_at_the_estimated_interval() -> None:
    block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True).eval()
    program = loop_program(block, torch.zeros(1, 8, 16))
    design = parallelized(program, 8)
    cost = design_cost(design, BOARD)
    latencies = {n: c.latency for n, c in cost.stages.items()}
    count = count_dataflow(program, latencies, design.depths())
    assert (count.first, count.interval) == (cost.cycles, cost.interval)
    starved = count_dataflow(program, latencies, dict.fromkeys(design.depths(), 2))
    assert starved.interval > count.interval, "two blocks beside a longer way make all wait"


def test_valid_reuse_factors_are_the_published_ones() -> None:
    assert {832, 1248, 1664, 2496, 4992} <= set(valid_reuse(104, 48))
    for n, m in itertools.product(range(1, 13), repeat=2):
        by_rule = [r for r in range(1, n * m + 1) if n * m % r == 0 and (r % n == 0 if r >= n else n * m // r % m == 0)]
        assert valid_reuse(n, m) == by_rule
    assert valid_reuse(4096, 11008)[-1] == 4096 * 11008
    for sizes in ((0, 4), (4, 0), (-1, 4)):
        with pytest.raises(HastenError, match="multiplies nothing"):
            nearest_reuse(*sizes, 1)
    assert [nearest_reuse(104, 48, r) for r in (1024, 2047, 4093)] == [832, 1664, 4992]


def test_published_syntheses_are_met_in_cycles_and_dsp_slices() -> None:
    """Twelve designs of hls4ml: what the formulas say is right; lookup tables and flip-flops are not claimed."""
    error = published_error()
    assert error.dsp == (12, 12)
    assert error.cycles < 0.006
    row = SYNTHESES[2]
    program = dense(row.widths)
    trips = [c.trips for c in design_cost(reused(program, row.reuse, "fixed8"), BOARD).stages.values()]
    assert sum(trips) == row.cycles - (2 * len(trips) - 1), "the published rule: all reuses, and 2 a layer less 1"
