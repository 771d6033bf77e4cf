"""Rules by which directives for high-level synthesis contradict the code that they stand in.

They read the parsed source alone, so they know nothing of which bug was put where. Classes are those of the published
set of bugs (Chrysalis, in arXiv 2406.10903, section 4.3, and the specification beside its data).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeAlias

from hasten.errors import HastenError
from hasten.tasks.hls.access_order import Followed, Touch, follow, together
from hasten.tasks.hls.parsing import parse
from hasten.tasks.hls.preprocessing import Pragma
from hasten.tasks.hls.syntax import (
    Assign,
    Binary,
    Branch,
    CallExpression,
    Cases,
    Declare,
    Evaluate,
    Expression,
    Function,
    Indexing,
    Jump,
    Loop,
    Member,
    Name,
    Source,
    Statement,
    Step,
    Unary,
    Variable,
    expressions,
    inside,
    number,
    walk,
    within,
)

# Interface modes that carry many values, and those that carry one.
_ARRAY_MODES = {"ap_memory", "bram", "m_axi", "ap_fifo", "axis"}
_SCALAR_MODES = {"ap_none", "ap_vld", "ap_ack", "ap_ovld", "s_axilite"}
_NUMBER = re.compile(
    r"(?:unsigned|signed|char|short|int|long|float|double|bool|half|size_t|u?int\d+(?:_t)?"
    r"|(?:\w+::)?ap_u?(?:int|fixed)\s*<.*>|\s)+"
)  # fmt: skip
# Calls that are no tasks of a dataflow region: of the language, and methods of channels.
_NO_TASKS = {"assert", "printf", "static_assert"}
_CHANNELS = {"read", "write", "read_nb", "write_nb", "empty", "full", "size"}
# Of a memory block.
_PORTS = 2

_Element: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, order=True)
class Finding:
    """A directive that contradicts its code.

    Args:
        line: of the source.
        bug: a class of `hasten.tasks.hls.bugs.DIRECTIVE`.
        reason: one line for a person.
    """

    line: int
    bug: str
    reason: str


def check(source: str) -> list[str]:
    """Classes of `hasten.tasks.hls.bugs.DIRECTIVE` whose rules a source breaks; of a clean one none.

    Raises:
        HastenError: as `hasten.tasks.hls.parsing.parse`.
    """
    return sorted({finding.bug for finding in findings(source)})


def findings(source: str) -> list[Finding]:
    """What is wrong, by line.

    Raises:
        HastenError: as `hasten.tasks.hls.parsing.parse`.
    """
    parsed = parse(source)
    shared = _Shared(parsed)
    return sorted(
        {finding for function in parsed.functions for finding in _Checked(parsed, function, shared).findings()}
    )


class _Shared:
    """What the rules ask of a whole source."""

    def __init__(self, source: Source) -> None:
        self.source = source

    @cached_property
    def called(self) -> list[tuple[Function, set[str]]]:
        """Functions, and the names that each calls from a pipeline."""
        found = []
        for function in self.source.functions:
            bodies = [function.body] if _pipelined(function.pragmas) else []
            bodies += [loop.body for loop in function.loops if _pipelined(loop.pragmas)]
            made = (e for body in bodies for s in walk(body) for top in expressions(s) for e in within(top))
            found.append((function, {e.name for e in made if isinstance(e, CallExpression)}))
        return found

    @cached_property
    def parallel(self) -> dict[Loop, int | None]:
        """As `together` takes it, for loops of every function of the source."""
        found: dict[Loop, int | None] = {}
        for function in self.source.functions:
            whole = _pipelined(function.pragmas)
            for loop in function.loops:
                factor = _unrolled(loop, function)
                found[loop] = None if whole else 0 if _pipelined(loop.pragmas) else 1 if factor == 0 else factor
        return found


class _Checked:
    """One function under the rules."""

    def __init__(self, source: Source, function: Function, shared: _Shared) -> None:
        self.source, self.function, self.shared = source, function, shared
        self.variables = {**source.globals, **function.variables}
        self.pragmas = function.every_pragma
        self._runs: dict[bool, Followed] = {}

    def _run(self, taken: bool) -> Followed:
        """The order of its accesses where conditions on data hold, or where they do not."""
        if taken not in self._runs:
            self._runs[taken] = follow(self.source, self.function, taken=taken)
        return self._runs[taken]

    def findings(self) -> Iterator[Finding]:
        yield from self._interfaces()
        for pragma in self.pragmas:
            if pragma.kind in ("array_partition", "array_reshape"):
                for name in pragma.names("variable"):
                    yield from self._partition(pragma, name)
        yield from self._loops()
        yield from self._dataflow()

    # Interfaces.

    def _interfaces(self) -> Iterator[Finding]:
        modes: dict[str, set[str]] = {}
        ports = []
        for pragma in self.pragmas:
            if pragma.kind == "interface":
                said = next((f for f in pragma.flags if f in _ARRAY_MODES | _SCALAR_MODES), "")
                mode = pragma.options.get("mode", said).lower()
                for port in pragma.names("port"):
                    modes.setdefault(port, set()).add(mode)
                    ports.append((pragma.line, mode, port))
        for line, mode, port in ports:
            found = self._interface(mode, port, modes[port])
            if found is not None:
                yield Finding(line, *found)

    def _interface(self, mode: str, port: str, modes: set[str]) -> tuple[str, str] | None:
        variable = self.variables.get(port)
        if variable is None:
            return None
        kind = self._kind(variable)
        if kind == "channel" and mode in _SCALAR_MODES:
            return "AMS", f"{port} is a channel, {mode} is for one value"
        if kind == "channel" and mode in _ARRAY_MODES - {"axis", "ap_fifo"}:
            return "IDAP", f"{port} is a channel, {mode} is for any order"
        if kind == "scalar" and mode in _ARRAY_MODES:
            return "SMA", f"{port} is one value, {mode} is for arrays"
        if kind == "array" and mode in _SCALAR_MODES:
            # An address register beside a memory bus, and elements that are ports of their own.
            fits = "m_axi" in modes if mode == "s_axilite" else self._apart(port)
            return None if fits else ("AMS", f"{port} is an array, {mode} is for one value")
        if kind == "array" and mode in ("axis", "ap_fifo"):
            why = self._out_of_order(variable)
            return ("IDAP", f"{port} is a stream by {mode}, but {why}") if why else None
        if kind == "array" and mode == "m_axi" and not self._kept(port):
            why = self._no_bursts(variable)
            return ("RAMB", f"{port} is on a memory bus, but {why}") if why else None
        return None

    def _kind(self, variable: Variable) -> str:
        """``array``, ``scalar``, ``channel``, or empty for what the source does not say."""
        if variable.stream:
            return "channel"
        if variable.sizes:
            return "array"
        uses = _uses(self.function, variable.name)
        if variable.pointer:
            return "array" if uses & {"many", "moved"} else ""
        if _NUMBER.fullmatch(variable.type):
            return "scalar"
        known = "<" in variable.type or variable.type in self.source.structs
        return "" if uses & {"many", "method", "channel"} or known or variable.reference else "scalar"

    def _apart(self, name: str) -> bool:
        """Whether every element of an array is a register of its own."""
        for pragma in self.pragmas:
            if pragma.kind == "array_partition" and name in pragma.names("variable"):
                rank = len(self.variables[name].sizes)
                dim = self._number(pragma.options.get("dim", "1"))
                if _type(pragma) == "complete" and (dim == 0 or rank == 1):
                    return True
        return False

    def _kept(self, name: str) -> bool:
        """Whether what a window needs again of an array is kept beside it."""
        return any(p.kind in ("array_stencil", "cache") and name in p.names("variable", "port") for p in self.pragmas)

    def _addresses(self, variable: Variable, run: Followed) -> list[tuple[Touch, int | None]]:
        """Each touch of an array with its place in memory, None where that depends on data."""
        sizes = (0, *variable.shape({**run.supposed, **self.function.constants})[1:])
        found: list[tuple[Touch, int | None]] = []
        for touch in run.touches:
            if touch.array != variable.name:
                continue
            if None in touch.element:
                found.append((touch, None))
            elif None not in sizes:  # else a size of another file says what lies beside what
                place = 0
                for index, size in zip(touch.element, sizes):
                    place = place * (size or 0) + (index or 0)
                found.append((touch, place))
        return found

    def _out_of_order(self, variable: Variable) -> str:
        """Why an array is not read or written once each, from its first element on; empty where it is."""
        for run in map(self._run, (True, False)):
            touches = self._addresses(variable, run)
            if variable.name in run.passed:
                continue
            if len({touch.write for touch, _ in touches}) == 2:
                return "is read and written"
            before: tuple[Touch, int] | None = None
            for touch, place in touches:
                if place is None:
                    return f"its element in line {touch.line} depends on data"
                if before is None:
                    wrong = place != 0 and not run.supposed
                else:
                    again = place == before[1] and touch.part and before[0].part
                    lost = before[0].nest in run.cut and before[0].nest != touch.nest
                    wrong = place != before[1] + 1 and not again and not lost
                if wrong:
                    after = f"element {before[1]}" if before else "nothing"
                    return f"element {place} follows {after} in line {touch.line}"
                before = touch, place
        return ""

    def _no_bursts(self, variable: Variable) -> str:
        """Why a loop's accesses to an array are not in a row; empty where they are."""
        for run in map(self._run, (True, False)):
            if variable.name in run.passed:
                continue
            by_nest: dict[tuple[int, bool], list[tuple[Touch, int | None]]] = {}
            for touch, place in self._addresses(variable, run):
                if touch.loops:
                    by_nest.setdefault((touch.nest, touch.write), []).append((touch, place))
            for touches in by_nest.values():
                seen: set[int] = set()
                starts: set[int] = set()
                before: int | None = None
                for touch, place in touches:
                    if place is None:
                        return f"its element in line {touch.line} depends on data"
                    if before is None or place - before not in (0, 1):
                        if before is not None and touch.turns[-1]:
                            return f"element {place} follows element {before} in line {touch.line}"
                        # A pass that is made again is a burst again; one that begins within another is none of its own.
                        if place in seen and place not in starts:
                            return f"element {place} is asked for again in line {touch.line}"
                        starts.add(place)
                    seen.add(place)
                    before = place
        return ""

    # Partitions.

    def _number(self, text: str) -> int | None:
        """The value of an option."""
        return _arithmetic(text, self.function.constants)

    def _array(self, name: str) -> Variable | None:
        if name in self.variables:
            return self.variables[name]
        owner, _, last = name.replace("->", ".").rpartition(".")
        kind = self.variables[owner].type if owner in self.variables else ""
        if kind in self.source.structs:
            return self.source.structs[kind].get(last)
        if owner not in ("", "this"):
            return None
        return self.source.field(last)

    def _partition(self, pragma: Pragma, name: str) -> Iterator[Finding]:
        kind, given = _type(pragma), "factor" in pragma.options
        if kind not in ("complete", "cyclic", "block"):
            yield Finding(pragma.line, "APT", f"{name}: there is no type {kind}")
            return
        if given != (kind in ("cyclic", "block")) and (given is False or _said(pragma)):
            yield Finding(pragma.line, "APT", f"{name}: {kind} takes {'no' if given else 'a'} factor")
            return
        array = self._array(name)
        if array is None or not (array.sizes or array.pointer):
            return
        factor = self._number(pragma.options["factor"]) if given else None
        rank = len(array.sizes) + array.pointer
        dim = self._number(pragma.options.get("dim", "1"))
        if dim is None:
            return
        if not 0 <= dim <= rank:
            yield Finding(pragma.line, "DID", f"{name} has no dimension {dim}")
            return
        shape = array.shape(self.function.constants)
        for size in shape if dim == 0 else shape[dim - 1 : dim]:
            if size is not None and factor and size % factor:
                yield Finding(pragma.line, "FND", f"{name}: {factor} does not divide {size} elements")
                return
        size = None if dim == 0 or dim > len(shape) else shape[dim - 1]
        if size is None:
            return
        if kind == "complete":
            yield from self._other_dimension(pragma, name, dim - 1, shape)
        elif factor and factor > 0:
            yield from self._other_type(pragma, name, (kind, factor, dim - 1, size))

    def _at_once(self, name: str, rank: int) -> list[set[_Element]]:
        """Sets of elements of an array that are wanted at the same time, of those that can be told."""
        touches = [t for t in self._run(True).touches if t.array == name and len(t.element) == rank]
        groups = together([t for t in touches if None not in t.element], self.shared.parallel)
        return [{tuple(i or 0 for i in t.element) for t in group} for group in groups]

    def _other_type(self, pragma: Pragma, name: str, part: tuple[str, int, int, int]) -> Iterator[Finding]:
        kind, factor, dim, size = part
        for elements in self._at_once(name, len(self.variables[name].sizes) if name in self.variables else dim + 1):
            crowd = _crowding(elements, [part])
            for other in {"cyclic", "block"} - {kind}:
                if _crowding(elements, [(other, factor, dim, size)]) < crowd:
                    reason = f"{name}: {crowd} elements of one bank are wanted at once, with {other} fewer"
                    yield Finding(pragma.line, "APT", reason)
                    return

    def _other_dimension(self, pragma: Pragma, name: str, dim: int, shape: tuple[int | None, ...]) -> Iterator[Finding]:
        """Whether along a dimension that is not split yet fewer elements of a bank are wanted than it has ports."""
        beside: list[tuple[str, int, int, int]] = []
        for other in self.pragmas:
            if other.kind == pragma.kind and name in other.names("variable") and other is not pragma:
                along = self._number(other.options.get("dim", "1"))
                factor = self._number(other.options.get("factor", "1"))
                if not along or along > len(shape) or shape[along - 1] is None or not factor or factor < 1:
                    return
                beside.append((_type(other), factor, along - 1, shape[along - 1] or 1))
        free = [d for d, size in enumerate(shape) if size is not None and d != dim and d not in {p[2] for p in beside}]
        for elements in self._at_once(name, len(shape)):
            crowd = _crowding(elements, [*beside, ("complete", 1, dim, 1)])
            # Only where its own dimension does nothing: else one more may be missing, which is no bug.
            useless = crowd > _PORTS and crowd == _crowding(elements, beside)
            for along in free if useless else ():
                fewer = _crowding(elements, [*beside, ("complete", 1, along, 1)])
                if fewer <= _PORTS:
                    reason = (
                        f"{name}: {crowd} of one bank are wanted at once, {fewer} if split along dimension {along + 1}"
                    )
                    yield Finding(pragma.line, "DID", reason)
                    return

    @property
    def _called_in_pipeline(self) -> bool:
        """Whether another function of the source calls this one from a pipeline."""
        return any(self.function.name in names for f, names in self.shared.called if f is not self.function)

    # Loops.

    def _loops(self) -> Iterator[Finding]:
        whole = _pipelined(self.function.pragmas)
        for loop in self.function.loops:
            around = next((o for o in reversed(loop.outer) if _pipelined(o.pragmas)), None)
            if _pipelined(loop.pragmas) and (whole or around is not None):
                where = f"the loop in line {around.line}" if around is not None else "its function"
                yield Finding(loop.line, "MLP", f"{where} is pipelined too, which unrolls this loop")
            factor = _unrolled(loop, self.function)
            values = loop.values(self.function.constants)
            if factor and values is not None and len(values) % factor:
                yield Finding(
                    loop.line, "FND", f"unrolled {factor} times, which does not divide {len(values)} iterations"
                )
            if whole or around is not None or self._called_in_pipeline:
                continue  # everything in a pipeline is unrolled
            outer = next((o for o in loop.outer if _unrolled(o, self.function) not in (0, 1)), None)
            if outer is None or not factor:
                continue  # wholly, or as many times as another file says
            if values is None or factor < len(values):
                yield Finding(outer.line, "ILNU", f"unrolled around the loop in line {loop.line}, which is not wholly")

    # Dataflow.

    def _dataflow(self) -> Iterator[Finding]:
        owners: list[tuple[list[Pragma], list[Statement]]] = [(self.function.pragmas, self.function.body)]
        owners += [(loop.pragmas, loop.body) for loop in self.function.loops]
        for pragmas, body in owners:
            for pragma in pragmas:
                if pragma.kind == "dataflow" and "off" not in pragma.flags:
                    loops, calls = self._tasks(body)
                    if not calls and loops < 2:
                        reason = "only a loop is here" if loops else "no loops or calls are here"
                        yield Finding(pragma.line, "DFP", f"{reason}, nothing runs beside another")

    def _tasks(self, statements: list[Statement]) -> tuple[int, int]:
        """Loops and calls that stand directly in a region, in its branches too."""
        loops = calls = 0
        for statement in statements:
            value: Expression | None = None
            if isinstance(statement, Loop):
                loops += 1
            elif isinstance(statement, Branch | Cases):
                inner = self._tasks(inside(statement))
                loops, calls = loops + inner[0], calls + inner[1]
            elif isinstance(statement, Declare):
                calls += "task" in statement.variable.type
                value = statement.variable.value
            elif isinstance(statement, Evaluate | Jump):
                value = statement.expression if isinstance(statement, Evaluate) else statement.value
                if isinstance(value, CallExpression):
                    calls += value.name not in (_NO_TASKS if value.receiver is None else _CHANNELS)
                    value = None
                elif isinstance(value, Assign):
                    value = value.value
            if isinstance(value, CallExpression) and value.receiver is None:
                calls += self.source.function(value.name) is not None
        return loops, calls


def _said(pragma: Pragma) -> str:
    """The type of a partition, where it is written."""
    named = pragma.options.get("type", "").lower()
    return named or next((f for f in pragma.flags if f in ("complete", "cyclic", "block")), "")


def _type(pragma: Pragma) -> str:
    return _said(pragma) or "complete"


def _pipelined(pragmas: list[Pragma]) -> bool:
    return any(p.kind == "pipeline" and "off" not in p.flags and "off" not in p.options for p in pragmas)


def _unrolled(loop: Loop, function: Function) -> int | None:
    """How many iterations at once: None for all, 0 where it is not known, 1 without a directive."""
    for pragma in loop.pragmas:
        if pragma.kind == "unroll" and "off" not in pragma.flags and pragma.options.get("off") is None:
            text = pragma.options.get("factor")
            if text is None:
                return None
            value = _arithmetic(text, function.constants)
            return 0 if value is None or value < 1 else value
    return 1


def _arithmetic(text: str, names: dict[str, int]) -> int | None:
    """The value of an option's text."""
    try:
        return int(text, 0)
    except ValueError:
        pass
    written = _written(text)
    return None if written is None else number(written, names)


@lru_cache(maxsize=1024)
def _written(text: str) -> Expression | None:
    """The expression that an option's text is; None for none."""
    if not re.fullmatch(r"[\w\s+*/%():<>-]+", text) or len(text) > 500:
        return None
    try:
        body = parse(f"int option() {{ return {text}; }}").functions[0].body
    except HastenError:  # parentheses that do not close
        return None
    return body[0].value if body and isinstance(body[0], Jump) else None


def _crowding(elements: set[_Element], parts: list[tuple[str, int, int, int]]) -> int:
    """The most elements wanted of one bank at once, of an array split by (type, factor, dimension, its size)."""

    def bank(element: _Element) -> _Element:
        found = []
        for kind, factor, dim, size in parts:
            at = element[dim]
            found.append(at if kind == "complete" else at % factor if kind == "cyclic" else at // -(-size // factor))
        return tuple(found)

    return max(Counter(bank(e) for e in elements).values(), default=0)


def _uses(function: Function, name: str) -> set[str]:
    """How a parameter is used: as ``many`` values, ``moved`` as a pointer is, through a ``method``, as a channel."""
    found = set()
    me = Name(name)
    for statement in walk(function.body):
        for top in expressions(statement):
            for expression in within(top):
                match expression:
                    case Indexing(base, _) if base == me:
                        found.add("many")
                    case Unary("*", Binary("+" | "-", left, right)) if me in (left, right):
                        found.add("many")
                    case Step(_, target, _) | Assign("+=", target, _) if target == me:
                        found.add("moved")
                    case CallExpression(_, _, receiver) if receiver == me:
                        found.add("method")
                    case Member(operand, _) if operand == me:
                        found.add("method")
                    case Binary("<<" | ">>", left, _) if left == me and expression is top:
                        found.add("channel")
    return found
