"""HIDA's rule, the space of directives for every sampler, and what both find."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hasten.cost.chips.hls import design_cost, stage_cost
from hasten.errors import HastenError
from hasten.hardware.chips.fpga_board import FpgaBoard, fpga_board
from hasten.hardware.hls.directives import HlsDesign, partitioned, schedule, wanted_banks
from hasten.search import Study
from hasten.search.codesign.hls import (
    design_of,
    explore,
    hidden,
    hls_problem,
    naive,
    parallelized,
    point_of,
    reused,
    space,
    tiled,
)
from hasten.search.codesign.hls_comparison import compare
from hasten.spaces.hls import program_of
from hasten.workload.loops import LoopProgram, loop_program

BOARD = fpga_board("zu3eg")


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(),
                         nn.Flatten(), nn.Linear(288, 10))  # fmt: skip


@pytest.fixture(scope="module")
def program() -> LoopProgram:
    return loop_program(network(), torch.zeros(1, 1, 16, 16), name="small")


def test_copies_are_handed_out_in_proportion_to_work(program: LoopProgram) -> None:
    design = parallelized(program, 64)
    work = sum(s.points for s in program.stages)
    for stage in program.stages:
        assert design.of(stage).copies <= 1 + 64 * stage.points // work
    equal = parallelized(program, 64, balanced=False)
    assert max(equal.of(s).copies for s in program.stages) <= 64 // len(program.stages)
    most = max(program.stages, key=lambda s: s.points)
    assert design.of(most).copies > equal.of(most).copies
    with pytest.raises(HastenError, match="at least 1 copy"):
        parallelized(program, 0)


def test_neighbours_take_multiples_of_one_anothers_banks(program: LoopProgram) -> None:
    for copies in (6, 24, 60):
        design = parallelized(program, copies)
        wanted: dict[str, list[tuple[int, ...]]] = {}
        for stage in program.stages:
            plan = schedule(stage, design.of(stage))
            for use in (*stage.reads, *stage.writes):
                wanted.setdefault(use.array, []).append(wanted_banks(use, plan, program.arrays[use.array].shape))
        for found in wanted.values():
            for dims in zip(*found, strict=True):
                assert max(dims) % min(dims) == 0
        together = design_cost(design, BOARD).stages
        for stage in program.stages:
            alone = partitioned(HlsDesign(program, {stage.name: design.of(stage)}))
            assert together[stage.name].interval == stage_cost(stage, alone).interval, "none waits for a neighbour's"


def test_no_pipeline_waits_for_its_sums(program: LoopProgram) -> None:
    for stage in program.stages:
        if not stage.reduced:
            continue
        plan = schedule(stage, hidden(stage, {}))
        assert plan.distance >= 5 or stage.name.startswith("s2"), "a largest value is there after two cycles"
        assert schedule(stage, tiled(stage, {}, 1)).distance == 1
    cost = design_cost(parallelized(program, 1), BOARD)
    assert all(c.interval == 1 for c in cost.stages.values())


def test_balanced_dataflow_beats_equal_copies_and_both_beat_none(program: LoopProgram) -> None:
    plain, pipelined = naive(program, BOARD, pipeline=False), naive(program, BOARD)
    equal, balanced = explore(program, BOARD, balanced=False, aware=False), explore(program, BOARD)
    assert plain.cost.interval > pipelined.cost.interval > equal.cost.interval >= balanced.cost.interval
    assert balanced.cost.fits(BOARD)
    assert pipelined.cost.interval / balanced.cost.interval > 3


def test_more_of_a_board_is_never_slower(program: LoopProgram) -> None:
    assert explore(program, fpga_board("u280")).cost.interval <= explore(program, BOARD).cost.interval
    tiny = FpgaBoard(name="tiny", title="", dsp=1, bram18=1, lut=100, ff=100, clock=1e8, source="")
    with pytest.raises(HastenError, match="does not fit tiny"):
        explore(program, tiny)


def test_every_point_of_the_space_is_a_design(program: LoopProgram) -> None:
    points = space(program)
    for seed in range(30):
        params = points.sample(seed)
        design = design_of(program, params)
        assert points.validate(params) == params
        assert design_cost(design, BOARD).interval > 0
    rule = parallelized(program, 16)
    found = point_of(rule)
    assert points.validate(found) == found
    again = design_of(program, found)
    assert all(again.of(stage).unroll == rule.of(stage).unroll for stage in program.stages)
    assert design_cost(again, BOARD).interval == design_cost(rule, BOARD).interval


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "genetic", "front"])
def test_samplers_search_it(program: LoopProgram, sampler: str) -> None:
    problem = hls_problem(program, BOARD)
    result = Study().run(problem, sampler=sampler, trials=20, seed=0)
    assert len(result.trials) == 20
    assert all(t.values["interval"] > 0 for t in result.trials)


def test_the_search_of_neighbours_goes_on_from_a_plain_design_where_few_points_fit() -> None:
    program = program_of("lenet")
    problem, plain = hls_problem(program, BOARD), naive(program, BOARD)
    start = [point_of(plain.design)]
    found = {
        sampler: Study().run(problem, sampler=sampler, trials=80, seed=0, first=start).best("interval")
        for sampler in ("front", "random")
    }
    cycles = {sampler: best.values["interval"] * BOARD.clock for sampler, best in found.items()}
    assert cycles["front"] < plain.cost.interval / 3
    assert cycles["front"] < cycles["random"]


def test_an_unknown_format_is_refused_before_anything_is_searched(program: LoopProgram) -> None:
    with pytest.raises(HastenError, match="no number format"):
        hls_problem(program, BOARD, number="int3")


def test_reuse_is_of_dense_layers_alone(program: LoopProgram) -> None:
    with pytest.raises(HastenError, match="is no dense layer"):
        reused(program, 8)


def test_a_comparison_runs_the_code_and_counts_the_cycles() -> None:
    torch.manual_seed(0)
    pytest.importorskip("hasten.hardware.hls.running").compiler()
    seen = compare(network().eval(), torch.randn(1, 1, 16, 16), BOARD, most=64)
    assert seen.difference < 1e-5
    assert seen.gain("pipelined") > 3
    assert seen.gain("equal") >= 1
    stages, exact = seen.stages
    assert stages >= 12
    assert exact == stages
    assert (seen.lower, seen.upper) == (1.0, 1.0)
    assert seen.right
    assert seen.interval == pytest.approx(1.0)
