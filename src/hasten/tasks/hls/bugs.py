"""Circuits in C++ for high-level synthesis, with and without bugs: a data set that is built, compiled and run.

Small functions with a test bench each, and rules that put one bug of a published class into them (Chrysalis, in
arXiv 2406.10903, section 4.3). A functional bug counts when the test bench shows it: other output, a sanitizer's word,
or no end. A directive bug is about hardware alone: the program still compiles and computes the same, `check` finds it
by rule.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hasten.errors import HastenError
from hasten.tasks.hls import designs as hls_designs
from hasten.tasks.hls.rules import check

FUNCTIONAL = {
    "OOB": "an index leaves its array",
    "INIT": "a variable is read before it has a value",
    "SHFT": "a shift by more bits than its operand has",
    "USE": "a sign is extended that should not be",
    "MLU": "a loop unrolled by hand misses an iteration",
    "ZERO": "a variable begins with zero that should not",
    "BUF": "the wrong half of a split buffer is used",
    "INF": "a loop does not end",
    "PTR": "the pointer moves where its value should (*p++)",
}
DIRECTIVE = {
    "APT": "an array is partitioned in a way that its accesses do not have",
    "FND": "a factor does not divide the array, or the loop's trip count",
    "DID": "a dimension that the array does not have, or that is not the one read at once",
    "DFP": "dataflow stands where no functions follow each other",
    "IDAP": "a streaming interface on an array that is not read in order",
    "RAMB": "a memory bus for accesses in random order",
    "SMA": "a scalar on an array's interface",
    "AMS": "an array on a scalar's interface",
    "MLP": "a loop around a pipelined loop is pipelined too",
    "ILNU": "an unrolled loop around one that cannot be",
}


__all__ = [
    "DIRECTIVE", "FUNCTIONAL", "Case", "Classified", "Detected", "Ran", "Ranked", "build", "check", "classify",
    "designs", "evaluate", "mutants", "rank", "run", "run_all",
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A function with its test bench; ``bug`` is a class of `FUNCTIONAL` or `DIRECTIVE`, or empty."""

    name: str
    source: str
    bench: str
    bug: str = ""


def designs(sizes: int = 1) -> list[Case]:
    """The functions without bugs, each at up to three sizes."""
    return [Case(d.name, d.source, d.bench) for d in hls_designs.designs(sizes)]


def _first(pattern: str, replacement: str) -> Callable[[str], Iterator[str]]:
    """One mutant for each place that ``pattern`` matches."""

    def mutate(source: str) -> Iterator[str]:
        for found in re.finditer(pattern, source):
            yield source[: found.start()] + found.expand(replacement) + source[found.end() :]

    return mutate


def _other_dimension() -> list[Callable[[str], Iterator[str]]]:
    """Complete partitions along the other one of two dimensions."""

    def mutate(source: str) -> Iterator[str]:
        for found in re.finditer(r"variable=(\w+) type=complete dim=(\d)", source):
            if re.search(rf"\b{found[1]}\[\d+\]\[\d+\]", source):
                other = f"variable={found[1]} type=complete dim={3 - int(found[2])}"
                yield source[: found.start()] + other + source[found.end() :]

    return [mutate]


def _dataflow(source: str) -> Iterator[str]:
    """The dataflow directive where no tasks are: in a function without two loops or calls, or in an innermost loop."""
    directive = "#pragma HLS DATAFLOW\n"
    rest = source.replace(directive, "")
    for found in re.finditer(r"(?m)^(?:void|int) \w+\(.*\) \{\n", rest):
        body = rest[found.end() :].split("\n}\n", 1)[0]
        if len(re.findall(r"(?m)^  (?:for \(|while \(|\w+\([^()]*\);$)", body)) < 2:
            yield rest[: found.end()] + directive + rest[found.end() :]
    for found in re.finditer(r"(?m)^( +)for \(.*\{\n", rest):
        body = rest[found.end() :].split(f"\n{found[1]}}}\n", 1)[0]
        if not re.search(r"\b(?:for|while) \(", body):
            yield rest[: found.end()] + directive + rest[found.end() :]


def _around(inner: str, directive: str) -> Callable[[str], Iterator[str]]:
    """The directive on each loop that holds one with ``inner``, or for unrolling one that is not unrolled."""

    def mutate(source: str) -> Iterator[str]:
        lines = source.splitlines(keepends=True)
        for number, line in enumerate(lines):
            indent = len(line) - len(line.lstrip())
            if not (line.lstrip().startswith("for (") and line.endswith("{\n")):
                continue
            rest = lines[number + 1 :]
            end = next(i for i, text in enumerate(rest) if text == " " * indent + "}\n")
            within = rest[:end]
            loops = [i for i, text in enumerate(within) if text.lstrip().startswith("for (")]
            pragmas = [within[i + 1] if i + 1 < len(within) else "" for i in loops]
            wanted = [inner in p if inner else not p.rstrip().endswith("UNROLL") for p in pragmas]
            if any(wanted) and not lines[number + 1].startswith("#pragma"):
                yield "".join([*lines[: number + 1], f"#pragma HLS {directive}\n", *rest])

    return mutate


_HALVES = {
    one: other
    for pair in (("low", "high"), ("ping", "pong"), ("even", "odd"), ("left", "right"), ("front", "back"))
    for one, other in (pair, pair[::-1])
}
_MUTATIONS: dict[str, list[Callable[[str], Iterator[str]]]] = {
    "OOB": [_first(r"(for \(int (\w+) = \d+; \2) < ([^;]+);", r"\1 <= \3;")],
    "INIT": [
        _first(r"(\n +int \w+) = [^;{\[]+;", r"\1;"),
        _first(r"\n  for \(int i = 0; i < \d+; i\+\+\) \w+\[i\] = 0;", ""),
    ],
    "SHFT": [_first(r"(<<|>>) (\w+)", r"\1 (\2 + 32)")],
    "USE": [_first(r"\(unsigned char\)(?=\w)", "(signed char)"), _first(r"\(unsigned short\)", "(short)")],
    "MLU": [_first(r"\n    \w+ \+= [^;\n]*\+ \d\][^;\n]*;", "")],
    "ZERO": [_first(r"(\n +int \w+(?:\[\d+\])?) = (?!0;)(?:\{[^;]*\}|[^;{]+);", r"\1 = {0};")],
    "BUF": [
        _first(rf"(?<=[ (=]){one}(?=\[[^\]]*\](?! =[^=]|,|;))", other) for one, other in _HALVES.items()
    ] + [_first(rf"(?<=\) ){one}(?=\[i\] = )", other) for one, other in _HALVES.items()],
    "INF": [
        # A loop that only moves its counter to and fro.
        _first(r"\n    left--;", "\n    left += 0;"),
        _first(r"i \+= (2|4)\)", "i += 0)"),
        _first(r"k--\)", "k -= 0)"),
        _first(r"(?<=i < )(\w+)( - \d+)?; i\+\+\) \{", r"\1\2; i += 0) {"),
    ],
    "PTR": [_first(r"\(\*(\w+)\)\+\+", r"*\1++")],
    "APT": [
        _first(r"type=cyclic factor", "type=block factor"),
        _first(r"type=complete", "type=cyclic"),
    ],
    "FND": [_first(r"UNROLL factor=\d+", "UNROLL factor=13"), _first(r"(type=\w+ factor)=\d+", r"\1=13")],
    "DID": [_first(r"dim=\d", "dim=4"), *_other_dimension()],
    "DFP": [_dataflow],
    "SMA": [_first(r"mode=s_axilite port=(\w+)", rf"mode={mode} port=\1") for mode in ("ap_memory", "axis")],
    "AMS": [
        _first(r"mode=(?:axis|ap_memory|bram) port=(\w+)", rf"mode={mode} port=\1") for mode in ("s_axilite", "ap_none")
    ],
    "MLP": [_around("PIPELINE", "PIPELINE II=1")],
    "ILNU": [_around("", "UNROLL")],
}  # fmt: skip


def mutants(case: Case) -> list[Case]:
    """``case`` with one bug, once for each class and place; whether a functional one shows is not yet known."""
    design = next((d for d in hls_designs.designs(3) if d.source == case.source), None)
    random, again = (design.random, design.again) if design is not None else ((), ())
    rules = dict(_MUTATIONS)
    # What an interface asks for depends on how a port is used: the designs say so.
    for bug, mode in (("IDAP", "axis"), ("RAMB", "m_axi")):
        ports = random if bug == "IDAP" else [p for p in random if p not in again]
        rules[bug] = [_first(rf"mode=ap_memory port={p}\b", f"mode={mode} port={p}") for p in ports]
    found: dict[tuple[str, str], Case] = {}
    for bug, changes in rules.items():
        for change in changes:
            for source in change(case.source):
                if source != case.source:
                    found.setdefault((bug, source), Case(case.name, source, case.bench, bug))
    return list(found.values())


@dataclass(frozen=True)
class Ran:
    """What a program did: ``ok`` (ended by itself, no sanitizer complained), its output, why not."""

    ok: bool
    output: str
    reason: str = ""


# A fresh stack and heap hold what a real circuit's registers hold: anything but zero.
_FLAGS = (
    "-O0", "-w", "-ftrivial-auto-var-init=pattern", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
)  # fmt: skip
_AT_ONCE = 40
_COMPILING = 600.0  # seconds


def _compiler() -> str:
    found = shutil.which("g++") or shutil.which("c++")
    if found is None:
        raise HastenError("the data set is verified with a C++ compiler: install g++")
    return found


def run(case: Case, *, seconds: float = 0.25) -> Ran:
    """Compiles a case with the system's C++ compiler under sanitizers, and runs its test bench.

    Args:
        case: what to run.
        seconds: of processor time, after which it counts as endless.

    Raises:
        HastenError: there is no C++ compiler.
    """
    return _run([case], seconds)[0]


def run_all(cases: Sequence[Case], *, seconds: float = 0.25, workers: int | None = None) -> list[Ran]:
    """As `run` for many cases: some are compiled together, each runs in a process of its own.

    Args:
        cases: what to run.
        seconds: of processor time of each.
        workers: processes at once; one for each processor when None.
    """
    parts = [cases[i : i + _AT_ONCE] for i in range(0, len(cases), _AT_ONCE)]
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        return [ran for part in pool.map(lambda p: _run(p, seconds), parts) for ran in part]


def _run(cases: Sequence[Case], seconds: float) -> list[Ran]:
    compiler = _compiler()
    spaces = [f"namespace c{i} {{\n{c.source}\nvoid bench() {{ {c.bench} }}\n}}\n" for i, c in enumerate(cases)]
    calls = "".join(f"case {i}: c{i}::bench(); break;\n" for i in range(len(cases)))
    text = "#include <cstdio>\n#include <cstdlib>\n#include <sys/time.h>\n" + "".join(spaces)
    # Processor time, not time on the clock: a busy machine makes no program endless.
    text += f"""int main(int, char **given) {{
  itimerval limit = {{{{0, 0}}, {{{int(seconds)}, {int(seconds % 1 * 1e6)}}}}};
  setitimer(ITIMER_PROF, &limit, nullptr);
  switch (std::atoi(given[1])) {{ {calls} }}
}}
"""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "cases.cpp", Path(folder) / "cases"
        source.write_text(text)
        try:
            built = subprocess.run(
                [compiler, *_FLAGS, "-o", program, source], stdin=subprocess.DEVNULL, capture_output=True,
                encoding="utf-8", errors="replace", timeout=_COMPILING, check=False,
            )  # fmt: skip
            said = built.stderr[:200] if built.returncode else ""
        except subprocess.TimeoutExpired:
            said = f"not within {_COMPILING:g} s"
        if said or not program.is_file():
            if len(cases) == 1:
                return [Ran(False, "", f"does not compile: {said}")]
            return [_run([case], seconds)[0] for case in cases]
        return [_start(program, i, seconds) for i in range(len(cases))]


def _start(program: Path, number: int, seconds: float) -> Ran:
    try:
        # What is wrong with a program may be what it prints.
        ran = subprocess.run(
            [program, str(number)], capture_output=True, encoding="utf-8", errors="replace",
            timeout=60 + 60 * seconds, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Ran(False, "", "does not end")
    if ran.returncode == 0:
        return Ran(True, ran.stdout)
    return Ran(False, ran.stdout, "does not end" if ran.returncode == -signal.SIGPROF else ran.stderr[:200])


def build(cases: Sequence[Case] | None = None, progress: Callable[[float], None] = lambda share: None) -> list[Case]:
    """The data set: every design, and every mutant whose bug shows.

    A functional bug shows by another output, a sanitizer's word or no end; a program with a directive bug must compile
    and print what the design prints.

    Args:
        cases: designs to put bugs into; this module's when None.
        progress: told the share done.

    Raises:
        HastenError: a design without bugs does not run, or there is no compiler.
    """
    designs_ = list(cases or designs())
    found = []
    size = 2 * (os.cpu_count() or 1)
    for begin in range(0, len(designs_), size):
        groups = [[design, *mutants(design)] for design in designs_[begin : begin + size]]
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            results = list(pool.map(lambda group: run_all(group, workers=1), groups))
        for group, (expected, *seen) in zip(groups, results, strict=True):
            design = group[0]
            if not expected.ok:
                raise HastenError(f"the design {design.name} does not run by itself: {expected.reason}")
            found.append(design)
            for mutant, ran in zip(group[1:], seen, strict=True):
                same = ran.ok and ran.output == expected.output
                compiled = not ran.reason.startswith("does not compile")
                if compiled and same == (mutant.bug in DIRECTIVE):
                    found.append(mutant)
        progress(min(1.0, (begin + size) / len(designs_)))
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


@dataclass(frozen=True)
class Classified:
    """How a checker that names classes did.

    Args:
        recall: by class, the share of its bugs that were called so.
        precision: by class, the share of what was called so that was; 1 where nothing was.
        false_alarms: the share of clean designs in which any bug was seen.
    """

    recall: dict[str, float]
    precision: dict[str, float]
    false_alarms: float

    @property
    def found(self) -> float:
        """The mean of the classes' recalls."""
        return sum(self.recall.values()) / len(self.recall)


def classify(checker: Callable[[str], Iterable[str]], cases: Sequence[Case]) -> Classified:
    """Asks a checker which bugs each case has; only the right class is a hit.

    Args:
        checker: from source text to classes, as `check`.
        cases: with and without bugs.

    Raises:
        HastenError: no case with, or none without a bug.
    """
    said = [(case.bug, set(checker(case.source))) for case in cases]
    made, clean = Counter(bug for bug, _ in said if bug), [named for bug, named in said if not bug]
    if not made or not clean:
        raise HastenError("a benchmark needs cases with and without bugs")
    hits = Counter(bug for bug, named in said if bug in named)
    called = Counter(name for _, named in said for name in named)
    return Classified(
        {bug: hits[bug] / made[bug] for bug in sorted(made)},
        {bug: hits[bug] / called[bug] if called[bug] else 1.0 for bug in sorted(made)},
        sum(map(bool, clean)) / len(clean),
    )


@dataclass(frozen=True)
class Ranked:
    """How well scores tell bugs from clean designs, whatever the threshold: 1 always, 0.5 as a coin does.

    Args:
        area: under the curve of bugs found over false alarms.
        by_class: the same for the bugs of each class alone.
    """

    area: float
    by_class: dict[str, float]


def rank(suspicion: Callable[[str], float], cases: Sequence[Case]) -> Ranked:
    """As `evaluate` for a detector that says how much it suspects a source, such as a language model.

    Args:
        suspicion: from source text to a number, larger for what is likelier to have a bug.
        cases: with and without bugs.

    Raises:
        HastenError: no case with, or none without a bug.
    """
    scores = [(case.bug, float(suspicion(case.source))) for case in cases]
    clean = [score for bug, score in scores if not bug]
    if not clean or len(clean) == len(scores):
        raise HastenError("a benchmark needs cases with and without bugs")

    def area(buggy: Sequence[float]) -> float:
        return sum((b > c) + 0.5 * (b == c) for b in buggy for c in clean) / (len(buggy) * len(clean))

    classes = {bug: [s for b, s in scores if b == bug] for bug in sorted({b for b, _ in scores if b})}
    return Ranked(area([s for b, s in scores if b]), {bug: area(found) for bug, found in classes.items()})
