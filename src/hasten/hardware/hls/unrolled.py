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
from typing import Any, NamedTuple

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
            result of a layer is the same whatever its input.
    """
    check_numbers(design, numbers)
    if adders_in_a_row < 1:
        raise HastenError(f"a stage of {adders_in_a_row} adders computes nothing: allow at least 1")
    try:
        import da4ml
        from da4ml.codegen import VerilogModel
        from da4ml.trace import comb_trace, to_pipeline
    except ImportError:
        raise MissingExtraError("da4ml", "da4ml") from None
    half = 1 << (design.bits - 1)
    ranges: list[Any] = [(-half, half - 1, 1)] * design.given
    stages: list[_Stage] = []
    texts: list[str] = []
    parts: dict[str, str] = {}
    adder_bits = 0.0
    # Each layer by itself: over several, da4ml would lose the low bits of constants.
    for number, (layer, n) in enumerate(zip(design.layers, numbers, strict=True)):
        given = _variables(ranges)
        traced = comb_trace(given, _results(layer, n, design.bits, given))
        if not any(op.opcode == -1 for op in traced.ops):
            raise HastenError(f"layer {number} of {design} gives one result whatever its input is: leave it out")
        pipeline = to_pipeline(traced, adders_in_a_row, verbose=False)
        name, count = f"layer_{number}", len(pipeline.solutions)
        with tempfile.TemporaryDirectory() as folder:
            VerilogModel(pipeline, name, folder).write()
            sources = Path(folder) / "src"
            texts += [read_text(sources / f"{name}_stage{i}.v", "da4ml's Verilog", _MOST_TEXT) for i in range(count)]
            found = sorted((sources / "static").glob("*.v"))
            parts |= {path.stem: read_text(path, "da4ml's Verilog", _MOST_TEXT) for path in found}
        stages += [
            _Stage(f"{name}_stage{i}", _widths(s.inp_qint), _widths(s.out_qint))
            for i, s in enumerate(pipeline.solutions)
        ]
        ranges = pipeline.out_qint
        adder_bits += float(traced.cost)
    used = [text for name, text in parts.items() if any(re.search(rf"\b{name} #", stage) for stage in texts)]
    modules = re.sub(r"`timescale.*\n", "", "\n".join([*used, *texts]))
    return UnrolledCircuit(
        f"// {design}, unrolled\n{modules}\n" + "\n".join(_top(design, stages)) + "\n",
        len(stages),
        adder_bits,
        f"da4ml {da4ml.__version__}",
    )


class _Stage(NamedTuple):
    """A module without registers, and the numbers that it takes and gives: see `_widths`."""

    module: str
    given: list[_Width]
    made: list[_Width]


def _variables(ranges: Sequence[Any]) -> NDArray[Any]:
    from da4ml.trace import FixedVariable, HWConfig

    hardware = HWConfig(1, -1, -1)  # an adder is a unit of delay, however wide
    return np.array([FixedVariable(low, high, step, hwconf=hardware) for low, high, step in ranges])


def _results(layer: EngineLayer, n: LayerNumbers, bits: int, x: NDArray[Any]) -> NDArray[Any]:
    """A layer as `engine_outputs` computes it, of one input that is not known: da4ml's variables instead of numbers."""
    from da4ml.trace import FixedVariableArray, HWConfig

    rows = FixedVariableArray(x[_windows(layer)], hwconf=HWConfig(1, -1, -1))
    sums = (rows @ n.weight.T.astype(np.float64))._vars
    shifted = [v * 2.0**-n.shift for v in sums.ravel()]
    whole = np.array([v.quantize(1, _WIDE, 0) for v in shifted]).reshape(sums.shape) + n.bias.astype(np.float64)
    signed = layer.activation == "linear"
    return np.array([v.quantize(signed, bits - 1, 0, "SAT") for v in whole.ravel()])


def _windows(layer: EngineLayer) -> NDArray[np.int64]:
    """(positions, taps): which inputs each position takes."""
    (h, w), (kh, kw), s = layer.map, layer.kernel, layer.stride
    places = np.arange(layer.given).reshape(h, w, layer.inputs)
    seen = np.lib.stride_tricks.sliding_window_view(places, (kh, kw), (0, 1))[::s, ::s]
    return np.ascontiguousarray(seen.transpose(0, 1, 3, 4, 2)).reshape(layer.positions, layer.taps)


def _top(design: EngineDesign, stages: Sequence[_Stage]) -> list[str]:
    """Registers before, between and behind the stages, which stand still while a result waits to be taken."""
    bits, count = design.bits, len(stages)
    whole = [_Width(bits, 0, True)] * design.given
    at, results = 0, []
    for width, zeros, signed in stages[-1].made:
        top = f"held_{count}[{at + width - 1}]" if signed and width else "1'b0"
        pieces = [f"{{{bits - width - zeros}{{{top}}}}}"] if bits > width + zeros else []
        pieces += [f"held_{count}[{at + width - 1}:{at}]"] if width else []
        pieces += [f"{zeros}'b0"] if zeros else []
        results.append(f"{{{', '.join(pieces)}}}")
        at += width
    lines = module_ports(TOP, design.given * bits, design.results * bits, register=False)
    lines.append(f"  reg [{count}:0] valid;")
    moves = [f"      held_0 <= {_taken('x', whole, stages[0].given)};"]
    for i, stage in enumerate(stages):
        after = stages[i + 1].given if i + 1 < count else stage.made
        moves.append(f"      held_{i + 1} <= {_taken(f'made_{i}', stage.made, after)};")
        lines += [f"  reg [{_total(stage.given) - 1}:0] held_{i};", f"  wire [{_total(stage.made) - 1}:0] made_{i};"]
        lines.append(f"  {stage.module} stage_{i} (.model_inp(held_{i}), .model_out(made_{i}));")
    return [
        *lines,
        f"  reg [{_total(stages[-1].made) - 1}:0] held_{count};",
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


def _total(widths: Sequence[_Width]) -> int:
    return sum(w.bits for w in widths)


def _taken(name: str, there: Sequence[_Width], wanted: Sequence[_Width]) -> str:
    """Of numbers side by side those that are wanted, which have as many bits there."""
    at, pieces = 0, []
    for width, other in zip(there, wanted, strict=True):
        if other.bits:
            assert other == width, "a number has another range where it is read"
            pieces.append(f"{name}[{at + width.bits - 1}:{at}]")
        at += width.bits
    return f"{{{', '.join(reversed(pieces))}}}"


class _Width(NamedTuple):
    """Bits of a number that are wired, zeros below them, whether the highest is a sign."""

    bits: int
    zeros: int
    signed: bool


def _widths(intervals: Sequence[Any]) -> list[_Width]:
    from da4ml.types import minimal_kif

    found = []
    for interval in intervals:
        signed, whole, fraction = minimal_kif(interval)
        found.append(_Width(int(signed + whole + fraction), int(-fraction), bool(signed)))
    return found


__all__ = ["UnrolledCircuit", "unrolled_circuit"]
