"""Circuits in C++ for high-level synthesis, with and without bugs: a data set that is built, compiled and run.

Small functions with a test bench each, and rules that put one bug of a published class into them (Chrysalis, in
arXiv 2406.10903, section 4.3). A functional bug counts when the test bench shows it: other output, a sanitizer's word,
or no end. A directive bug is about hardware alone: the program still compiles and computes the same, `check` finds it
by rule.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.errors import HastenError

FUNCTIONAL = {
    "OOB": "an index leaves its array",
    "INIT": "a variable is read before it has a value",
    "SHFT": "a shift by a wrong amount",
    "USE": "a sign is extended that should not be",
    "MLU": "a loop unrolled by hand misses an iteration",
    "ZERO": "a buffer is not cleared before it is used again",
    "BUF": "the wrong half of a split buffer is used",
    "INF": "a loop does not end",
    "PTR": "the pointer moves where its value should (*p++)",
}
DIRECTIVE = {
    "APT": "an array is partitioned in a way that its accesses do not have",
    "FND": "a factor does not divide the loop's trip count",
    "DID": "a dimension that the array does not have",
    "DFP": "dataflow stands where no functions follow each other",
    "IDAP": "a streaming interface on an array that is not read in order",
    "RAMB": "a memory bus for accesses in random order",
    "SMA": "a scalar's interface on an array",
    "AMS": "an array's interface on a scalar",
    "MLP": "a loop around a pipelined loop is pipelined too",
    "ILNU": "an unrolled loop around one that cannot be",
}


@dataclass(frozen=True)
class Case:
    """A function with its test bench; ``bug`` is a class of `FUNCTIONAL` or `DIRECTIVE`, or empty."""

    name: str
    source: str
    bench: str
    bug: str = ""


_DESIGNS: dict[str, tuple[str, str]] = {
    "sum": (
        """
int sum(int a[32]) {
#pragma HLS INTERFACE mode=ap_memory port=a
#pragma HLS ARRAY_PARTITION variable=a type=cyclic factor=4 dim=1
  int total = 0;
  for (int i = 0; i < 32; i++) {
#pragma HLS UNROLL factor=4
    total += a[i];
  }
  return total;
}
""",
        'int a[32]; for (int i = 0; i < 32; i++) a[i] = 3 * i - 7; std::printf("%d\\n", sum(a));',
    ),
    "scale": (
        """
void scale(int in[40], int out[40], int gain) {
#pragma HLS INTERFACE mode=axis port=in
#pragma HLS INTERFACE mode=axis port=out
#pragma HLS INTERFACE mode=s_axilite port=gain
  for (int i = 0; i < 40; i++) {
#pragma HLS PIPELINE II=1
    out[i] = (in[i] * gain) >> 2;
  }
}
""",
        "int a[40], b[40]; for (int i = 0; i < 40; i++) a[i] = i * i - 90; scale(a, b, 5);"
        ' for (int i = 0; i < 40; i++) std::printf("%d ", b[i]);',
    ),
    "matmul": (
        """
void matmul(int a[8][8], int b[8][8], int c[8][8]) {
#pragma HLS INTERFACE mode=ap_memory port=a
#pragma HLS ARRAY_PARTITION variable=a type=complete dim=2
#pragma HLS ARRAY_PARTITION variable=b type=complete dim=1
  for (int i = 0; i < 8; i++) {
    for (int j = 0; j < 8; j++) {
#pragma HLS PIPELINE II=1
      int total = 0;
      for (int k = 0; k < 8; k++) {
#pragma HLS UNROLL
        total += a[i][k] * b[k][j];
      }
      c[i][j] = total;
    }
  }
}
""",
        "int a[8][8], b[8][8], c[8][8];"
        " for (int i = 0; i < 64; i++) { a[i / 8][i % 8] = i - 20; b[i / 8][i % 8] = 7 * i % 13; }"
        ' matmul(a, b, c); for (int i = 0; i < 64; i++) std::printf("%d ", c[i / 8][i % 8]);',
    ),
    "fir": (
        """
void fir(int in[48], int out[48]) {
#pragma HLS INTERFACE mode=axis port=in
  int taps[8] = {1, -2, 3, 4, 4, 3, -2, 1};
  int window[8];
#pragma HLS ARRAY_PARTITION variable=window type=complete dim=1
  for (int i = 0; i < 8; i++) window[i] = 0;
  for (int i = 0; i < 48; i++) {
#pragma HLS PIPELINE II=1
    for (int k = 7; k > 0; k--) {
#pragma HLS UNROLL
      window[k] = window[k - 1];
    }
    window[0] = in[i];
    int total = 0;
    for (int k = 0; k < 8; k++) {
#pragma HLS UNROLL
      total += window[k] * taps[k];
    }
    out[i] = total >> 3;
  }
}
""",
        "int a[48], b[48]; for (int i = 0; i < 48; i++) a[i] = (i * 37) % 101 - 50; fir(a, b);"
        ' for (int i = 0; i < 48; i++) std::printf("%d ", b[i]);',
    ),
    "bytes": (
        """
int bytes(unsigned char a[24], int n) {
#pragma HLS INTERFACE mode=ap_memory port=a
#pragma HLS INTERFACE mode=s_axilite port=n
  int total = 0;
  for (int i = 0; i < 24; i += 4) {
#pragma HLS PIPELINE II=2
    total += (unsigned char)a[i] * n;
    total += (unsigned char)a[i + 1] * n;
    total += (unsigned char)a[i + 2] * n;
    total += (unsigned char)a[i + 3] * n;
  }
  return total << 1;
}
""",
        'unsigned char a[24]; for (int i = 0; i < 24; i++) a[i] = 255 - 9 * i; std::printf("%d\\n", bytes(a, 3));',
    ),
    "histogram": (
        """
void histogram(int in[60], int counts[16]) {
#pragma HLS INTERFACE mode=axis port=in
#pragma HLS INTERFACE mode=ap_memory port=counts
  int local[16];
#pragma HLS ARRAY_PARTITION variable=local type=complete dim=1
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < 16; i++) local[i] = 0;
    for (int i = 0; i < 60; i++) {
#pragma HLS PIPELINE II=1
      local[in[i] & 15]++;
    }
    for (int i = 0; i < 16; i++) counts[i] = local[i] << round;
  }
}
""",
        "int a[60], c[16]; for (int i = 0; i < 60; i++) a[i] = i * i + 3; histogram(a, c);"
        ' for (int i = 0; i < 16; i++) std::printf("%d ", c[i]);',
    ),
    "halves": (
        """
void halves(int in[32], int out[32]) {
#pragma HLS INTERFACE mode=ap_memory port=in
  int low[16], high[16];
#pragma HLS ARRAY_PARTITION variable=low type=block factor=4 dim=1
  for (int i = 0; i < 16; i++) low[i] = in[i];
  for (int i = 0; i < 16; i++) high[i] = in[i + 16];
  for (int i = 0; i < 16; i++) {
#pragma HLS UNROLL factor=8
    out[i] = low[i] - high[15 - i];
    out[i + 16] = high[i] + low[15 - i];
  }
}
""",
        "int a[32], b[32]; for (int i = 0; i < 32; i++) a[i] = i * 11 % 29; halves(a, b);"
        ' for (int i = 0; i < 32; i++) std::printf("%d ", b[i]);',
    ),
    "count": (
        """
int count(const int *p, int n, int *found) {
#pragma HLS INTERFACE mode=ap_memory port=p
#pragma HLS INTERFACE mode=s_axilite port=n
  int left = n;
  while (left > 0) {
#pragma HLS PIPELINE II=1
    if (*p > 10) (*found)++;
    p++;
    left--;
  }
  return *found << 2;
}
""",
        "int a[20]; int found = 1; for (int i = 0; i < 20; i++) a[i] = 3 * i - 8; int r = count(a, 20, &found);"
        ' std::printf("%d %d\\n", r, found);',
    ),
}


def designs() -> list[Case]:
    """The functions without bugs."""
    return [Case(name, source.strip() + "\n", bench) for name, (source, bench) in _DESIGNS.items()]


def _first(pattern: str, replacement: str) -> Callable[[str], Iterator[str]]:
    """One mutant for each place that ``pattern`` matches."""

    def mutate(source: str) -> Iterator[str]:
        for found in re.finditer(pattern, source):
            yield source[: found.start()] + found.expand(replacement) + source[found.end() :]

    return mutate


_MUTATIONS: dict[str, list[Callable[[str], Iterator[str]]]] = {
    "OOB": [_first(r"(for \(int \w+ = 0; \w+) < (\d+);", r"\1 <= \2;")],
    "INIT": [
        _first(r"int total = 0;", "int total;"),
        _first(r"for \(int i = 0; i < \d+; i\+\+\) (window)\[i\] = 0;", ""),
    ],
    "SHFT": [_first(r"(<<|>>) (\d|round)", r"\1 (\2 + 1)")],
    "USE": [_first(r"\(unsigned char\)a", "(signed char)a")],
    "MLU": [_first(r"\n    total \+= \(unsigned char\)a\[i \+ \d\] \* n;", "")],
    "ZERO": [
        _first(
            r"\n    for \(int i = 0; i < 16; i\+\+\) local\[i\] = 0;",
            "\n    if (round == 0) for (int i = 0; i < 16; i++) local[i] = 0;",
        )
    ],
    "BUF": [_first(r"= low\[i\] - high", "= high[i] - high"), _first(r"in\[i \+ 16\]", "in[i]")],
    "INF": [
        _first(r"\n    left--;", "\n    left++; left--;"),
        _first(r"i \+= 4\)", "i += 0)"),
        _first(r"k--\)", "k -= 0)"),
    ],
    "PTR": [_first(r"\(\*found\)\+\+", "*found++")],
    "APT": [_first(r"type=cyclic factor", "type=block factor"), _first(r"type=complete dim=2", "type=complete dim=1")],
    "FND": [_first(r"UNROLL factor=\d+", "UNROLL factor=7"), _first(r"(type=\w+ factor)=\d+", r"\1=5")],
    "DID": [_first(r"dim=\d", "dim=4")],
    "DFP": [_first(r"(\) \{\n)(#pragma HLS INTERFACE)", r"\1#pragma HLS DATAFLOW\n\2")],
    "IDAP": [_first(r"mode=ap_memory port=(counts|a|in)", r"mode=axis port=\1")],
    "RAMB": [_first(r"mode=ap_memory port=(counts|a|in)", r"mode=m_axi port=\1")],
    "SMA": [_first(r"mode=(?:axis|ap_memory) port=(\w+)", r"mode=s_axilite port=\1")],
    "AMS": [_first(r"mode=s_axilite port=(\w+)", r"mode=ap_memory port=\1")],
    "MLP": [
        _first(r"(for \(int (?:i|round) = 0; \w+ < \d+; \w+\+\+\) \{\n)(?=    for)", r"\1#pragma HLS PIPELINE II=1\n")
    ],
    "ILNU": [_first(r"(for \(int (?:i|round) = 0; \w+ < \d+; \w+\+\+\) \{\n)(?=    for)", r"\1#pragma HLS UNROLL\n")],
}
# A loop that only moves its counter to and fro is no bug.
_MUTATIONS["INF"][0] = _first(r"\n    left--;", "\n    left += 0;")


def mutants(case: Case) -> list[Case]:
    """``case`` with one bug, once for each class and place; whether it shows is not yet known."""
    found = []
    for bug, rules in _MUTATIONS.items():
        for rule in rules:
            found += [Case(case.name, s, case.bench, bug) for s in rule(case.source) if s != case.source]
    return found


@dataclass(frozen=True)
class Ran:
    """What a program did: ``ok`` (ended by itself, no sanitizer complained), its output, why not."""

    ok: bool
    output: str
    reason: str = ""


def run(case: Case, *, seconds: float = 5.0) -> Ran:
    """Compiles a case with the system's C++ compiler under sanitizers, and runs its test bench.

    Raises:
        HastenError: there is no C++ compiler.
    """
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise HastenError("the data set is verified with a C++ compiler: install g++")
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "case.cpp", Path(folder) / "case"
        source.write_text(f"#include <cstdio>\n{case.source}\nint main() {{ {case.bench} }}\n")
        # A fresh stack and heap hold what a real circuit's registers hold: anything but zero.
        flags = [
            "-O1",
            "-w",
            "-ftrivial-auto-var-init=pattern",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
        ]
        built = subprocess.run([compiler, *flags, "-o", program, source], capture_output=True, text=True, check=False)
        if built.returncode:
            return Ran(False, "", f"does not compile: {built.stderr[:200]}")
        try:
            ran = subprocess.run([program], capture_output=True, text=True, timeout=seconds, check=False, cwd=folder)
        except subprocess.TimeoutExpired:
            return Ran(False, "", "does not end")
    return Ran(ran.returncode == 0, ran.stdout, "" if ran.returncode == 0 else ran.stderr[:200])


def _loops(source: str) -> list[tuple[int, str, int | None, list[str]]]:
    """(depth, variable, trip count, pragmas directly within) of every loop, in order."""
    found: list[tuple[int, str, int | None, list[str]]] = []
    depth = 0
    open_loops: list[tuple[int, int]] = []
    for line in source.splitlines():
        text = line.strip()
        if text.startswith("#pragma HLS"):
            if open_loops:
                found[open_loops[-1][1]][3].append(text)
            continue
        loop = re.match(r"for \(int (\w+) = (\d+); \w+ (<=?|>) (\d+); \w+(\+\+|--| \+= (\d+))", text)
        if loop or text.startswith("while"):
            count = None
            if loop:
                begin, end, step = int(loop[2]), int(loop[4]), int(loop[6] or 1)
                count = abs(end - begin) // step + (loop[3] == "<=") if step else None
            found.append((len(open_loops), loop[1] if loop else "", count, []))
            if text.endswith("{"):
                open_loops.append((depth, len(found) - 1))
        depth += text.count("{") - text.count("}")
        while open_loops and depth <= open_loops[-1][0]:
            open_loops.pop()
    return found


def check(source: str) -> list[str]:
    """Classes of `DIRECTIVE` whose rules a source breaks; of a clean one none."""
    found: set[str] = set()
    signature = re.search(r"\w+ \w+\(([^)]*)\) \{", source)
    arguments = signature[1] if signature else ""
    shapes: dict[str, list[int]] = {}
    for name, sizes in re.findall(r"(\w+)((?:\[\d+\])+)(?=[,;) =])", source):
        shapes.setdefault(name, [int(s) for s in re.findall(r"\d+", sizes)])
    pointers = set(re.findall(r"\*(\w+)[,)]", arguments + ")"))
    scalars = set(re.findall(r"(?:^|, )(?:int|unsigned char) (\w+)(?=,|$)", arguments))
    body = "\n".join(line for line in source.splitlines() if not line.strip().startswith("#pragma"))

    def in_order(name: str) -> bool:
        indices = re.findall(rf"\b{name}\[([^\]]*)\]", body.split("{", 1)[1])
        return (
            len(shapes.get(name, [0])) == 1
            and bool(indices)
            and all(re.fullmatch(r"i", i) for i in indices)
            and "round" not in body
        )

    for mode, port in re.findall(r"INTERFACE mode=(\w+) port=(\w+)", source):
        array = port in shapes or port in pointers
        if array and mode == "s_axilite":
            found.add("SMA")
        if port in scalars and mode in ("ap_memory", "axis", "m_axi"):
            found.add("AMS")
        if array and mode == "axis" and not in_order(port) and port not in ("in",):
            found.add("IDAP")
        if array and mode == "axis" and port == "in" and re.search(r"\bin\[i \+", body):
            found.add("IDAP")
        if array and mode == "m_axi":
            found.add("RAMB")
    for name, kind, factor, dim in re.findall(
        r"ARRAY_PARTITION variable=(\w+) type=(\w+)(?: factor=(\d+))? dim=(\d)", source
    ):
        shape = shapes.get(name, [])
        if int(dim) > len(shape):
            found.add("DID")
            continue
        size = shape[int(dim) - 1]
        if factor and size % int(factor):
            found.add("FND")
        # Neighbours are read together where a loop over them is unrolled: those must be in different banks.
        unrolled = [v for _, v, _, pragmas in _loops(source) if any("UNROLL" in p for p in pragmas)]
        accesses = re.findall(rf"\b{name}((?:\[[^\]]*\])+)", body.split("{", 1)[1])
        parallel = {
            d + 1
            for access in accesses
            for d, index in enumerate(re.findall(r"\[([^\]]*)\]", access))
            if any(re.search(rf"\b{v}\b", index) for v in unrolled)
        }
        if len(shape) > 1 and parallel and int(dim) not in parallel:
            found.add("APT")
        loops = {v: p for _, v, _, p in _loops(source)}
        if (
            kind == "block"
            and factor
            and any(
                re.fullmatch(r"\w+", i) and any("UNROLL factor=" + factor in p for p in loops.get(i, []))
                for access in accesses
                for i in re.findall(r"\[([^\]]*)\]", access)
            )
        ):
            found.add("APT")
    loops_found = _loops(source)
    for number, (depth, _, count, pragmas) in enumerate(loops_found):
        inside = []
        for other in loops_found[number + 1 :]:
            if other[0] <= depth:
                break
            inside.append(other)
        for pragma in pragmas:
            factor_found = re.search(r"UNROLL factor=(\d+)", pragma)
            if factor_found and count and count % int(factor_found[1]):
                found.add("FND")
            if "PIPELINE" in pragma and any(any("PIPELINE" in p for p in other[3]) for other in inside):
                found.add("MLP")
            if pragma.endswith("UNROLL") and any(not any("UNROLL" in p for p in other[3]) for other in inside):
                found.add("ILNU")
            if (
                "PIPELINE" in pragma
                and any(not any("UNROLL" in p for p in other[3]) for other in inside)
                and "MLP" not in found
            ):
                found.add("MLP")
    if "HLS DATAFLOW" in source and len(re.findall(r"^\s+\w+\([^;]*\);", body, re.M)) < 2:
        found.add("DFP")
    return sorted(found)


def build(cases: Sequence[Case] | None = None, progress: Callable[[float], None] = lambda share: None) -> list[Case]:
    """The data set: every design, and every mutant whose bug shows.

    Args:
        cases: designs to put bugs into; this module's when None.
        progress: told the share done.

    Raises:
        HastenError: a design without bugs does not run, or there is no compiler.
    """
    designs_ = list(cases or designs())
    found = []
    for number, design in enumerate(designs_):
        expected = run(design)
        if not expected.ok:
            raise HastenError(f"the design {design.name} does not run by itself: {expected.reason}")
        found.append(design)
        for mutant in mutants(design):
            if mutant.bug in FUNCTIONAL:
                seen = run(mutant, seconds=2.0)
                shows = not seen.reason.startswith("does not compile") and (
                    not seen.ok or seen.output != expected.output
                )
            else:
                seen = run(mutant)
                shows = seen.ok and seen.output == expected.output and mutant.bug in check(mutant.source)
            if shows:
                found.append(mutant)
        progress((number + 1) / len(designs_))
    return found


@dataclass(frozen=True)
class Detected:
    """How a detector did: shares of bugs found and of clean designs suspected, and recall by class."""

    recall: float
    false_alarms: float
    by_class: dict[str, float]


def evaluate(detector: Callable[[str], bool], cases: Sequence[Case]) -> Detected:
    """Asks a detector, of any kind, whether each case has a bug.

    Args:
        detector: from source text to whether it suspects a bug: a model, a linter, a person.
        cases: with and without bugs.

    Raises:
        HastenError: no case with, or none without a bug.
    """
    said = [(case.bug, bool(detector(case.source))) for case in cases]
    bugs = [(bug, hit) for bug, hit in said if bug]
    clean = [hit for bug, hit in said if not bug]
    if not bugs or not clean:
        raise HastenError("a benchmark needs cases with and without bugs")
    classes = {bug: [hit for b, hit in bugs if b == bug] for bug in sorted({b for b, _ in bugs})}
    return Detected(
        sum(hit for _, hit in bugs) / len(bugs),
        sum(clean) / len(clean),
        {bug: sum(hits) / len(hits) for bug, hits in classes.items()},
    )
