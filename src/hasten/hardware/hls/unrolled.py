"""Engines that are unrolled: every weight a constant in sums of shifted inputs, a result in every cycle.

The sums are found by da4ml (extra ``da4ml``; distributed arithmetic, arXiv 2507.04535), which shares parts of them.
What is computed is what the engines with a reuse factor compute (`hasten.hardware.hls.engines`), bit for bit, by
modules with the same ports. There are no multipliers, and reuse factors play no part.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hasten.errors import HastenError, MissingExtraError
from hasten.files import read_text
from hasten.hardware.hls.engines import EngineDesign, EngineLayer, LayerNumbers, check_numbers
from hasten.hardware.hls.verilog import TOP, module_ports

_WIDE = 60  # bits before the point that no sum passes
_MOST_TEXT = 1 << 28


@dataclass(frozen=True)
class UnrolledCircuit:
    """A circuit without multipliers.

    Args:
        source: Verilog, all modules; the top one is `TOP`, with the ports of `emit_verilog`'s.
        stages: of its pipeline, between registers.
        adder_bits: of all adders together, as da4ml counts them: lookup tables, nearly.
        tool: da4ml with its version.
    """

    source: str
    stages: int
    adder_bits: float
    tool: str

    @property
    def cycles(self) -> int:
        """From taking an input until its result is there."""
        return self.stages + 1


def unrolled_circuit(
    design: EngineDesign, numbers: Sequence[LayerNumbers], *, adders_in_a_row: int = 3
) -> UnrolledCircuit:
    """The circuit of a design, unrolled.

    Args:
        design, numbers: as of `emit_verilog`; the reuse factors are not looked at.
        adders_in_a_row: at most, from register to register: more make fewer stages and a slower clock.

    Raises:
        HastenError: da4ml is not installed, the numbers are not those of the design, no adder is allowed, or every
            result is the same whatever the input.
    """
    check_numbers(design, numbers)
    if adders_in_a_row < 1:
        raise HastenError(f"a stage of {adders_in_a_row} adders computes nothing: allow at least 1")
    try:
        import da4ml
        from da4ml.codegen import VerilogModel
        from da4ml.trace import FixedVariable, HWConfig, comb_trace, to_pipeline
    except ImportError:
        raise MissingExtraError("da4ml", "da4ml") from None
    half = 1 << (design.bits - 1)
    hardware = HWConfig(1, -1, -1)  # an adder is a unit of delay, however wide
    inputs = np.array([FixedVariable(-half, half - 1, 1, hwconf=hardware) for _ in range(design.given)])
    traced = comb_trace(inputs, _results(design, numbers, inputs))
    if not any(op.opcode == -1 for op in traced.ops):
        raise HastenError(f"{design} gives one result whatever its input is: there is no circuit to make")
    pipeline = to_pipeline(traced, adders_in_a_row, verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        VerilogModel(pipeline, "unrolled", folder).write()
        sources, count = Path(folder) / "src", len(pipeline.solutions)
        stages = [read_text(sources / f"unrolled_stage{i}.v", "da4ml's Verilog", _MOST_TEXT) for i in range(count)]
        found = sorted((sources / "static").glob("*.v"))
        parts = {path.stem: read_text(path, "da4ml's Verilog", _MOST_TEXT) for path in found}
    used = [text for name, text in parts.items() if any(re.search(rf"\b{name} #", stage) for stage in stages)]
    modules = re.sub(r"`timescale.*\n", "", "\n".join([*used, *stages]))
    return UnrolledCircuit(
        f"// {design}, unrolled\n{modules}\n" + "\n".join(_top(design, pipeline)) + "\n",
        count,
        float(traced.cost),
        f"da4ml {da4ml.__version__}",
    )


def _results(design: EngineDesign, numbers: Sequence[LayerNumbers], x: NDArray[Any]) -> NDArray[Any]:
    """As `engine_outputs`, of one input that is not known: da4ml's variables instead of numbers."""
    from da4ml.trace import FixedVariableArray

    for layer, n in zip(design.layers, numbers, strict=True):
        rows = FixedVariableArray(x[_windows(layer)])
        sums = (rows @ n.weight.T.astype(np.float64))._vars
        shifted = [v * 2.0**-n.shift for v in sums.ravel()]
        whole = np.array([v.quantize(1, _WIDE, 0) for v in shifted]).reshape(sums.shape) + n.bias.astype(np.float64)
        signed = layer.activation == "linear"
        x = np.array([v.quantize(signed, design.bits - 1, 0, "SAT") for v in whole.ravel()])
    return x


def _windows(layer: EngineLayer) -> NDArray[np.int64]:
    """(positions, taps): which inputs each position takes."""
    (h, w), (kh, kw), s = layer.map, layer.kernel, layer.stride
    places = np.arange(layer.given).reshape(h, w, layer.inputs)
    seen = np.lib.stride_tricks.sliding_window_view(places, (kh, kw), (0, 1))[::s, ::s]
    return np.ascontiguousarray(seen.transpose(0, 1, 3, 4, 2)).reshape(layer.positions, layer.taps)


def _top(design: EngineDesign, pipeline: Any) -> list[str]:
    """Registers before, between and behind the stages, which stand still while a result waits to be taken."""
    bits, count = design.bits, len(pipeline.solutions)
    given, made = _widths(pipeline.inp_qint), _widths(pipeline.out_qint)
    packed = [f"x[{(i + 1) * bits - 1}:{i * bits}]" for i, (width, _, _) in enumerate(given) if width]
    between = [sum(width for width, _, _ in _widths(stage.out_qint)) for stage in pipeline.solutions]
    at, results = 0, []
    for width, zeros, signed in made:
        top = f"held_{count}[{at + width - 1}]" if signed and width else "1'b0"
        pieces = [f"{{{bits - width - zeros}{{{top}}}}}"] if bits > width + zeros else []
        pieces += [f"held_{count}[{at + width - 1}:{at}]"] if width else []
        pieces += [f"{zeros}'b0"] if zeros else []
        results.append(f"{{{', '.join(pieces)}}}")
        at += width
    lines = module_ports(TOP, design.given * bits, design.results * bits, register=False)
    lines += [f"  reg [{count}:0] valid;", f"  reg [{sum(w for w, _, _ in given) - 1}:0] held_0;"]
    for i, width in enumerate(between):
        lines += [f"  reg [{width - 1}:0] held_{i + 1};", f"  wire [{width - 1}:0] made_{i};"]
        lines.append(f"  unrolled_stage{i} stage_{i} (.model_inp(held_{i}), .model_out(made_{i}));")
    moves = [f"      held_0 <= {{{', '.join(reversed(packed))}}};"]
    moves += [f"      held_{i + 1} <= made_{i};" for i in range(count)]
    return [
        *lines,
        f"  wire moves = !valid[{count}] || out_ready;",
        "  assign in_ready = moves;",
        f"  assign out_valid = valid[{count}];",
        f"  assign y = {{{', '.join(reversed(results))}}};",
        "  always @(posedge clk)",
        "    if (rst) valid <= 0;",
        "    else if (moves) begin",
        f"      valid <= {{valid[{count - 1}:0], in_valid}};",
        *moves,
        "    end",
        "endmodule",
    ]


def _widths(intervals: Sequence[Any]) -> list[tuple[int, int, bool]]:
    """Of each number: bits that are wired, zeros below them, whether the highest is a sign."""
    from da4ml.types import minimal_kif

    found = []
    for interval in intervals:
        signed, whole, fraction = minimal_kif(interval)
        found.append((int(signed + whole + fraction), int(-fraction), bool(signed)))
    return found


__all__ = ["UnrolledCircuit", "unrolled_circuit"]
