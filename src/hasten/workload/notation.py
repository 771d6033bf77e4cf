"""Cascades as text: what `format_cascade` prints, `parse_cascade` reads, and nothing is lost between the two.

A statement a line; ``#`` begins a comment::

    ranks i=8, k=3
    input A[i+k-1] fp32             # a shape: numbers, or sizes of ranks
    input F[k] fp32
    output D
    B[i] = sum(k) A[i+k] * F[k]     # how ranks that the output lacks are folded, then what is done at a point
    C[i] = max(B[i], B[i-1 | 0])    # outside of B there is 0
    S[0] = 0
    S[i+1] = S[i] + C[i] along i    # a running value
    D[] = exp(S[8])

Operators at a point are ``*``, ``+``, ``-``, ``/``, a name with its inputs, or a number; a lone input is copied. What
is not declared is an intermediate, as large as it is written and of its inputs' number format. Elements that an index
does not give follow a colon (``A[i]:5``); what else an Einsum has follows in braces: ``{op gather, over i k, kernel 3,
name e7, module "layers.0", source "aten::mm"}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from hasten import dtypes
from hasten.errors import HastenError
from hasten.workload.einsum import Access, Cascade, Einsum, Op, Role, Tensor, check_index
from hasten.workload.index import AffineIndex

_NAME = re.compile(r"[A-Za-z_%][\w.%-]*", re.ASCII)
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|inf|nan)(?![\w.%])", re.ASCII)
_PART = re.compile(r'(?:(?<=^)|(?<=,))(?:[^,"]|"(?:[^"\\]|\\.)*"|")*')
_WHOLE = re.compile(r"\d+")
_SPACE = re.compile(r"\s*(?:#.*)?")
_INFIX = {"*": "mul", "+": "add", "-": "sub", "/": "div"}
_SIGNS = {name: sign for sign, name in _INFIX.items()}
_DECLARED = (Role.INPUT, Role.WEIGHT, Role.STATE, Role.INTERMEDIATE, Role.OUTPUT)


def default_op(map: str, reduce: str | None, iterative: Sequence[str]) -> Op:
    """The kind of an Einsum that does not say it."""
    if map == "mul" and reduce == "sum":
        return Op.MATMUL
    if iterative:
        return Op.SCAN
    return Op.REDUCE if reduce else Op.ELEMENTWISE


# -- printing ----------------------------------------------------------------------------------------


def format_cascade(cascade: Cascade) -> str:
    """A cascade as text that `parse_cascade` turns into an equal one."""
    constant: dict[str, int | None] = {}
    for einsum in cascade.einsums:
        for rank, size in einsum.ranks:
            constant[rank] = size if constant.get(rank, size) == size else None
    sizes = {rank: size for rank, size in constant.items() if size is not None}
    lines = [_ranks(sizes)] if sizes else []
    lines += [f"unknown {_quoted(name)}" for name in cascade.unknown]
    declared = {n: t for n, t in cascade.tensors.items() if t.role is not Role.INTERMEDIATE}
    while True:
        derived = _derive(cascade.einsums, declared)
        wrong = {n: t for n, t in cascade.tensors.items() if n not in declared and derived.get(n) != t}
        if not wrong:
            break
        declared |= wrong
    for name, t in declared.items():
        shape = ", ".join(map(str, t.shape))
        lines.append(f"{t.role.value} {_quoted(name)}[{shape}] {t.dtype}")
    for number, einsum in enumerate(cascade.einsums):
        changed = {rank: size for rank, size in einsum.ranks if sizes.get(rank) != size}
        if changed:
            lines.append(_ranks(changed))
            sizes |= changed
        lines.append(format_einsum(einsum, f"e{number}"))
    return "\n".join(lines) + "\n"


def format_einsum(einsum: Einsum, name: str = "") -> str:
    """One Einsum as a statement, without the sizes of its ranks.

    Args:
        einsum: what to print.
        name: the name that is not worth printing.
    """
    text = f"{_format_access(einsum.output)} = "
    if einsum.reduce is not None:
        text += f"{_quoted(einsum.reduce)}({', '.join(map(_quoted_rank, einsum.reduced))}) "
    inputs = [_format_access(a) for a in einsum.inputs]
    if einsum.map in _SIGNS and (len(inputs) == 2 or (len(inputs) > 2 and einsum.map in ("mul", "add"))):
        text += f" {_SIGNS[einsum.map]} ".join(inputs)
    elif einsum.map == "identity" and len(inputs) == 1:
        text += inputs[0]
    elif not inputs and _NUMBER.fullmatch(einsum.map):
        text += einsum.map
    else:
        text += f"{_quoted(einsum.map)}({', '.join(inputs)})"
    if einsum.iterative:
        text += f" along {', '.join(map(_quoted_rank, einsum.iterative))}"
    further = []
    if einsum.op is not default_op(einsum.map, einsum.reduce, einsum.iterative) or (
        einsum.reduced and einsum.reduce is None
    ):
        further.append(f"op {einsum.op.value}")
    if tuple(n for n, _ in einsum.ranks) != _order(einsum.output, einsum.inputs):
        further.append(" ".join(("over", *(_quoted_rank(n) for n, _ in einsum.ranks))))
    if einsum.kernel != -1:
        further.append(f"kernel {einsum.kernel}")
    if einsum.name != name:
        further.append(f"name {_quoted(einsum.name)}")
    further += [f"{key} {json.dumps(v)}" for key in ("module", "source") if (v := getattr(einsum, key))]
    return text + (f" {{{', '.join(further)}}}" if further else "")


def _ranks(sizes: Mapping[str, int]) -> str:
    return "ranks " + ", ".join(f"{_quoted_rank(rank)}={size}" for rank, size in sizes.items())


def _quoted(name: str) -> str:
    return name if _NAME.fullmatch(name) and not _NUMBER.fullmatch(name) else json.dumps(name)


def _quoted_rank(name: str) -> str:
    return str(AffineIndex(((name, 1),)))


def _format_access(access: Access) -> str:
    outside = "" if access.outside is None else f" | {access.outside!r}"
    count = "" if access.elements is None else f":{access.elements}"
    return f"{_quoted(access.tensor)}[{', '.join(map(str, access.indices))}{outside}]{count}"


def _order(output: Access, inputs: Sequence[Access]) -> tuple[str, ...]:
    """Ranks as they appear, the output's first."""
    return tuple(dict.fromkeys(r for a in (output, *inputs) for r in a.ranks))


def _derive(einsums: Sequence[Einsum], declared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that are written and not declared: as large as they are written, of their inputs' number format."""
    shapes: dict[str, list[int]] = {}
    writers: dict[str, list[Einsum]] = {}
    for einsum in einsums:
        name = einsum.output.tensor
        if name in declared:
            continue
        writers.setdefault(name, []).append(einsum)
        reached = [index.bounds(einsum.sizes)[1] + 1 for index in einsum.output.indices]
        known = shapes.setdefault(name, reached)
        if len(known) == len(reached):
            shapes[name] = [max(pair) for pair in zip(known, reached, strict=True)]
    formats = {n: t.dtype for n, t in declared.items()}
    waiting = dict(writers)
    while waiting:
        found = {}
        for name, own in waiting.items():
            read = (a.tensor for e in own for a in e.inputs)
            dtype = next((formats[t] for t in read if t in formats), None)
            if dtype:
                formats[name] = found[name] = dtype
        if not found:
            break
        waiting = {n: w for n, w in waiting.items() if n not in found}
    return {n: Tensor(n, tuple(shape), formats[n], Role.INTERMEDIATE) for n, shape in shapes.items() if n in formats}


# -- reading -----------------------------------------------------------------------------------------


def parse_cascade(text: str) -> Cascade:
    """The cascade that a text says, see `hasten.workload.notation`.

    Raises:
        HastenError: it says none; with line and column of what is wrong.

    >>> cascade = parse_cascade('''
    ... ranks i=3
    ... input A[4] fp32
    ... D[i] = A[i+1] - A[i]
    ... ''')
    >>> cascade.tensors["D"].shape
    (3,)
    """
    reader = _Reader()
    for number, line in enumerate(text.splitlines(), 1):
        reader.read(_Line(line, number))
    return reader.cascade()


@dataclass
class _Line:
    text: str
    number: int
    at: int = 0

    def fail(self, what: str, at: int | None = None) -> NoReturn:
        raise HastenError(f"line {self.number}, column {(self.at if at is None else at) + 1}: {what}")

    def space(self) -> None:
        found = _SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def end(self) -> bool:
        self.space()
        return self.at >= len(self.text)

    def found(self) -> str:
        """What stands here, for messages."""
        return repr(self.text[self.at : self.at + 12].strip()) if not self.end() else "the end of the line"

    def takes(self, sign: str) -> bool:
        self.space()
        if self.text.startswith(sign, self.at):
            self.at += len(sign)
            return True
        return False

    def expect(self, sign: str, why: str) -> None:
        if not self.takes(sign):
            self.fail(f"found {self.found()} where {sign!r} is needed: {why}")

    def match(self, pattern: re.Pattern[str]) -> str | None:
        self.space()
        found = pattern.match(self.text, self.at)
        if not found:
            return None
        self.at = found.end()
        return found[0]

    def word(self) -> str | None:
        """A name, in quotes or without; None if there is none."""
        string = self.match(_STRING)
        if string is None:
            return self.match(_NAME)
        try:
            return str(json.loads(string))
        except ValueError:
            self.fail(f"{string[:20]} is no text in quotes: write \\\\ for a backslash", self.at - len(string))

    def name(self, what: str) -> str:
        found = self.word()
        if found is None:
            self.fail(f"found {self.found()} where {what} is needed: give a name, in quotes if it has other signs")
        return found

    def whole(self, what: str) -> int:
        found = self.match(_WHOLE)
        if found is None or len(found) > 18:
            self.fail(f"found {found[:12] if found else self.found()} where {what} is needed: give a whole number")
        return int(found)

    def names(self, what: str) -> list[str]:
        found = [self.name(what)]
        while self.takes(","):
            found.append(self.name(what))
        return found

    def inside(self) -> tuple[str, int]:
        """The text between brackets and where it begins; the opening one is behind."""
        start = at = self.at
        while at < len(self.text) and self.text[at] != "]":
            quoted = _STRING.match(self.text, at)
            at = quoted.end() if quoted else at + 1
        if at >= len(self.text):
            self.fail("the bracket is not closed: end the index with ']'", start - 1)
        self.at = at + 1
        return self.text[start:at], start


@dataclass
class _Reader:
    sizes: dict[str, int] = field(default_factory=dict)
    declared: dict[str, tuple[Tensor | Role, _Line]] = field(default_factory=dict)
    einsums: list[tuple[Einsum, _Line]] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    starts: dict[tuple[int, int], int] = field(default_factory=dict)  # Einsum, access -> column

    def read(self, line: _Line) -> None:
        if line.end():
            return
        start = line.at
        word = line.word()
        line.space()
        if word is None or line.text.startswith(("[", "="), line.at):
            line.at = start
            self._einsum(line)
        elif word == "ranks":
            self._sizes(line)
        elif word == "unknown":
            self.unknown.append(line.name("the name of an operator"))
        elif word in _DECLARED:
            self._tensor(line, Role(word))
        else:
            line.fail(
                f"{word[:20]!r} begins no statement: write TENSOR[ranks] = ..., ranks, unknown, or one of "
                + ", ".join(_DECLARED),
                start,
            )
        if not line.end():
            line.fail(f"found {line.found()} after the end of the statement: begin a new line")

    def _sizes(self, line: _Line) -> None:
        while True:
            rank = line.name("a rank")
            line.expect("=", "ranks are given as i=8, k=3")
            self.sizes[rank] = line.whole("a size")
            if not line.takes(","):
                return

    def _tensor(self, line: _Line, role: Role) -> None:
        start = line.at
        name = line.name("a tensor")
        if name in self.declared:
            line.fail(f"{name} is declared twice: keep one", start)
        if not line.takes("["):
            if role in (Role.INTERMEDIATE, Role.OUTPUT):
                self.declared[name] = role, replace(line, at=start)
                return
            line.fail(f"{name} has no shape: write {role} {name}[8, 8] fp32")
        shape = []
        for index, at in self._indices(line, *line.inside()):
            for rank in index.ranks:
                if rank not in self.sizes:
                    line.fail(f"rank {rank} has no size: write ranks {rank}=... above", at)
            size = index.offset + sum(factor * self.sizes[rank] for rank, factor in index.terms)
            if size < 0:
                line.fail(f"a dimension of {size}: give at least 0", at)
            shape.append(size)
        line.space()
        at = line.at
        dtype = line.name("a number format")
        if dtype not in dtypes.BITS:
            line.fail(f"there is no number format {dtype[:20]!r}: use one of {', '.join(dtypes.BITS)}", at)
        self.declared[name] = Tensor(name, tuple(shape), dtype, role), replace(line, at=start)

    def _indices(self, line: _Line, text: str, start: int) -> list[tuple[AffineIndex, int]]:
        """Each index of a bracket and where it begins."""
        if not text.strip():
            return []
        found = []
        for part in _PART.finditer(text):
            at = start + part.start()
            try:
                found.append((AffineIndex.of(part[0]), at))
            except ValueError as error:
                line.fail(
                    f"{part[0].strip()[:20]!r} is no index: write a sum of ranks and whole numbers, as in 2*i+k-1",
                    at + error.args[1],
                )
        return found

    def _access(self, line: _Line, number: int) -> Access:
        line.space()
        start = line.at
        name = line.name("a tensor")
        line.expect("[", f"index {name} by its ranks, or write {name}[]")
        text, at = line.inside()
        index, bar, rest = text.rpartition("|") if "|" in re.sub(_STRING, "", text) else (text, "", "")
        outside = None
        if bar:
            if not _NUMBER.fullmatch(rest.strip()):
                why = f"{rest.strip()[:12]!r} is no number: write what is read outside, as in A[i-1 | 0]"
                line.fail(why, at + len(index) + 1)
            outside = float(rest)
        indices = self._indices(line, index, at)
        for i, where in indices:
            for rank in i.ranks:
                if rank not in self.sizes:
                    line.fail(f"rank {rank} has no size: write ranks {rank}=... above", where)
        elements = line.whole("a number of elements") if line.takes(":") else None
        self.starts.setdefault((len(self.einsums), number), start)
        return Access.at(name, *(i for i, _ in indices), elements=elements, outside=outside)

    def _einsum(self, line: _Line) -> None:
        start = line.at
        output = self._access(line, 0)
        if output.outside is not None:
            line.fail("nothing is written outside of a tensor: leave out what follows '|'", start)
        line.expect("=", "write what the tensor is made of")
        line.space()
        folded_at = line.at
        reduce, folded = self._reduction(line)
        map, inputs = self._expression(line)
        iterative: tuple[str, ...] = ()
        line.space()
        at = line.at
        if line.word() == "along":
            iterative = tuple(line.names("a rank"))
        else:
            line.at = at
        further = self._further(line)
        ranks = further.get("over") or _order(output, inputs)
        for rank in (*ranks, *iterative):
            if rank not in self.sizes:
                line.fail(f"rank {rank} has no size: write ranks {rank}=... above", at)
        missing = [r for r in (*_order(output, inputs), *iterative) if r not in ranks]
        if missing:
            line.fail(f"rank {missing[0]} is not among those that it is over: name it", at)
        op = further.get("op")
        einsum = Einsum(
            name=further.get("name", f"e{len(self.einsums)}"),
            op=op or default_op(map, reduce, iterative),
            ranks=tuple((r, self.sizes[r]) for r in ranks),
            inputs=tuple(inputs),
            output=output,
            map=map,
            reduce=reduce,
            iterative=iterative,
            module=further.get("module", ""),
            kernel=further.get("kernel", -1),
            source=further.get("source", ""),
        )
        lacks = [r for r in einsum.reduced if r not in folded]
        if reduce is not None and (lacks or len(folded) != len(einsum.reduced)):
            wrong = (lacks or [r for r in folded if r not in einsum.reduced] or folded)[0]
            line.fail(
                f"{reduce} folds ({', '.join(folded)}) where {output.tensor} lacks ({', '.join(einsum.reduced)}): "
                f"see to {wrong}",
                folded_at,
            )
        if reduce is None and einsum.reduced and op is None:
            names = ", ".join(einsum.reduced)
            line.fail(f"{output.tensor} lacks {names}: say how to fold, as in sum({names})", folded_at)
        self.einsums.append((einsum, replace(line, at=start)))

    @staticmethod
    def _reduction(line: _Line) -> tuple[str | None, list[str]]:
        """``sum(i, k)`` in front of an expression; an operator with inputs is none."""
        start = line.at
        name = line.word()
        if name is not None and line.takes("("):
            folded: list[str] = []
            if not line.takes(")"):
                while (rank := line.word()) is not None and not line.takes("["):
                    folded.append(rank)
                    if not line.takes(","):
                        break
                if not line.takes(")"):
                    line.at = start
                    return None, []
            at = line.at
            follows = line.match(_NUMBER) or (line.word() is not None and (line.takes("[") or line.takes("(")))
            line.at = at
            if follows:
                return name, folded
            if folded:
                line.fail(f"found {line.found()} where an expression is needed: say what {name} folds")
        line.at = start
        return None, []

    def _expression(self, line: _Line) -> tuple[str, list[Access]]:
        line.space()
        number = line.match(_NUMBER)
        if number is not None:
            return number, []
        start = line.at
        name = line.word()
        if name is not None and line.takes("("):
            inputs: list[Access] = []
            if not line.takes(")"):
                inputs.append(self._access(line, 1))
                while line.takes(","):
                    inputs.append(self._access(line, 1 + len(inputs)))
                line.expect(")", f"close the inputs of {name}")
            return name, inputs
        line.at = start
        inputs = [self._access(line, 1)]
        sign = next((s for s in _INFIX if line.takes(s)), None)
        if sign is None:
            return "identity", inputs
        inputs.append(self._access(line, 2))
        while line.takes(sign):
            if sign in "-/":
                line.fail(f"a second {sign!r}: write an Einsum for each", line.at - 1)
            inputs.append(self._access(line, 1 + len(inputs)))
        if any(line.text.startswith(s, line.at) for s in _INFIX):
            line.fail("two kinds of operator: write an Einsum for each")
        return _INFIX[sign], inputs

    def _further(self, line: _Line) -> dict:  # type: ignore[type-arg]
        found: dict[str, object] = {}
        if not line.takes("{"):
            return found
        while True:
            line.space()
            at = line.at
            key = line.name("a property")
            if key in found:
                line.fail(f"{key} is given twice: keep one", at)
            if key == "op":
                kind = line.name("a kind")
                if kind not in tuple(Op):
                    line.fail(f"there is no op {kind[:20]!r}: use one of {', '.join(Op)}", at)
                found[key] = Op(kind)
            elif key == "over":
                over = []
                while (rank := line.word()) is not None:
                    over.append(rank)
                if len(set(over)) < len(over):
                    line.fail("a rank is there twice: name each once", at)
                found[key] = tuple(over)
            elif key == "kernel":
                sign = -1 if line.takes("-") else 1
                found[key] = sign * line.whole("a number")
            elif key in ("name", "module", "source"):
                found[key] = line.name("a text")
            else:
                line.fail(f"there is no property {key[:20]!r}: use op, over, kernel, name, module or source", at)
            if not line.takes(","):
                break
        line.expect("}", "close the properties")
        return found

    def cascade(self) -> Cascade:
        einsums = [e for e, _ in self.einsums]
        tensors = {n: t for n, (t, _) in self.declared.items() if isinstance(t, Tensor)}
        derived = _derive(einsums, tensors)
        for name, (role, line) in self.declared.items():
            if isinstance(role, Role):
                if name not in derived:
                    line.fail(f"nobody writes {name}: give it a shape and a number format, or an Einsum")
                derived[name] = replace(derived[name], role=role)
        known = tensors | derived
        accesses = [
            (einsum, access, line, self.starts[number, place])
            for number, (einsum, line) in enumerate(self.einsums)
            for place, access in enumerate((einsum.output, *einsum.inputs))
        ]
        written = {e.output.tensor for e in einsums}
        for _, access, line, at in accesses:
            if access.tensor not in known and access.tensor not in written:
                line.fail(f"nobody writes {access.tensor}: declare it as an input, or write it", at)
        for einsum, access, line, at in accesses:
            if access.tensor not in known:
                line.fail(f"no number format is known for {access.tensor}: declare it with its shape", at)
            tensor = known[access.tensor]
            if access.index is not None:
                try:
                    check_index(einsum, access, tensor)
                except HastenError as error:
                    line.fail(str(error), at)
            elif access.elements is None and einsum.touched(access) > tensor.elements:
                touched = einsum.touched(access)
                line.fail(f"{touched} elements are named where {tensor.name} has {tensor.elements}: index it less", at)
        return Cascade(tuple(einsums), known, tuple(self.unknown))
