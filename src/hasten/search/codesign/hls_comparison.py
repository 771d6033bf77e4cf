"""What a compiler for circuits gains, and how far its estimator is to be believed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import nn

from hasten.cost.chips.hls import BITS, design_cost, stage_cost
from hasten.cost.chips.hls_simulation import MOST_POINTS, count_dataflow, count_stage
from hasten.cost.chips.published_syntheses import SYNTHESES, Synthesis
from hasten.cost.chips.synthesised import TARGETS
from hasten.cost.estimator import AnalyticEstimator
from hasten.hardware.chips.fpga_board import FpgaBoard, fpga_board
from hasten.hardware.hls.engines import EngineDesign
from hasten.hardware.hls.running import run_design
from hasten.search.codesign.hls import Found, explore, naive, reused
from hasten.workload.loops import LoopProgram, loop_program


@dataclass(frozen=True)
class CompilerComparison:
    """A network on a board under four compilers.

    Args:
        board: what it had to fit.
        arms: ``plain`` (no directives), ``pipelined`` (what tools do unasked), ``equal`` (dataflow, the same number of
            copies for every stage, without regard to neighbours), ``balanced`` (HIDA's rule); each is the best that
            fits the board.
        difference: the greatest between the emitted code of ``balanced`` and the module, as a share of the greatest
            value.
        stages: of all arms, how many were walked through, and in how many of these the estimate of cycles is exact.
        lower, upper: the least and the greatest share of its estimate that a stage's count came to.
        interval: estimated interval of ``balanced`` over the one that successive inputs have.
    """

    board: FpgaBoard
    arms: dict[str, Found]
    difference: float
    stages: tuple[int, int]
    lower: float
    upper: float
    interval: float

    def gain(self, over: str, of: str = "balanced") -> float:
        """How many times as many inputs a second one arm takes as another."""
        return self.arms[over].cost.interval / self.arms[of].cost.interval

    @property
    def right(self) -> bool:
        """Whether the code computes what the module does, and estimates are as counted or, for few stages, above."""
        walked, exact = self.stages
        never_below = self.upper <= 1 and abs(self.interval - 1) < 0.01
        return self.difference < 1e-4 and never_below and exact >= 0.75 * walked

    def __str__(self) -> str:
        best, (walked, exact) = self.arms["balanced"].cost, self.stages
        name, share = max(best.used(self.board).items(), key=lambda used: used[1])
        return (
            f"an input every {best.interval:,} cycles with {share:.0%} of {name.upper()}, {self.gain('pipelined'):.1f}x"
            f" pipelines alone and {self.gain('equal'):.2f}x equal copies, the C++ within {self.difference:.0e} of"
            f" torch, cycles of {exact} of {walked} stages as counted (least {self.lower:.0%})"
        )


def compare(
    module: nn.Module, inputs: torch.Tensor, board: FpgaBoard, *, name: str = "net", most: int = 1 << 14
) -> CompilerComparison:
    """Compiles a network four ways, runs the best as plain C++, and counts what was estimated.

    Args:
        module, inputs: the network; its code is run on ``inputs``.
        board: that it shall fit.
        name: of the program.
        most: copies that are tried at most.

    Raises:
        HastenError: there is no C++ compiler, the network does not fit the board, or loops cannot say it.
    """
    program = loop_program(module, inputs, name=name)
    arms = {
        "plain": naive(program, board, pipeline=False),
        "pipelined": naive(program, board),
        "equal": explore(program, board, balanced=False, aware=False, most=most),
        "balanced": explore(program, board, most=most),
    }
    (made,) = run_design(arms["balanced"].design, module, inputs)
    with torch.no_grad():
        expected = module(inputs)
    difference = float((made - expected).abs().max() / expected.abs().max())
    pairs = [pair for name in ("pipelined", "equal", "balanced") for pair in counted(arms[name])]
    best = arms["balanced"]
    latencies = {n: c.latency for n, c in best.cost.stages.items()}
    flow = count_dataflow(program, latencies, best.design.depths())
    exact = sum(estimate == count for estimate, count in pairs)
    shares = [count / estimate for estimate, count in pairs] or [1.0]
    return CompilerComparison(
        board, arms, difference, (len(pairs), exact), min(shares), max(shares), best.cost.interval / flow.interval
    )


def counted(found: Found) -> list[tuple[int, int]]:
    """(estimated cycles, counted cycles) of each stage of a design that is small enough to walk through."""
    pairs = []
    for stage in found.design.program.stages:
        if stage.points <= MOST_POINTS and found.design.of(stage).pipeline:
            cost = stage_cost(stage, found.design)
            pairs.append((cost.latency, count_stage(stage, found.design).started + cost.depth))
    return pairs


@dataclass(frozen=True)
class PublishedError:
    """Estimates beside published syntheses.

    Args:
        cycles: the greatest relative error of the latency.
        dsp: designs whose DSP slices are exact, of all.
        lut, ff: medians of estimated over reported.
    """

    cycles: float
    dsp: tuple[int, int]
    lut: float
    ff: float

    @property
    def right(self) -> bool:
        """Whether DSP slices are exact, and cycles within 1 %."""
        return self.dsp[0] == self.dsp[1] and self.cycles < 0.01

    def __str__(self) -> str:
        return (
            f"of {self.dsp[1]} published syntheses {self.dsp[0]} met in DSP slices and all within {self.cycles:.1%} in"
            f" cycles, but {self.lut:.2f}x the LUTs and {self.ff:.2f}x the flip-flops"
        )


def published_error(rows: Sequence[Synthesis] = SYNTHESES) -> PublishedError:
    """How far estimates are from what tools reported for designs of dense layers."""
    board = fpga_board("u250")
    cycles, exact, lut, ff = [], 0, [], []
    for row in rows:
        number = next(n for n, bits in (("fixed6", 6), ("fixed8", 8), ("fixed16", 16)) if row.bits <= bits)
        cost = design_cost(reused(dense(row.widths), row.reuse, number), board)
        cycles.append(abs(cost.cycles - row.cycles) / row.cycles)
        exact += cost.dsp == row.dsp
        lut.append(cost.lut / row.lut)
        ff.append(cost.ff / row.ff)
    return PublishedError(max(cycles), (exact, len(rows)), median(lut), median(ff))


def dense(widths: Sequence[int]) -> LoopProgram:
    """Dense layers with ReLU between, of one input."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    with torch.device("meta"):
        return loop_program(nn.Sequential(*layers[:-1]), torch.zeros(widths[0]), name="dense")


def analytic_estimator(board: str = "u250") -> AnalyticEstimator[EngineDesign]:
    """The formulas of `hasten.cost.chips.hls` as an estimator of dense layers: what is expected of their C++.

    Args:
        board: of `hasten.hardware.chips.fpga_board.fpga_boards`.

    Raises:
        HastenError: an unknown board.
    """
    place = fpga_board(board)

    def formula(design: EngineDesign) -> dict[str, float]:
        number = next((n for n in ("fixed6", "fixed8", "fixed16") if BITS[n] >= design.bits), "fixed16")
        program = dense([design.given, *(layer.results for layer in design.layers)])
        cost = design_cost(reused(program, [layer.reuse for layer in design.layers], number), place)
        return {"lut": cost.lut, "ff": cost.ff, "dsp": cost.dsp, "bram": cost.bram18 / 2, "cycles": cost.cycles,
                "interval": cost.interval}  # fmt: skip

    return AnalyticEstimator(
        formula, TARGETS, lambda design: design.bits <= 16 and not any(layer.convolution for layer in design.layers)
    )
