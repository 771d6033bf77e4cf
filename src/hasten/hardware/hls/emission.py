"""A design as C++ for high-level synthesis: a function a stage, the directives as pragmas, and a test bench.

Every other compiler ignores the pragmas and computes the same, one stage after the other. Under synthesis numbers are
of the design's format; elsewhere they are floats.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from hasten.hardware.hls.directives import HlsDesign, NestSchedule, schedule
from hasten.workload.arithmetic import FOLD, Expression
from hasten.workload.index import AffineIndex
from hasten.workload.loops import ArrayUse, LoopArray, LoopProgram, LoopStage

TYPES: Mapping[str, tuple[str, str]] = {
    "fp32": ("", "float"),
    "fixed16": ("ap_fixed.h", "ap_fixed<16, 6>"),
    "fixed8": ("ap_fixed.h", "ap_fixed<8, 3>"),
    "fixed6": ("ap_fixed.h", "ap_fixed<6, 2>"),
}
"""Number format -> (header, type) under synthesis."""

_CALLS = {"exp": "std::exp", "log": "std::log", "sqrt": "std::sqrt", "tanh": "std::tanh", "erf": "std::erf",
          "pow": "std::pow", "abs": "std::fabs"}  # fmt: skip
_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_WORDS = frozenset(
    ("int", "for", "if", "else", "return", "static", "const", "void", "float", "double", "short", "long", "char",
     "struct", "class", "new", "delete", "this", "auto", "register", "switch", "case", "default", "break", "continue",
     "while", "do", "signed", "unsigned", "union", "enum", "typedef", "template", "namespace", "operator", "number",
     "larger", "smaller", "folded", "part", "term", "total", "made", "move", "main", "bool", "volatile", "inline")
)  # fmt: skip


class _Names:
    """C identifiers for arrays and stages, each once."""

    def __init__(self, program: LoopProgram) -> None:
        self.of: dict[str, str] = {}
        taken = {program.name, "top"} | _WORDS
        for name in (*(s.name for s in program.stages), *program.arrays):
            plain = re.sub(r"\W", "_", name)
            plain = plain if re.match(r"[A-Za-z]", plain) else f"a_{plain}"
            unique, count = plain, 2
            while unique in taken:
                unique, count = f"{plain}_{count}", count + 1
            taken.add(unique)
            self.of[name] = unique


def parameters(program: LoopProgram) -> list[str]:
    """Arrays that the top function is given, in order: inputs, weights, outputs."""
    return [*program.inputs, *program.weights, *program.outputs]


def emit(design: HlsDesign) -> str:
    """The source of a design; its top function has the program's name and takes `parameters`."""
    program = design.program
    names = _Names(program)
    header, kind = TYPES[design.number]
    lines = [
        f"// {program.name}: {len(program.stages)} stages, {program.macs:,} multiply-adds.",
        "#include <cmath>",
        *(["#ifdef __SYNTHESIS__", f"#include <{header}>", f"typedef {kind} number;", "#else"] if header else []),
        "typedef float number;",
        *(["#endif"] if header else []),
        "",
        "static inline number larger(number a, number b) { return a > b ? a : b; }",
        "static inline number smaller(number a, number b) { return a < b ? a : b; }",
        "",
    ]
    for stage in program.stages:
        lines += [*_Function(stage, design, names).lines(), ""]
    return "\n".join([*lines, *_top(design, names)]) + "\n"


def _declared(array: LoopArray, name: str) -> str:
    return name + "".join(f"[{n}]" for n in array.shape)


def _partition(name: str, banks: Sequence[int], shape: Sequence[int]) -> list[str]:
    lines = []
    for d, (n, size) in enumerate(zip(banks, shape, strict=True), 1):
        if n > 1:
            kind = "complete" if n == size else f"cyclic factor={n}"
            lines.append(f"#pragma HLS ARRAY_PARTITION variable={name} type={kind} dim={d}")
    return lines


def _top(design: HlsDesign, names: _Names) -> list[str]:
    program = design.program
    outside = parameters(program)
    listed = ", ".join(
        f"{'' if n in program.outputs else 'const '}number {_declared(program.arrays[n], names.of[n])}" for n in outside
    )
    lines = [f'extern "C" void {program.name}({listed}) {{']
    for n in outside:
        lines.append(f"#pragma HLS INTERFACE mode=ap_memory port={names.of[n]}")
        lines += _partition(names.of[n], design.banks(n), program.arrays[n].shape)
    if design.dataflow and len(program.stages) > 1:
        lines.append("#pragma HLS DATAFLOW")
    held = design.depths()
    # A tool makes memories of these; for a processor they are too large for its stack.
    for n, array in program.arrays.items():
        if n in outside:
            continue
        lines += ["#ifndef __SYNTHESIS__", "  static", "#endif", f"  number {_declared(array, names.of[n])};"]
        lines += _partition(names.of[n], design.banks(n), array.shape)
        if design.dataflow:
            lines.append(f"#pragma HLS STREAM variable={names.of[n]} type=pipo depth={max(2, held.get(n, 2))}")
    for stage in program.stages:
        given = ", ".join(names.of[n] for n in _arrays(stage))
        lines.append(f"  {names.of[stage.name]}({given});")
    return [*lines, "}"]


def _arrays(stage: LoopStage) -> list[str]:
    """Arrays of a stage, in the order of its function's parameters."""
    return list(dict.fromkeys(u.array for u in (*stage.reads, *stage.writes)))


class _Function:
    """The function of one stage."""

    def __init__(self, stage: LoopStage, design: HlsDesign, names: _Names) -> None:
        self.stage, self.design, self.names = stage, design, names
        self.directives = design.of(stage)
        self.plan: NestSchedule = schedule(stage, self.directives)
        self.copies = dict(self.plan.unrolled)
        # Copies of what is folded away, and of what is made.
        self.folded = [(r, n) for r, n in self.plan.unrolled if r in stage.reduced]
        self.made = [(r, n) for r, n in self.plan.unrolled if r not in stage.reduced]
        inner = self.plan.levels[self.plan.kept :]
        self.across = bool(self.plan.distance)
        self.within = [level for level in inner if level.rank not in stage.reduced]

    def lines(self) -> list[str]:
        stage, arrays = self.stage, self.design.program.arrays
        written = {u.array for u in stage.writes}
        given = ", ".join(
            f"{'' if n in written else 'const '}number {_declared(arrays[n], self.names.of[n])}" for n in _arrays(stage)
        )
        lines = [f"// {stage.title}", f"static void {self.names.of[stage.name]}({given}) {{"]
        lines.append("#pragma HLS INLINE off")
        if self.across:
            shape = [level.trips for level in self.within] + [n for _, n in self.made]
            lines.append(f"  number folded{''.join(f'[{n}]' for n in shape or [1])};")
            split = range(len(self.within) + 1, len(shape) + 1) if shape else [1]
            lines += [f"#pragma HLS ARRAY_PARTITION variable=folded type=complete dim={d}" for d in split]
            if self.plan.distance > 1:
                apart = f"type=inter direction=RAW distance={self.plan.distance} dependent=true"
                lines.append(f"#pragma HLS DEPENDENCE variable=folded {apart}")
        pad = "  "
        for i, level in enumerate(self.plan.levels):
            v = level.variable
            lines.append(f"{pad}for (int {v} = 0; {v} < {level.trips}; {v}++) {{")
            pad += "  "
            if i == len(self.plan.levels) - 1:
                lines.append(self._pipeline())
        if not self.plan.levels:  # all of it at once
            lines.append(f"{pad}{{")
            pad += "  "
        body = self._body()
        lines += [line if line.startswith("#") else pad + line for line in body]
        for _ in range(max(1, len(self.plan.levels))):
            pad = pad[:-2]
            lines.append(f"{pad}}}")
        return [*lines, "}"]

    def _pipeline(self) -> str:
        if not self.directives.pipeline:
            return "#pragma HLS PIPELINE off"
        return f"#pragma HLS PIPELINE II={self.directives.interval}"

    def _index(self, rank: str) -> str:
        """C for where a rank stands."""
        parts = [
            level.variable if level.step == 1 else f"{level.variable} * {level.step}"
            for level in self.plan.levels
            if level.rank == rank
        ]
        parts += [f"{rank}_u"] if rank in self.copies else []
        return " + ".join(parts) or "0"

    def _place(self, subscript: AffineIndex) -> str:
        parts = []
        for rank, factor in subscript.terms:
            at = self._index(rank)
            if at != "0":
                parts.append(
                    at if factor == 1 else f"({at}) * {factor}" if "+" in at or "*" in at else f"{at} * {factor}"
                )
        text = " + ".join(parts)
        if subscript.offset or not text:
            text += (
                f" {'-' if subscript.offset < 0 else '+'} {abs(subscript.offset)}" if text else str(subscript.offset)
            )
        return text

    def _read(self, use: ArrayUse) -> str:
        element = self.names.of[use.array] + "".join(f"[{self._place(s)}]" for s in use.subscripts)
        if use.outside is None:
            return element
        tests = []
        shape = self.design.program.arrays[use.array].shape
        for s, n in zip(use.subscripts, shape, strict=True):
            low, high = s.bounds(self.stage.sizes)
            tests += [f"{self._place(s)} >= 0"] if low < 0 else []
            tests += [f"{self._place(s)} < {n}"] if high >= n else []
        return f"({' && '.join(tests)} ? {element} : {_number(use.outside)})"

    def _expression(self, expression: Expression, acc: str = "") -> str:
        kind, *parts = expression
        if kind == "read":
            return self._read(self.stage.reads[parts[0]])
        if kind == "acc":
            return acc
        if kind == "const":
            return _number(parts[0])
        if kind == "upto":
            low, high, inner = parts
            return (
                f"({self._index(low)} <= {self._index(high)} ? {self._expression(inner, acc)} : {_number(-math.inf)})"
            )
        if kind == "below":
            rank, limit, *either = parts
            yes, no = (self._expression(e, acc) for e in either)
            return f"({self._index(rank)} < {limit} ? {yes} : {no})"
        given = [self._expression(p, acc) for p in parts]
        if kind in _SIGNS:
            return f"({given[0]} {_SIGNS[kind]} {given[1]})"
        if kind in ("max", "min"):
            return f"{'larger' if kind == 'max' else 'smaller'}({given[0]}, {given[1]})"
        if kind == "neg":
            return f"(-{given[0]})"
        if kind == "select":
            return f"({given[0]} != 0 ? {given[1]} : {given[2]})"
        return f"{_CALLS[kind]}({', '.join(given)})"

    def _fold(self, a: str, b: str) -> str:
        name = FOLD[self.stage.reduce or "sum"]
        return f"{a} + {b}" if name == "add" else f"{'larger' if name == 'max' else 'smaller'}({a}, {b})"

    def _body(self) -> list[str]:
        """One iteration: copies of what is made, each with copies of what is folded."""
        stage = self.stage
        lines: list[str] = []
        pad = ""
        for rank, n in self.made:
            lines += [f"{pad}for (int {rank}_u = 0; {rank}_u < {n}; {rank}_u++) {{", "#pragma HLS UNROLL"]
            pad += "  "
        if stage.reduce is None:
            lines.append(f"{pad}const number made = {self._expression(stage.value)};")
            lines += [f"{pad}{self._target(u)} = {self._whole('made')};" for u in stage.writes]
        else:
            lines += [pad + line if not line.startswith("#") else line for line in self._folding()]
        for _ in self.made:
            pad = pad[:-2]
            lines.append(f"{pad}}}")
        return lines

    def _whole(self, acc: str) -> str:
        return self._expression(self.stage.finish, acc)

    def _target(self, use: ArrayUse) -> str:
        return self.names.of[use.array] + "".join(f"[{self._place(s)}]" for s in use.subscripts)

    def _folding(self) -> list[str]:
        stage = self.stage
        count = math.prod(n for _, n in self.folded)
        lines, pad = [], ""
        if count > 1:
            lines += [f"number part[{count}];", "#pragma HLS ARRAY_PARTITION variable=part type=complete dim=1"]
            for rank, n in self.folded:
                lines += [f"{pad}for (int {rank}_u = 0; {rank}_u < {n}; {rank}_u++) {{", "#pragma HLS UNROLL"]
                pad += "  "
            place = ""
            for rank, n in self.folded:
                place = f"{rank}_u" if not place else f"({place}) * {n} + {rank}_u"
            lines.append(f"{pad}part[{place}] = {self._expression(stage.value)};")
            for _ in self.folded:
                pad = pad[:-2]
                lines.append(f"{pad}}}")
            # A tree, written out: a tool may not reorder sums of floats.
            width = count
            while width > 1:
                half = (width + 1) // 2
                lines += [f"part[{i}] = {self._fold(f'part[{i}]', f'part[{half + i}]')};" for i in range(width - half)]
                width = half
            found = "part[0]"
        else:
            lines.append(f"const number term = {self._expression(stage.value)};")
            found = "term"
        if not self.across:
            lines.append(f"const number total = {found};")
            lines += [f"{self._target(u)} = {self._whole('total')};" for u in stage.writes]
            return lines
        element = "".join(f"[{level.variable}]" for level in self.within) + "".join(f"[{r}_u]" for r, _ in self.made)
        element = "folded" + (element or "[0]")
        folding = [level for level in self.plan.levels if level.rank in stage.reduced]
        first = " && ".join(f"{level.variable} == 0" for level in folding)
        last = " && ".join(f"{level.variable} == {level.trips - 1}" for level in folding)
        lines.append(f"const number total = {first} ? {found} : {self._fold(element, found)};")
        lines.append(f"{element} = total;")
        lines.append(f"if ({last}) {{")
        lines += [f"  {self._target(u)} = {self._whole('total')};" for u in stage.writes]
        return [*lines, "}"]


def _number(value: float) -> str:
    if math.isinf(value):
        # The least of floats; formats of fixed point saturate.
        return "number(-3.4e38f)" if value < 0 else "number(3.4e38f)"
    return f"number({value!r}{'f' if '.' in repr(value) or 'e' in repr(value) else '.0f'})"


def bench(design: HlsDesign) -> str:
    """The design with a main function: reads the arrays that are given from a file, writes those made to another.

    The files hold 32-bit floats, array after array (`parameters`), row by row.
    """
    program = design.program
    lines = [emit(design), "#include <cstdio>", ""]
    lines += [f"static number a_{i}{''.join(f'[{n}]' for n in program.arrays[a].shape)};"
              for i, a in enumerate(parameters(program))]  # fmt: skip
    lines += [
        "static void move(number *at, long count, FILE *file, bool in) {",
        "  for (long i = 0; i < count; i++) {",
        "    float value = in ? 0.0f : float(at[i]);",
        "    if (in ? std::fread(&value, 4, 1, file) != 1 : std::fwrite(&value, 4, 1, file) != 1) return;",
        "    if (in) at[i] = value;",
        "  }",
        "}",
        "int main(int, char **given) {",
        '  FILE *file = std::fopen(given[1], "rb");',
        "  if (!file) return 1;",
    ]
    for i, name in enumerate(parameters(program)):
        if name not in program.outputs:
            lines.append(f"  move((number *)a_{i}, {program.arrays[name].elements}, file, true);")
    lines += ["  std::fclose(file);"]
    lines.append(f"  {program.name}({', '.join(f'a_{i}' for i in range(len(parameters(program))))});")
    lines += ['  file = std::fopen(given[2], "wb");', "  if (!file) return 1;"]
    for i, name in enumerate(parameters(program)):
        if name in program.outputs:
            lines.append(f"  move((number *)a_{i}, {program.arrays[name].elements}, file, false);")
    return "\n".join([*lines, "  return std::fclose(file);", "}"]) + "\n"


def pragmas(source: str) -> list[str]:
    """The directives of a source, in order."""
    return [line.strip() for line in source.splitlines() if line.strip().startswith("#pragma HLS")]


__all__ = ["TYPES", "bench", "emit", "parameters", "pragmas"]
