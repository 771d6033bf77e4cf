"""Circuits as many hands write them, with one directive bug or none: what `hasten.tasks.hls.rules` is judged on.

A second set, made by other code than `hasten.tasks.hls.designs` and without its layout: kernels as trees of loops, into
which a bug is put by the published definition of its class, written out in a style that is drawn: signatures over many
lines, braces anywhere or nowhere, pragmas in old and new notation and in any case, sizes as macros, constants or
numbers, ``ap_int<>``, ``hls::stream``, templates, classes, labels, counters of every form.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TypeAlias

from hasten.errors import HastenError
from hasten.tasks.hls.bugs import Case


@dataclass
class _Pragma:
    """A directive with its options; those without a value are flags."""

    kind: str
    options: dict[str, str | int | None] = field(default_factory=dict)


@dataclass
class _Nest:
    """A loop from ``first`` on, with ``size`` turns."""

    counter: str
    size: int
    body: list[_Nest | str]
    pragmas: list[_Pragma] = field(default_factory=list)
    first: int = 0

    def inner(self) -> list[_Nest]:
        return [part for part in self.body if isinstance(part, _Nest)]


@dataclass
class _Port:
    """An ``array``, ``scalar`` or ``stream`` that is given; ``use`` is ``once`` in order, ``again``, or ``random``."""

    name: str
    kind: str = "array"
    sizes: tuple[int, ...] = ()
    use: str = "once"
    pointer: bool = False


@dataclass
class _Split:
    """An array that is partitioned, and how many elements along its dimension are wanted at once."""

    name: str
    sizes: tuple[int, ...]
    pragma: _Pragma
    at_once: int


@dataclass
class _Function:
    """One function: what it is given, what it holds, its body."""

    name: str
    ports: list[_Port]
    body: list[_Nest | str]
    splits: list[_Split] = field(default_factory=list)
    pragmas: list[_Pragma] = field(default_factory=list)
    callees: list[_Function] = field(default_factory=list)

    def every(self) -> list[_Function]:
        return [*self.callees, self]

    def nests(self) -> list[_Nest]:
        found: list[_Nest] = []
        pending = [part for function in self.every() for part in function.body if isinstance(part, _Nest)]
        while pending:
            found.append(pending.pop(0))
            pending += found[-1].inner()
        return found


def _pipeline(interval: int = 1) -> _Pragma:
    return _Pragma("pipeline", {"II": interval})


def _unroll(factor: int = 0) -> _Pragma:
    return _Pragma("unroll", {"factor": factor} if factor else {})


def _partition(name: str, kind: str, dim: int, factor: int = 0) -> _Pragma:
    options: dict[str, str | int | None] = {"variable": name, "type": kind}
    return _Pragma("array_partition", options | ({"factor": factor} if factor else {}) | {"dim": dim})


def _split(name: str, sizes: tuple[int, ...], kind: str, dim: int, factor: int = 0, at_once: int = 0) -> _Split:
    return _Split(name, sizes, _partition(name, kind, dim, factor), at_once or factor)


# Kernels. Each draws its sizes.


def _matrix_vector(draw: random.Random) -> _Function:
    ways = draw.choice([4, 8])
    rows, columns = draw.choice([6, 10, 12]), ways * draw.choice([3, 4])
    inner = _Nest("col", columns, ["acc += weights[row][col] * held[col];"], [_unroll(ways)])
    return _Function(
        "matrix_vector",
        [_Port("weights", sizes=(rows, columns)), _Port("given", sizes=(columns,)), _Port("made", sizes=(rows,))],
        [
            _Nest("k", columns, ["held[k] = given[k];"], [_pipeline()]),
            _Nest("row", rows, ["{T} acc = 0;", inner, "made[row] = acc;"]),
        ],
        [
            _split("held", (columns,), "cyclic", 1, ways),
            _split("weights", (rows, columns), "cyclic", 2, ways),
        ],
    )


def _halves(draw: random.Random) -> _Function:
    half = draw.choice([8, 12, 20])
    body = ["made[p] = store[p] - store[p + {HALF}];".replace("{HALF}", str(half))]
    return _Function(
        "difference_of_halves",
        [_Port("given", sizes=(2 * half,)), _Port("made", sizes=(half,)), _Port("level", "scalar")],
        [
            _Nest("p", 2 * half, ["store[p] = given[p] + level;"], [_pipeline()]),
            _Nest("p", half, list(body), [_pipeline()]),
        ],
        [_split("store", (2 * half,), "block", 1, 2)],
    )


def _window(draw: random.Random) -> _Function:
    height, width = draw.choice([8, 10]), draw.choice([9, 12])
    shift = _Nest("c", 2, ["win[r][c] = win[r][c + 1];"], [_unroll()])
    add = _Nest("c", 3, ["sum += win[r][c] * (r + c);"], [_unroll()])
    work: list[_Nest | str] = [
        _Nest("r", 3, [shift], [_unroll()]),
        "win[2][2] = image[y][x];",
        "{T} sum = 0;",
        _Nest("r", 3, [add], [_unroll()]),
        "made[y][x] = sum;",
    ]
    columns = _Nest("x", width, work, [_pipeline()])
    return _Function(
        "window_sum",
        [_Port("image", sizes=(height, width)), _Port("made", sizes=(height, width))],
        [_Nest("y", height, [columns])],
        [_split("win", (3, 3), "complete", 0)],
    )


def _gather(draw: random.Random) -> _Function:
    count, size = draw.choice([12, 20]), draw.choice([16, 32])
    return _Function(
        "gather",
        [
            _Port("places", sizes=(count,)),
            _Port("table", sizes=(size,), use="random"),
            _Port("made", sizes=(count,)),
            _Port("bias", "scalar"),
        ],
        [_Nest("n", count, [f"made[n] = table[places[n] % {size}] + bias;"], [_pipeline()])],
    )


def _columns(draw: random.Random) -> _Function:
    """Column after column of what lies row after row."""
    rows, columns = draw.choice([6, 8]), draw.choice([5, 7])
    inner = _Nest("r", rows, ["total += grid[r][c] * scale;"], [_pipeline()])
    return _Function(
        "column_sums",
        [_Port("grid", sizes=(rows, columns), use="random"), _Port("made", sizes=(columns,)), _Port("scale", "scalar")],
        [_Nest("c", columns, ["{T} total = 0;", inner, "made[c] = total;"])],
    )


def _strided(draw: random.Random) -> _Function:
    count, step = draw.choice([10, 15]), draw.choice([3, 5])
    return _Function(
        "decimate",
        [_Port("given", sizes=(count * step,), use="random"), _Port("made", sizes=(count,)), _Port("gain", "scalar")],
        [_Nest("m", count, [f"made[m] = given[m * {step}] * gain;"], [_pipeline()])],
    )


def _reversed_copy(draw: random.Random) -> _Function:
    count = draw.choice([14, 18, 22])
    return _Function(
        "backwards",
        [_Port("given", sizes=(count,), use="random"), _Port("made", sizes=(count,))],
        [_Nest("q", count, [f"made[q] = given[{count - 1} - q];"], [_pipeline()])],
    )


def _stages(draw: random.Random) -> _Function:
    count = draw.choice([16, 24])
    size = (count,)
    load = _Function(
        "fetch",
        [_Port("from", sizes=size), _Port("to", sizes=size)],
        [_Nest("a", count, ["to[a] = from[a];"], [_pipeline()])],
    )
    work = _Function(
        "work",
        [_Port("from", sizes=size), _Port("to", sizes=size), _Port("amount", "scalar")],
        [_Nest("b", count, ["to[b] = from[b] * amount + 1;"], [_pipeline(2)])],
    )
    return _Function(
        "staged",
        [_Port("given", sizes=size), _Port("made", sizes=size), _Port("amount", "scalar")],
        ["{T} between[@];".replace("@", str(count)), "fetch(given, between);", "work(between, made, amount);"],
        [],
        [_Pragma("dataflow")],
        [load, work],
    )


def _two_loops(draw: random.Random) -> _Function:
    count = draw.choice([12, 18])
    return _Function(
        "two_passes",
        [_Port("given", sizes=(count,)), _Port("made", sizes=(count,))],
        [
            f"{{T}} kept[{count}];",
            _Nest("i", count, ["kept[i] = given[i] + 3;"], [_pipeline()]),
            _Nest("i", count, ["made[i] = kept[i] >> 1;"], [_pipeline()]),
        ],
        [],
        [_Pragma("dataflow")],
    )


def _channels(draw: random.Random) -> _Function:
    height, width, depth = 3, draw.choice([4, 5]), draw.choice([4, 8])
    mix = _Nest("ch", depth, ["value += cube[h][w][ch] * mixing[ch];"], [_unroll()])
    columns = _Nest("w", width, ["{T} value = 0;", mix, "made[h][w] = value;"], [_pipeline()])
    return _Function(
        "mix_channels",
        [
            _Port("cube", sizes=(height, width, depth)),
            _Port("mixing", sizes=(depth,), use="again"),
            _Port("made", sizes=(height, width)),
        ],
        [_Nest("h", height, [columns])],
        [
            _split("cube", (height, width, depth), "complete", 3, at_once=depth),
            _split("mixing", (depth,), "complete", 1, at_once=depth),
        ],
    )


def _channel_map(draw: random.Random) -> _Function:
    count = draw.choice([20, 32])
    return _Function(
        "clip_stream",
        [_Port("source", "stream"), _Port("sink", "stream"), _Port("limit", "scalar")],
        [
            _Nest(
                "t",
                count,
                ["{T} item = source.read();", "if (item > limit) item = limit;", "sink.write(item);"],
                [_pipeline()],
            )
        ],
    )


def _pointers(draw: random.Random) -> _Function:
    count = draw.choice([10, 16])
    ends = [_Port(name, sizes=(count,), pointer=True) for name in ("src", "dst")]
    return _Function(
        "copy_by_pointer",
        [*ends, _Port("add", "scalar")],
        [_Nest("u", count, ["*dst++ = *src++ + add;"], [_pipeline()])],
    )


def _counts(draw: random.Random) -> _Function:
    count, bins = draw.choice([24, 30]), draw.choice([8, 16])
    return _Function(
        "count_values",
        [_Port("given", sizes=(count,)), _Port("totals", sizes=(bins,), use="random"), _Port("mask", "scalar")],
        [_Nest("v", count, [f"totals[(given[v] & mask) % {bins}] += 1;"], [_pipeline(2)])],
    )


def _partial_sums(draw: random.Random) -> _Function:
    ways = draw.choice([4, 6])
    turns = draw.choice([5, 6])
    gather = _Nest("lane", ways, [f"part[lane] += given[t * {ways} + lane];"], [_unroll()])
    join = _Nest("lane", ways, ["total += part[lane];"], [_unroll()])
    return _Function(
        "partial_sums",
        [_Port("given", sizes=(ways * turns,)), _Port("made", sizes=(1,))],
        [
            _Nest("lane", ways, ["part[lane] = 0;"], [_unroll()]),
            _Nest("t", turns, [gather], [_pipeline()]),
            "{T} total = 0;",
            join,
            "made[0] = total;",
        ],
        [_split("part", (ways,), "complete", 1), _split("given", (ways * turns,), "cyclic", 1, ways)],
    )


def _tiled(draw: random.Random) -> _Function:
    tile, tiles = draw.choice([6, 8]), draw.choice([3, 4])
    size = (tile * tiles,)
    at = f"t * {tile} + u"
    return _Function(
        "tile_by_tile",
        [_Port("given", sizes=size), _Port("made", sizes=size), _Port("weight", "scalar")],
        [
            _Nest(
                "t",
                tiles,
                [
                    _Nest("u", tile, [f"tile[u] = given[{at}];"], [_pipeline()]),
                    _Nest("u", tile, [f"made[{at}] = tile[u] * weight;"], [_unroll(2)]),
                ],
            )
        ],
        [_split("tile", (tile,), "cyclic", 1, 2)],
    )


def _counted(draw: random.Random) -> _Function:
    """Where an element goes is counted beside the loops."""
    rows, columns = draw.choice([4, 6]), draw.choice([5, 8])
    inner = _Nest("c", columns, ["made[filled++] = grid[r][c] - offset;"], [_pipeline()])
    return _Function(
        "flatten",
        [_Port("grid", sizes=(rows, columns)), _Port("made", sizes=(rows * columns,)), _Port("offset", "scalar")],
        ["int filled = 0;", _Nest("r", rows, [inner])],
    )


def _by_row(draw: random.Random) -> _Function:
    """A function is given a row at a time."""
    rows, columns = draw.choice([5, 7]), draw.choice([6, 9])
    ports = [_Port("line", sizes=(columns,)), _Port("sums", sizes=(rows,)), _Port("row", "scalar")]
    add = _Nest("c", columns, ["total += line[c];"], [_pipeline()])
    callee = _Function("add_row", ports, ["{T} total = 0;", add, "sums[row] = total;"])
    return _Function(
        "sums_of_rows",
        [_Port("image", sizes=(rows, columns)), _Port("sums", sizes=(rows,))],
        [_Nest("r", rows, ["add_row(image[r], sums, r);"])],
        callees=[callee],
    )


_KERNELS: tuple[Callable[[random.Random], _Function], ...] = (
    _matrix_vector, _halves, _window, _gather, _columns, _strided, _reversed_copy, _stages, _two_loops, _channels,
    _channel_map, _pointers, _counts, _partial_sums, _tiled, _counted, _by_row,
)  # fmt: skip


# Bugs, each by its definition. They yield what they made, once for each place.

_Bug: TypeAlias = Callable[[random.Random, _Function], Iterator[_Function]]


def _each(function: _Function, change: Callable[[_Function, int], bool], places: int) -> Iterator[_Function]:
    for place in range(places):
        other = deepcopy(function)
        if change(other, place):
            yield other


def _wrong_type(draw: random.Random, function: _Function) -> Iterator[_Function]:
    def change(other: _Function, place: int) -> bool:
        split = other.splits[place]
        options = split.pragma.options
        if options["type"] in ("cyclic", "block"):
            options["type"] = "block" if options["type"] == "cyclic" else "cyclic"
        else:
            options["type"] = draw.choice(["cyclic", "block"])  # and no factor, which these need
        return True

    yield from _each(function, change, len(function.splits))


def _wrong_factor(draw: random.Random, function: _Function) -> Iterator[_Function]:
    def change(other: _Function, place: int) -> bool:
        split = other.splits[place]
        dim = split.pragma.options["dim"]
        size = split.sizes[int(dim or 1) - 1]
        options = split.pragma.options
        if "factor" not in options:
            return False
        options["factor"] = draw.choice([f for f in range(2, size) if size % f])
        return True

    yield from _each(function, change, len(function.splits))


def _wrong_dimension(draw: random.Random, function: _Function) -> Iterator[_Function]:
    def change(other: _Function, place: int) -> bool:
        split = other.splits[place]
        rank = len(split.sizes)
        options = split.pragma.options
        dims = [rank + 1, rank + 2]
        if options["type"] == "complete" and options["dim"] and split.at_once > 2:
            dims += [d for d in range(1, rank + 1) if d != options["dim"]]
        options["dim"] = draw.choice(dims)
        return True

    yield from _each(function, change, len(function.splits))


def _misplaced_dataflow(draw: random.Random, function: _Function) -> Iterator[_Function]:
    # A call in a loop is a task, if a lonely one.
    calls = tuple(f"{callee.name}(" for callee in function.callees)
    bare = [not any(isinstance(part, _Nest) or part.startswith(calls) for part in n.body) for n in function.nests()]
    innermost = [i for i, without in enumerate(bare) if without]

    def change(other: _Function, place: int) -> bool:
        for one in other.every():
            one.pragmas = [p for p in one.pragmas if p.kind != "dataflow"]
        other.nests()[innermost[place]].pragmas.append(_Pragma("dataflow"))
        return True

    yield from _each(function, change, len(innermost))


def _interface(uses: set[str], kind: str, modes: list[str]) -> _Bug:
    """A port of that use and kind on one of the modes."""

    def make(draw: random.Random, function: _Function) -> Iterator[_Function]:
        def change(other: _Function, place: int) -> bool:
            port = other.ports[place]
            if port.kind != kind or port.use not in uses:
                return False
            other.pragmas = [p for p in other.pragmas if p.options.get("port") != port.name]
            other.pragmas.append(_Pragma("interface", {"mode": draw.choice(modes), "port": port.name}))
            other.splits = [split for split in other.splits if split.name != port.name]
            return True

        yield from _each(function, change, len(function.ports))

    return make


def _around_pipeline(draw: random.Random, function: _Function) -> Iterator[_Function]:
    def change(other: _Function, place: int) -> bool:
        nest = other.nests()[place]
        within = [i for i in nest.inner() if any(p.kind == "pipeline" for p in i.pragmas)]
        if not within:
            return False
        nest.pragmas.append(_pipeline(draw.choice([1, 2, 4])))
        return True

    yield from _each(function, change, len(function.nests()))


def _around_rolled(draw: random.Random, function: _Function) -> Iterator[_Function]:
    def change(other: _Function, place: int) -> bool:
        nest = other.nests()[place]
        if any(p.kind == "pipeline" for p in nest.pragmas):
            return False
        whole = [i for i in nest.inner() if any(p.kind == "unroll" and not p.options for p in i.pragmas)]
        if not nest.inner() or len(whole) == len(nest.inner()):
            return False
        divisors = [d for d in range(2, nest.size + 1) if nest.size % d == 0]
        nest.pragmas = [_unroll(draw.choice([0, *divisors]))]
        return True

    yield from _each(function, change, len(function.nests()))


_BUGS: dict[str, _Bug] = {
    "APT": _wrong_type,
    "FND": _wrong_factor,
    "DID": _wrong_dimension,
    "DFP": _misplaced_dataflow,
    "IDAP": _interface({"again", "random"}, "array", ["axis", "ap_fifo"]),
    "RAMB": _interface({"random"}, "array", ["m_axi"]),
    "SMA": _interface({"once"}, "scalar", ["bram", "ap_memory", "m_axi", "ap_fifo", "axis"]),
    "AMS": _interface({"once", "again", "random"}, "array", ["ap_none", "ap_vld", "s_axilite"]),
    "MLP": _around_pipeline,
    "ILNU": _around_rolled,
}


# Hands.

_TYPES = ("int", "short", "unsigned char", "ap_int<16>", "ap_uint<12>", "sample_t", "T")
_DEBUG = """#ifdef WITH_CHECKS
#pragma HLS DATAFLOW
for (int z = 0; z < 3; z++) {
#endif
#ifdef WITH_CHECKS
}
#endif
"""


class _Hand:
    """Somebody's way of writing."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.type = draw.choice(_TYPES)
        self.word = draw.choice(["HLS", "HLS", "hls"])
        self.case = draw.choice([str.lower, str.upper, str.capitalize])
        self.equals = draw.choice(["=", " = "])
        self.old = draw.random() < 0.5
        self.indented = draw.random() < 0.5
        self.brace = draw.choice([" {", "\n{"])
        self.sizes = draw.choice(["number", "macro", "constant", "constexpr", "enum"])
        self.counter = draw.choice(["int", "unsigned", "std::size_t", "outside"])
        self.labels = draw.random() < 0.5
        self.bare = draw.random() < 0.5
        self.shape = draw.choice(["one line", "lines", "own line"])
        self.around = draw.choice(["", "", "namespace", "class", "namespace" if self.type == "T" else "extern"])
        self.operators = draw.random() < 0.2
        self.used: set[int] = set()
        self.declared: list[set[str]] = []
        self.labelled = 0

    def size(self, value: int) -> str:
        if self.sizes == "number" or value < 4:
            return str(value)
        self.used.add(value)
        return f"LEN_{value}"

    def pragma(self, pragma: _Pragma, depth: int) -> str:
        named = {k: self.size(v) if k == "factor" and isinstance(v, int) else v for k, v in pragma.options.items()}
        words: list[str] = []
        first: list[str] = []
        for key, value in named.items():
            if key in ("mode", "type") and self.old:
                if not (value == "complete" and self.draw.random() < 0.3):
                    (first if key == "mode" else words).append(str(value))
            elif not (key == "dim" and value == 1 and self.draw.random() < 0.5):
                key_ = key.lower() if self.draw.random() < 0.5 else key
                words.append(f"{key_}{self.equals}{value}")
        if pragma.kind != "interface" or self.old:
            self.draw.shuffle(words)
        if pragma.kind == "interface" and self.draw.random() < 0.3:
            words.append(f"depth{self.equals}64")
        text = " ".join([self.word, self.case(pragma.kind), *first, *words])
        indent = "  " * depth if self.indented else ""
        if self.operators and self.word == "HLS":
            return f'{indent}_Pragma("{text}")\n'
        if len(words) > 2 and self.draw.random() < 0.3:
            head, _, tail = text.rpartition(" " + words[-1])
            text = f"{head} \\\n    {words[-1]}{tail}"
        note = self.draw.choice(["", "", "  // as before"])
        return f"{indent}#pragma {text}{note}\n"

    def nest(self, nest: _Nest, depth: int) -> str:
        name, indent = nest.counter, "  " * depth
        out = ""
        if self.labels:
            self.labelled += 1
            out += f"{indent}loop_{name}_{self.labelled}:\n"
        bound, first = self.size(nest.first + nest.size), str(nest.first)
        step = self.draw.choice([f"{name}++", f"++{name}", f"{name} += 1", f"{name} = {name} + 1"])
        tests = ("{0} < {1}", "{0} <= {1} - 1", "{0} != {1}", "{1} > {0}")
        until = self.draw.choice(tests).format(name, bound)
        kind = "int" if self.counter == "outside" else self.counter
        whole = [p for p in nest.pragmas if p.kind != "unroll"]
        rolled = self.counter == "outside" and not self.labels and len(whole) == len(nest.pragmas)
        if rolled and self.draw.random() < 0.4:
            inner = self.body([*nest.body, f"{name}++;"], depth + 1, nest.pragmas)
            begin = f"{indent}{self.declare(kind, name)}{name} = {first};\n"
            return f"{begin}{indent}while ({name} < {bound}) {{\n{inner}{indent}}}\n"
        if self.counter == "outside" and self.draw.random() < 0.7:
            header = f"{indent}for ({name} = {first}; {until}; {step})"
            new = self.declare(kind, name)
            out = (f"{indent}{new}{name};\n" if new else "") + out
        else:
            header = f"{indent}for ({kind} {name} = {first}; {until}; {step})"
        only = nest.body[0] if len(nest.body) == 1 and self.bare else None
        # What is declared before a loop takes braces.
        fits = only.count(";") == 1 if isinstance(only, str) else self.counter != "outside"
        if only is not None and fits:
            return f"{out}{header}\n{self.body([only], depth + 1, nest.pragmas)}"
        braces = self.brace.replace("\n", "\n" + indent)
        return f"{out}{header}{braces}\n{self.body(nest.body, depth + 1, nest.pragmas)}{indent}}}\n"

    def body(self, parts: list[_Nest | str], depth: int, pragmas: list[_Pragma]) -> str:
        out = "".join(self.pragma(p, depth) for p in pragmas)
        self.declared.append(set())
        for part in parts:
            if isinstance(part, _Nest):
                out += self.nest(part, depth)
            else:
                out += "  " * depth + part.replace("{T}", self.type) + "\n"
        self.declared.pop()
        return out

    def declare(self, kind: str, name: str) -> str:
        """A counter's type where it is new in its block."""
        new = name not in self.declared[-1]
        self.declared[-1].add(name)
        return f"{kind} " if new else ""

    def port(self, port: _Port) -> str:
        if port.kind == "stream":
            space = self.draw.choice(["hls::", "hls::", ""])
            return f"{space}stream<{self.type}> &{port.name}"
        if port.pointer:
            return f"{self.draw.choice(['', 'volatile '])}{self.type} *{port.name}"
        return f"{self.type} {port.name}" + "".join(f"[{self.size(n)}]" for n in port.sizes)

    def function(self, function: _Function, depth: int, *, top: bool) -> str:
        ports = [self.port(p) for p in function.ports]
        indent = "  " * depth
        if self.shape == "one line":
            head = f"{indent}void {function.name}({', '.join(ports)})"
        else:
            note = self.draw.choice(["", "  // see the bench", "  /* void f() { */"])
            split = f",{note}\n".join(f"{indent}    {p}" for p in ports)
            name = f"void\n{indent}{function.name}" if self.shape == "own line" else f"void {function.name}"
            head = f"{indent}{name}(\n{split}\n{indent})"
        if self.type == "T":
            head = f"{indent}template <typename T>\n{head}"
        pragmas = [*(self.interfaces(function) if top else []), *function.pragmas]
        given = {p.name for p in function.ports}
        split_pragmas = [(s, s.pragma) for s in function.splits]
        pragmas += [pragma for s, pragma in split_pragmas if s.name in given]
        text = "".join(self.pragma(p, depth + 1) for p in pragmas)
        for split_, pragma in split_pragmas:
            if split_.name not in given:
                sizes = "".join(f"[{self.size(n)}]" for n in split_.sizes)
                text += f"{indent}  {self.draw.choice(['', 'static '])}{self.type} {split_.name}{sizes};\n"
                text += self.pragma(pragma, depth + 1)
        if self.draw.random() < 0.3:
            text += f"{indent}  // #pragma HLS UNROLL factor=7\n"
        if self.draw.random() < 0.2:
            text += _DEBUG
        text += self.body(function.body, depth + 1, [])
        braces = self.brace.replace("\n", "\n" + indent)
        return f"{head}{braces}\n{text}{indent}}}\n\n"

    def interfaces(self, function: _Function) -> list[_Pragma]:
        """What fits each port, unless the bug is there."""
        taken = {p.options["port"] for p in function.pragmas if p.kind == "interface"}
        split = {s.name for s in function.splits}
        found = []
        for port in function.ports:
            if port.name in taken or self.draw.random() < 0.3:
                continue
            if port.kind == "stream":
                modes = ["axis"]
            elif port.kind == "scalar":
                modes = ["s_axilite", "ap_none", "ap_vld"]
            elif port.use != "once" or port.name in split:
                modes = ["bram", "ap_memory"]
            else:
                modes = ["axis", "ap_fifo", "m_axi", "bram", "ap_memory"]
            found.append(_Pragma("interface", {"mode": self.draw.choice(modes), "port": port.name}))
            if found[-1].options["mode"] == "m_axi":
                found.append(_Pragma("interface", {"mode": "s_axilite", "port": port.name, "bundle": "control"}))
        return found

    def source(self, function: _Function) -> str:
        depth = int(self.around in ("namespace", "class", "extern"))
        text = "".join(self.function(f, depth, top=f is function) for f in function.every())
        if self.around:
            head = {"namespace": "namespace design", "class": f"struct Kernel_{function.name}", "extern": 'extern "C"'}
            text = f"{head[self.around]} {{\n{text}}}{';' if self.around == 'class' else ''}\n"
        sizes = sorted(self.used)
        how = {
            "macro": "#define LEN_{0} {0}\n",
            "constant": "static const int LEN_{0} = {0};\n",
            "constexpr": "constexpr unsigned LEN_{0}{{{0}}};\n",
            "enum": "enum {{ LEN_{0} = {0} }};\n",
        }
        given = "".join(how[self.sizes].format(n) for n in sizes) if self.sizes != "number" else ""
        known = self.draw.choice(["typedef short sample_t;\n", "using sample_t = ap_int<9>;\n", '#include "types.h"\n'])
        return "#pragma once\n#include <cstddef>\n" + (known if self.type == "sample_t" else "") + given + "\n" + text


def varied(rounds: int = 2, seed: int = 0) -> list[Case]:
    """Circuits in drawn sizes and styles: each kernel without a bug, and with each bug in each place that takes it.

    They are to be read, not to be run: they have no test bench, and directive bugs alone.

    Args:
        rounds: how often each kernel is drawn.
        seed: of everything drawn.

    Raises:
        HastenError: no round was asked for.
    """
    if rounds < 1:
        raise HastenError(f"{rounds} rounds of circuits: at least 1")
    found = []
    for turn in range(rounds):
        for number, kernel in enumerate(_KERNELS):
            draw = random.Random(f"{seed} {turn} {number}")
            function = kernel(draw)
            found.append(Case(function.name, _Hand(draw).source(deepcopy(function)), ""))
            for bug, make in _BUGS.items():
                found += [Case(function.name, _Hand(draw).source(other), "", bug) for other in make(draw, function)]
    return found
