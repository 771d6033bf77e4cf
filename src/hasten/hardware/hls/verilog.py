"""Engines of fixed-point layers as Verilog (IEEE 1364-2001), and a bench that counts their cycles.

Each layer holds its input, whose numbers turn past the multipliers; weights are words of a read-only memory, one a
cycle; products, sums and results are registered. Layers hand over by ``valid`` and ``ready``, so that each works on an
input of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hasten.hardware.hls.engines import EngineDesign, EngineLayer, LayerNumbers, check_numbers

TOP = "engine"
"""Name of the top module."""
BENCH = "bench"
"""Name of the module that drives it."""


def weight_words(layer: EngineLayer, weight: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> list[list[int]]:
    """The memory of a layer's weights: a word for each of its cycles, of (multipliers,) numbers.

    In cycle g * steps + i of a result, lane m sums output g * lanes + m, and its multiplier k takes input
    i * parallel + k.

    Args:
        weight: (outputs, taps).
    """
    lanes, parallel = layer.lanes, layer.parallel
    blocks = weight.reshape(layer.groups, lanes, layer.steps, parallel).transpose(0, 2, 1, 3)
    return [list(map(int, word)) for word in blocks.reshape(layer.reuse, lanes * parallel)]


def packed_word(numbers: Sequence[int], bits: int) -> int:
    """Signed numbers side by side, the first lowest.

    >>> hex(packed_word([1, -1, 2], 4))
    '0x2f1'
    """
    mask = (1 << bits) - 1
    return sum((n & mask) << bits * i for i, n in enumerate(numbers))


def _literal(numbers: Sequence[int], bits: int) -> str:
    return f"{len(numbers) * bits}'h{packed_word(numbers, bits):x}"


def _counter(count: int) -> int:
    """Bits of a counter from 0 to ``count - 1``."""
    return max(1, (count - 1).bit_length())


def emit_verilog(design: EngineDesign, numbers: Sequence[LayerNumbers]) -> str:
    """The circuit of a design: module `TOP` with ``clk``, ``rst``, ``in_valid``, ``in_ready``, ``x``, ``out_valid``,
    ``out_ready`` and ``y``; ``x`` and ``y`` are packed, their first number lowest.

    Raises:
        HastenError: numbers that are not those of the design.
    """
    check_numbers(design, numbers)
    lines = [f"// {design}"]
    for i, (layer, n) in enumerate(zip(design.layers, numbers, strict=True)):
        lines += _dense(f"dense_{i}" if layer.convolution else f"layer_{i}", layer, n, design.bits)
        if layer.convolution:
            lines += _convolution(f"layer_{i}", f"dense_{i}", layer, design.bits)
    return "\n".join([*lines, *_top(design)]) + "\n"


def module_ports(name: str, given: int, made: int, register: bool) -> list[str]:
    """The head of a module with the ports of `emit_verilog`'s, of ``given`` and ``made`` bits.

    Args:
        register: whether the module assigns its results in an ``always`` block.
    """
    kind = "reg" if register else "wire"
    return [
        f"module {name} (",
        "  input wire clk, input wire rst,",
        f"  input wire in_valid, output wire in_ready, input wire [{given - 1}:0] x,",
        f"  output {kind} out_valid, input wire out_ready, output {kind} [{made - 1}:0] y",
        ");",
    ]


def _dense(name: str, layer: EngineLayer, n: LayerNumbers, bits: int) -> list[str]:
    taps, reuse, lanes, parallel = layer.taps, layer.reuse, layer.lanes, layer.parallel
    groups, steps = layer.groups, layer.steps
    total = 2 * bits + max(1, (taps - 1).bit_length())
    count, inner, group = _counter(reuse), _counter(steps), _counter(groups)
    now = parallel * bits
    turned = f"{{held[{now - 1}:0], held[{taps * bits - 1}:{now}]}}" if parallel < taps else "held"
    half = 1 << (bits - 1)
    low = 0 if layer.activation == "relu" else -half
    lines = module_ports(name, taps * bits, layer.outputs * bits, register=True)
    lines += [
        "  reg busy, running;",
        f"  reg [{taps * bits - 1}:0] held;",
        f"  reg [{count - 1}:0] step;",
        f"  reg [{inner - 1}:0] inner;",
        f"  wire last = inner == {steps - 1};",
        "  assign in_ready = !busy;",
        "  always @(posedge clk)",
        "    if (rst) begin busy <= 0; running <= 0; end",
        "    else begin",
        "      if (in_valid && in_ready) begin",
        "        busy <= 1; running <= 1; held <= x; step <= 0; inner <= 0;",
        "      end else if (running) begin",
        f"        held <= {turned};",
        "        step <= step + 1;",
        "        inner <= last ? 0 : inner + 1;",
        f"        if (step == {reuse - 1}) running <= 0;",
        "      end",
        "      if (out_valid && out_ready) busy <= 0;",
        "    end",
        "  // Read.",
        f"  reg [{lanes * parallel * bits - 1}:0] word;",
        f"  reg [{parallel * bits - 1}:0] taken;",
        "  reg run1, first1, last1;",
    ]
    words = weight_words(layer, n.weight)
    if reuse == 1:
        fetch = f"word <= {_literal(words[0], bits)};"
    else:
        lines += [f"  reg [{lanes * parallel * bits - 1}:0] weights [0:{reuse - 1}];", "  initial begin"]
        lines += [f"    weights[{i}] = {_literal(word, bits)};" for i, word in enumerate(words)]
        lines.append("  end")
        fetch = "word <= weights[step];"
    lines += [
        "  always @(posedge clk) begin",
        f"    {fetch}",
        f"    taken <= held[{parallel * bits - 1}:0];",
        "    run1 <= running && !rst; first1 <= inner == 0; last1 <= last;",
        "  end",
        "  // Multiply.",
        "  reg run2, first2, last2;",
    ]
    for m in range(lanes):
        lines += [f"  reg signed [{2 * bits - 1}:0] p{m}_{k};" for k in range(parallel)]
    lines += ["  always @(posedge clk) begin", "    run2 <= run1 && !rst; first2 <= first1; last2 <= last1;"]
    for m in range(lanes):
        lines += [
            f"    p{m}_{k} <= $signed(word[{(m * parallel + k + 1) * bits - 1}:{(m * parallel + k) * bits}])"
            f" * $signed(taken[{(k + 1) * bits - 1}:{k * bits}]);"
            for k in range(parallel)
        ]
    lines += ["  end", "  // Add.", "  reg last3;"]
    for m in range(lanes):
        summed = " + ".join(f"p{m}_{k}" for k in range(parallel))
        lines += [f"  reg signed [{total - 1}:0] a{m};", f"  wire signed [{total - 1}:0] s{m} = {summed};"]
    lines += ["  always @(posedge clk) begin", "    last3 <= run2 && last2 && !rst;", "    if (run2) begin"]
    lines += [f"      a{m} <= first2 ? s{m} : a{m} + s{m};" for m in range(lanes)]
    lines += [
        "    end",
        "  end",
        "  // Settle: shift, bias, activation, range.",
        f"  function [{bits - 1}:0] settle;",
        f"    input signed [{total - 1}:0] sum;",
        f"    input signed [{bits - 1}:0] bias;",
        f"    reg signed [{total}:0] v;",
        "    begin",
        f"      v = (sum >>> {n.shift}) + bias;",
        f"      settle = v < {_signed(low, total)} ? {_signed(low, total)} :"
        f" v > {_signed(half - 1, total)} ? {_signed(half - 1, total)} : v;",
        "    end",
        "  endfunction",
    ]
    biases = n.bias.reshape(groups, lanes)
    lines.append(f"  reg [{group - 1}:0] group;")
    if groups == 1:
        lines.append(f"  wire [{lanes * bits - 1}:0] bias = {_literal(list(map(int, biases[0])), bits)};")
    else:
        lines += [f"  reg [{lanes * bits - 1}:0] bias;", "  always @*", "    case (group)"]
        lines += [f"      {g}: bias = {_literal(list(map(int, row)), bits)};" for g, row in enumerate(biases[:-1])]
        lines += [f"      default: bias = {_literal(list(map(int, biases[-1])), bits)};", "    endcase"]
    settled = ", ".join(f"settle(a{m}, bias[{(m + 1) * bits - 1}:{m * bits}])" for m in reversed(range(lanes)))
    kept = f", y[{layer.outputs * bits - 1}:{lanes * bits}]" if groups > 1 else ""
    return [
        *lines,
        "  always @(posedge clk)",
        "    if (rst) begin out_valid <= 0; group <= 0; end",
        "    else begin",
        "      if (last3) begin",
        f"        y <= {{{settled}{kept}}};",
        f"        group <= group == {groups - 1} ? 0 : group + 1;",
        f"        if (group == {groups - 1}) out_valid <= 1;",
        "      end",
        "      if (out_valid && out_ready) out_valid <= 0;",
        "    end",
        "endmodule",
        "",
    ]


def _signed(value: int, bits: int) -> str:
    return f"-{bits + 1}'sd{-value}" if value < 0 else f"{bits + 1}'sd{value}"


def _convolution(name: str, core: str, layer: EngineLayer, bits: int) -> list[str]:
    (_, width), (height, wide), (_, columns) = layer.map, layer.kernel, layer.made
    channels, positions = layer.inputs, layer.positions
    given, each = layer.given * bits, layer.outputs * bits
    # Within the map, a window's rows lie apart; the map moves down by a place, or to the next row.
    rows = [f"map[{(i * width + wide) * channels * bits - 1}:{i * width * channels * bits}]" for i in range(height)]
    place = layer.stride * channels * bits
    row = layer.stride * width * channels * bits - (columns - 1) * place
    count, across = _counter(positions), _counter(columns)
    kept = f"{{core_y, y[{layer.results * bits - 1}:{each}]}}" if positions > 1 else "core_y"
    return [
        *module_ports(name, given, layer.results * bits, register=True),
        "  reg busy, feeding;",
        f"  reg [{given - 1}:0] map;",
        f"  reg [{count - 1}:0] sent, settled;",
        f"  reg [{across - 1}:0] column;",
        "  wire core_ready, core_valid;",
        f"  wire [{each - 1}:0] core_y;",
        "  assign in_ready = !busy;",
        f"  {core} core (.clk(clk), .rst(rst), .in_valid(feeding), .in_ready(core_ready),",
        f"    .x({{{', '.join(reversed(rows))}}}), .out_valid(core_valid), .out_ready(1'b1), .y(core_y));",
        "  always @(posedge clk)",
        "    if (rst) begin busy <= 0; feeding <= 0; out_valid <= 0; end",
        "    else begin",
        "      if (in_valid && in_ready) begin",
        "        map <= x; busy <= 1; feeding <= 1; sent <= 0; settled <= 0; column <= 0;",
        "      end else begin",
        "        if (feeding && core_ready) begin",
        f"          map <= column == {columns - 1} ? map >> {row} : map >> {place};",
        f"          column <= column == {columns - 1} ? 0 : column + 1;",
        "          sent <= sent + 1;",
        f"          if (sent == {positions - 1}) feeding <= 0;",
        "        end",
        "        if (core_valid) begin",
        f"          y <= {kept};",
        "          settled <= settled + 1;",
        f"          if (settled == {positions - 1}) out_valid <= 1;",
        "        end",
        "      end",
        "      if (out_valid && out_ready) begin out_valid <= 0; busy <= 0; end",
        "    end",
        "endmodule",
        "",
    ]


def _top(design: EngineDesign) -> list[str]:
    lines = module_ports(TOP, design.given * design.bits, design.results * design.bits, register=False)
    count = len(design.layers)
    for i, layer in enumerate(design.layers):
        lines += [f"  wire valid_{i}, ready_{i};", f"  wire [{layer.given * design.bits - 1}:0] x_{i};"]
    lines += [f"  wire valid_{count}, ready_{count};", f"  wire [{design.results * design.bits - 1}:0] x_{count};"]
    lines += ["  assign valid_0 = in_valid;", "  assign in_ready = ready_0;", "  assign x_0 = x;"]
    for i in range(count):
        lines.append(
            f"  layer_{i} l{i} (.clk(clk), .rst(rst), .in_valid(valid_{i}), .in_ready(ready_{i}), .x(x_{i}),"
            f" .out_valid(valid_{i + 1}), .out_ready(ready_{i + 1}), .y(x_{i + 1}));"
        )
    return [
        *lines,
        f"  assign out_valid = valid_{count};",
        f"  assign ready_{count} = out_ready;",
        f"  assign y = x_{count};",
        "endmodule",
    ]


def emit_bench(design: EngineDesign, inputs: Sequence[Sequence[int]], most_cycles: int) -> str:
    """A module `BENCH` that gives inputs as soon as the circuit takes them, and prints each result and all times.

    It prints ``in CYCLE`` and ``out CYCLE HEX``, and ``stuck`` where results do not come within ``most_cycles``.

    Args:
        inputs: (count, given) whole numbers.
    """
    count, bits = len(inputs), design.bits
    width, made = design.given * bits, design.results * bits
    filled = [f"    inputs[{i}] = {_literal(row, bits)};" for i, row in enumerate(inputs)]
    return (
        "\n".join(
            [
                f"module {BENCH};",
                "  reg clk, rst; integer cycle, sent, got;",
                f"  reg [{width - 1}:0] inputs [0:{count - 1}];",
                f"  wire in_ready, out_valid; wire [{made - 1}:0] y;",
                f"  wire in_valid = !rst && sent < {count};",
                f"  {TOP} dut (.clk(clk), .rst(rst), .in_valid(in_valid), .in_ready(in_ready), .x(inputs[sent]),",
                "    .out_valid(out_valid), .out_ready(1'b1), .y(y));",
                "  initial begin",
                *filled,
                "    clk = 0; rst = 1; cycle = 0; sent = 0; got = 0;",
                "    repeat (3) @(negedge clk);",
                "    rst = 0;",
                "  end",
                "  always #1 clk = !clk;",
                "  always @(posedge clk) begin",
                "    cycle <= cycle + 1;",
                '    if (in_valid && in_ready) begin $display("in %0d", cycle); sent <= sent + 1; end',
                "    if (!rst && out_valid) begin",
                '      $display("out %0d %h", cycle, y);',
                "      got <= got + 1;",
                f"      if (got == {count - 1}) $finish;",
                "    end",
                f'    if (cycle > {most_cycles}) begin $display("stuck"); $finish; end',
                "  end",
                "endmodule",
            ]
        )
        + "\n"
    )


__all__ = ["BENCH", "TOP", "emit_bench", "emit_verilog", "module_ports", "packed_word", "weight_words"]
