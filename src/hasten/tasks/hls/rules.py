"""Rules by which directives for high-level synthesis contradict the code that they stand in.

They read loops, arrays and accesses off the text, so they know nothing of which bug was put where.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass, field

# Elements of an array that count as read together, at most: enough to see which partition serves them.
_MOST = 4096


@dataclass
class Loop:
    """A loop: nesting depth within its function, variable, the values that it takes if known, pragmas, outer loops."""

    depth: int
    variable: str
    values: range | None
    pragmas: list[str] = field(default_factory=list)
    outer: list[Loop] = field(default_factory=list)

    @property
    def pipelined(self) -> bool:
        return any("PIPELINE" in p for p in self.pragmas)

    @property
    def unrolled(self) -> bool:
        """Whether wholly."""
        return any(re.search(r"UNROLL\s*$", p) for p in self.pragmas)

    @property
    def together(self) -> list[int]:
        """Values of the variable that are computed at once: unrolled by a pragma, or within a pipelined loop."""
        if self.values is None:
            return [0]
        if self.unrolled or any(o.pipelined for o in self.outer):
            return list(self.values)
        factor = next((int(f[1]) for p in self.pragmas if (f := re.search(r"UNROLL factor=(\d+)", p))), 1)
        return list(self.values[:factor])


@dataclass
class ArrayAccess:
    """``name[index]...`` within its loops, outermost first."""

    name: str
    indices: list[str]
    loops: list[Loop]


@dataclass
class Function:
    """A function's name, arguments, arrays' shapes, pragmas outside loops, loops, accesses, calls."""

    name: str
    arguments: list[str] = field(default_factory=list)
    scalars: set[str] = field(default_factory=set)
    arrays: list[str] = field(default_factory=list)
    shapes: dict[str, list[int]] = field(default_factory=dict)
    pragmas: list[str] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    accesses: list[ArrayAccess] = field(default_factory=list)
    calls: list[tuple[str, list[str]]] = field(default_factory=list)


def _number(text: str) -> int | None:
    """The value of arithmetic on whole numbers; None for anything else."""
    if not re.fullmatch(r"[\d+*/()\s-]+", text):
        return None
    try:
        return int(eval(text.replace("/", "//"), {"__builtins__": {}}))
    except (SyntaxError, ZeroDivisionError, TypeError):
        return None


def _index(text: str, values: dict[str, int]) -> int | None:
    return _number(re.sub(r"[A-Za-z_]\w*", lambda m: str(values.get(m[0], m[0])), text))


def _values(text: str) -> tuple[str, range | None] | None:
    """(variable, values) of a ``for`` line; None if it is none."""
    found = re.search(r"\bfor \(int (\w+) = ([^;]+); \w+ (<=?|>=?) ([^;]+); \w+ ?(\+\+|--|[+-]= ?(\d+))\)", text)
    if not found:
        return None
    begin, end, step = _number(found[2]), _number(found[4]), int(found[6] or 1)
    if begin is None or end is None or step == 0:
        return found[1], None
    down = found[5].startswith("-")
    end += {"<": 0, "<=": 1, ">": 0, ">=": -1}[found[3]]
    return found[1], range(begin, end, -step if down else step)


def functions(source: str) -> list[Function]:
    """The functions of a source, in order. Lines are laid out as in `hasten.tasks.hls.designs`."""
    found: list[Function] = []
    depth = 0
    stack: list[tuple[int, Loop]] = []
    for line in source.splitlines():
        text = line.strip()
        head = re.match(r"(?:void|int) (\w+)\((.*)\) \{$", text)
        if head and depth == 0:
            found.append(Function(head[1]))
            for argument in head[2].split(", "):
                name = re.search(r"(\w+)(?:\[|$)", argument)
                assert name is not None
                found[-1].arguments.append(name[1])
                if "[" in argument:
                    found[-1].arrays.append(name[1])
                    found[-1].shapes[name[1]] = [_number(s) or 0 for s in re.findall(r"\[([^\]]*)\]", argument)]
                elif "*" not in argument:
                    found[-1].scalars.add(name[1])
            depth = 1
            continue
        if not found:
            continue
        now = found[-1]
        if text.startswith("#pragma"):
            (stack[-1][1].pragmas if stack else now.pragmas).append(text)
            continue
        body, loops = text, [loop for _, loop in stack]
        loop = _values(text)
        if loop or text.startswith("while"):
            variable, values = loop or ("", None)
            made = Loop(len(stack), variable, values, outer=list(loops))
            now.loops.append(made)
            loops = [*loops, made]
            body = text.split(") ", 1)[1] if loop else text
            if text.endswith("{"):
                stack.append((depth, made))
        elif declared := re.match(r"(?:int|short|char) (\w+\[.*)", text):
            for name, sizes in re.findall(r"(\w+)((?:\[[^\]]*\])+)(?= ?[=,;])", declared[1]):
                now.shapes[name] = [_number(s) or 0 for s in re.findall(r"\[([^\]]*)\]", sizes)]
            body = ""
        now.accesses += [
            ArrayAccess(array, indices, loops) for array, indices in _accessed(body) if array in now.shapes
        ]
        call = re.match(r"(\w+)\(([^()]*)\);$", text)
        if call:
            now.calls.append((call[1], call[2].split(", ")))
        depth += text.count("{") - text.count("}")
        while stack and depth <= stack[-1][0]:
            stack.pop()
    return found


def _accessed(text: str) -> list[tuple[str, list[str]]]:
    """(array, indices) of every access in a line, those within indices too."""
    found = []
    for start in re.finditer(r"\b([A-Za-z_]\w*)(?=\[)", text):
        indices, at = [], start.end()
        while at < len(text) and text[at] == "[":
            depth, begin = 0, at + 1
            while True:
                depth += (text[at] == "[") - (text[at] == "]")
                at += 1
                if depth == 0:
                    break
            indices.append(text[begin : at - 1])
        found.append((start[1], indices))
    return found


def _in_order(name: str, function: Function, every: dict[str, Function]) -> bool:
    """Whether an array is read or written once each, from its first element on."""
    passed = [(every[c], a.index(name)) for c, a in function.calls if c in every and name in a]
    accesses = [a for a in function.accesses if a.name == name]
    if len(passed) == 1 and not accesses:
        callee, place = passed[0]
        return _in_order(callee.arguments[place], callee, every)
    if passed or len(accesses) != 1 or len(accesses[0].indices) != 1 or len(accesses[0].loops) != 1:
        return False
    loop = accesses[0].loops[0]
    values = loop.values
    return accesses[0].indices[0] == loop.variable and values is not None and values.start == 0 and values.step == 1


def _crowding(elements: set[tuple[int, ...]], dim: int, size: int, kind: str, factor: int) -> int:
    """The most elements that are wanted of one bank at once."""
    width = -(-size // factor) if factor else 1

    def bank(element: tuple[int, ...]) -> int:
        at = element[dim]
        return at if kind == "complete" else at % factor if kind == "cyclic" else at // width

    return max(Counter(bank(e) for e in elements).values(), default=0)


def _wanted(name: str, function: Function) -> list[set[tuple[int, ...]]]:
    """For each innermost loop the elements of an array that it touches at once, where they can be told."""
    groups: dict[int, set[tuple[int, ...]]] = {}
    for access in function.accesses:
        if access.name != name or not access.loops:
            continue
        choices = [loop.together for loop in access.loops if loop.variable]
        names = [loop.variable for loop in access.loops if loop.variable]
        # Loops that are unrolled within one another belong to the outermost of them.
        owner = next((i for i, loop in enumerate(access.loops) if len(loop.together) > 1), len(access.loops) - 1)
        for number, point in enumerate(itertools.product(*choices)):
            element = tuple(_index(i, dict(zip(names, point, strict=True))) for i in access.indices)
            if number >= _MOST or any(e is None for e in element):
                break
            groups.setdefault(id(access.loops[owner]), set()).add(element)  # type: ignore[arg-type]
    return list(groups.values())


def check(source: str) -> list[str]:
    """Classes of `hasten.tasks.hls.bugs.DIRECTIVE` whose rules a source breaks; of a clean one none."""
    known = functions(source)
    every = {f.name: f for f in known}
    found: set[str] = set()
    for function in known:
        pragmas = [*function.pragmas, *(p for loop in function.loops for p in loop.pragmas)]
        for pragma in pragmas:
            port = re.search(r"INTERFACE mode=(\w+) port=(\w+)", pragma)
            if port:
                found |= _interface(port[1], port[2], function, every)
            part = re.search(r"ARRAY_PARTITION variable=(\w+) type=(\w+)(?: factor=(\d+))? dim=(\d+)", pragma)
            if part:
                found |= _partition(part[1], part[2], int(part[3] or 0), int(part[4]), function)
        for loop in function.loops:
            inner = [other for other in function.loops if any(o is loop for o in other.outer)]
            for pragma in loop.pragmas:
                factor = re.search(r"UNROLL factor=(\d+)", pragma)
                if factor and loop.values is not None and len(loop.values) % int(factor[1]):
                    found.add("FND")
            if loop.pipelined and any(other.pipelined for other in inner):
                found.add("MLP")
            if loop.unrolled and any(not other.unrolled for other in inner):
                found.add("ILNU")
        if any("DATAFLOW" in p for p in pragmas) and sum(c in every for c, _ in function.calls) < 2:
            found.add("DFP")
    return sorted(found)


def _interface(mode: str, port: str, function: Function, every: dict[str, Function]) -> set[str]:
    if port in function.scalars:
        return {"AMS"} if mode in ("ap_memory", "bram", "axis", "m_axi") else set()
    if port not in function.arrays:
        return set()
    if mode == "s_axilite":
        return {"SMA"}
    if mode in ("axis", "m_axi") and not _in_order(port, function, every):
        return {"IDAP" if mode == "axis" else "RAMB"}
    return set()


def _partition(name: str, kind: str, factor: int, dim: int, function: Function) -> set[str]:
    shape = function.shapes.get(name, [])
    if dim > len(shape):
        return {"DID"}
    size = shape[dim - 1]
    found = {"FND"} if factor and size % factor else set()
    for elements in _wanted(name, function):
        crowded = _crowding(elements, dim - 1, size, kind, factor)
        # The same number of banks another way, or the same way along another dimension.
        if kind == "complete":
            others = [_crowding(elements, d, shape[d], kind, factor) for d in range(len(shape))]
        else:
            others = [_crowding(elements, dim - 1, size, k, factor) for k in ("cyclic", "block")]
        if not found and crowded > min(others):
            found.add("APT")
    return found
