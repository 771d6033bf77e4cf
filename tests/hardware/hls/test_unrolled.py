"""Unrolled engines: the model bit for bit, a result a cycle, and no multipliers; where da4ml and the tools are."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from hasten.errors import HastenError
from hasten.hardware.hls import unrolled
from hasten.hardware.hls.engines import (
    EngineDesign,
    LayerNumbers,
    dense_design,
    engine_outputs,
    random_numbers,
    read_design,
)
from hasten.hardware.hls.synthesis import simulate_verilog, synthesise_verilog
from hasten.hardware.hls.unrolled import unrolled_circuit
from hasten.hardware.hls.verilog import TOP

needs_iverilog = pytest.mark.skipif(shutil.which("iverilog") is None, reason="the Debian package iverilog is missing")
needs_yosys = pytest.mark.skipif(shutil.which("yosys") is None, reason="the Debian package yosys is missing")


@pytest.fixture
def da4ml() -> None:
    pytest.importorskip("da4ml", reason="the extra [da4ml] is not installed")


def random_inputs(design: EngineDesign, count: int) -> torch.Tensor:
    half = 1 << (design.bits - 1)
    drawn = torch.randint(-half, half, (count, design.given), generator=torch.Generator().manual_seed(1))
    drawn[0], drawn[1] = -half, half - 1
    return drawn


@needs_iverilog
@pytest.mark.usefixtures("da4ml")
@pytest.mark.parametrize(
    "text",
    [
        "6 bits; dense 8 4 /8 relu; dense 4 3 /4 linear",
        "4 bits; conv 1x6x2 1x3 +1 3 /6 relu; dense 12 2 /12 linear",
        "5 bits; conv 3x4x1 2x2 +2 2 /4 linear",
        "2 bits; dense 3 2 /3 relu",
        "22 bits; dense 5 4 /5 relu; dense 4 3 /4 linear",
        "16 bits; dense 4 4 /4 relu; dense 4 3 /4 relu; dense 3 3 /3 relu; dense 3 2 /3 linear",
    ],
)
@pytest.mark.parametrize("adders", [1, 4])
def test_it_is_the_model_bit_for_bit_and_gives_a_result_a_cycle(text: str, adders: int) -> None:
    design = read_design(text)
    numbers, x = random_numbers(design, 3), random_inputs(design, 12)
    circuit = unrolled_circuit(design, numbers, adders_in_a_row=adders)
    assert "multiplier" not in circuit.source
    ran = simulate_verilog(circuit.source, design, x, 1000)
    assert torch.equal(ran.outputs, engine_outputs(design, numbers, x))
    assert (ran.cycles, ran.interval) == (circuit.cycles, 1)


@needs_iverilog
@pytest.mark.usefixtures("da4ml")
def test_results_and_inputs_that_do_not_matter() -> None:
    """A result that is always the same, one that is always even, an input that nothing reads, numbers out of range."""
    weight = np.array([[0, 0, 0], [8, 0, 16], [0, 0, 0], [-31, 0, 31]], dtype=np.int64)
    first = LayerNumbers(weight, np.array([5, 0, 0, -3], dtype=np.int64), 2)
    after = LayerNumbers(np.array([[1, 2, 3, 4], [9, -5, 0, 7]], dtype=np.int64), np.array([1, -2], dtype=np.int64), 3)
    for widths, numbers in (((3, 4), [first]), ((3, 4, 2), [first, after])):
        design = dense_design(widths, 6, 1)
        x = random_inputs(design, 30)
        circuit = unrolled_circuit(design, numbers)
        ran = simulate_verilog(circuit.source, design, x, 1000)
        assert torch.equal(ran.outputs, engine_outputs(design, numbers, x))
    with pytest.raises(HastenError, match=r"layer 0 of .* gives one result whatever its input"):
        unrolled_circuit(design, [LayerNumbers(0 * weight, first.bias, 2), after])
    with pytest.raises(HastenError, match="allow at least 1"):
        unrolled_circuit(design, numbers, adders_in_a_row=0)


@needs_iverilog
@pytest.mark.usefixtures("da4ml")
def test_it_waits_while_nobody_takes_its_results() -> None:
    design = read_design("4 bits; dense 4 2 /4 relu; dense 2 2 /2 linear")
    numbers, x = random_numbers(design, 0), random_inputs(design, 9)
    source = unrolled_circuit(design, numbers, adders_in_a_row=1).source
    # Takes a result in every third cycle alone.
    slow = source.replace(f"module {TOP} (", "module inner (") + (
        f"module {TOP} (input wire clk, input wire rst, input wire in_valid, output wire in_ready,\n"
        "  input wire [15:0] x, output wire out_valid, input wire out_ready, output wire [7:0] y);\n"
        "  reg [1:0] turn; always @(posedge clk) turn <= rst || turn == 2 ? 0 : turn + 1;\n"
        "  wire some; assign out_valid = some && turn == 0;\n"
        "  inner i (.clk(clk), .rst(rst), .in_valid(in_valid), .in_ready(in_ready), .x(x),\n"
        "    .out_valid(some), .out_ready(out_ready && turn == 0), .y(y));\nendmodule\n"
    )
    ran = simulate_verilog(slow, design, x, 1000)
    assert torch.equal(ran.outputs, engine_outputs(design, numbers, x))
    assert ran.interval == 3


@needs_yosys
@pytest.mark.usefixtures("da4ml")
def test_it_is_synthesised_without_multipliers() -> None:
    design = read_design("6 bits; dense 8 4 /8 relu; dense 4 2 /4 linear")
    circuit = unrolled_circuit(design, random_numbers(design))
    report = synthesise_verilog(circuit.source, "unrolled", seconds=120)
    assert (report.dsp, report.bram) == (0, 0)
    assert report.lut > 50
    assert report.ff > 6 * 8


def test_without_da4ml_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "da4ml", None)
    design = read_design("4 bits; dense 4 2 /4 relu")
    with pytest.raises(HastenError, match=r"pip install 'hasten\[da4ml\]'"):
        unrolled.unrolled_circuit(design, random_numbers(design))
