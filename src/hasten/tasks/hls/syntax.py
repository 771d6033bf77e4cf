"""What a function in C or C++ for high-level synthesis consists of: statements, expressions, variables and its pragmas.

`hasten.tasks.hls.parsing.parse` makes these of a source. Only what is about loops, arrays, whole numbers and directives
is told apart; everything else is an `Other` with its parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from hasten.tasks.hls.preprocessing import Pragma


@dataclass(frozen=True)
class Number:
    """A whole number."""

    value: int


@dataclass(frozen=True)
class Name:
    """A variable, a macro that is not known, or a qualified name such as ``CONFIG_T::rows``."""

    text: str


@dataclass(frozen=True)
class Indexing:
    """``base[index]``."""

    base: Expression
    index: Expression


@dataclass(frozen=True)
class Member:
    """``operand.field`` or ``operand->field``."""

    operand: Expression
    field: str


@dataclass(frozen=True)
class CallExpression:
    """``name(arguments)``, or with a receiver ``receiver.name(arguments)``."""

    name: str
    arguments: tuple[Expression, ...]
    receiver: Expression | None = None


@dataclass(frozen=True)
class Unary:
    """One of ``- + ! ~ * &`` before its operand."""

    operator: str
    operand: Expression


@dataclass(frozen=True)
class Binary:
    """Two operands, with ``,`` among the operators."""

    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True)
class Assign:
    """``target = value``, or with another operator such as ``+=``."""

    operator: str
    target: Expression
    value: Expression


@dataclass(frozen=True)
class Step:
    """``++`` or ``--``, before its target or after it."""

    operator: str
    target: Expression
    before: bool


@dataclass(frozen=True)
class Cast:
    """A value as another type, however written."""

    type: str
    operand: Expression


@dataclass(frozen=True)
class Choice:
    """``condition ? yes : no``."""

    condition: Expression
    yes: Expression
    no: Expression


@dataclass(frozen=True)
class Other:
    """Anything else, with the expressions in it."""

    parts: tuple[Expression, ...] = ()


Expression: TypeAlias = (
    Number | Name | Indexing | Member | CallExpression | Unary | Binary | Assign | Step | Cast | Choice | Other
)  # fmt: skip


@dataclass
class Variable:
    """A variable, parameter or field.

    Args:
        name: its name.
        type: as written, without ``const`` and the like; what an alias stands for, if that is known.
        sizes: of an array's dimensions, the outermost first; None where none is written, as in ``int a[]``.
        pointer: how many ``*``.
        reference: whether ``&``.
        constant: whether it cannot be assigned.
        static: whether it outlives its function.
        value: what it begins with, if that is written.
        initialized: whether it begins with anything at all, a list or a constructor's arguments included.
        line: where it is declared.
    """

    name: str
    type: str = "int"
    sizes: tuple[Expression | None, ...] = ()
    pointer: int = 0
    reference: bool = False
    constant: bool = False
    static: bool = False
    value: Expression | None = None
    initialized: bool = False
    line: int = 0

    @property
    def stream(self) -> bool:
        """Whether it is a first-in first-out channel by its type."""
        return "stream" in self.type.rsplit("::", 1)[-1].split("<")[0] or "::stream<" in self.type

    def shape(self, values: Mapping[str, int]) -> tuple[int | None, ...]:
        """Sizes of dimensions, None where they are not known, or are none."""
        found = (None if size is None else number(size, values) for size in self.sizes)
        return tuple(size if size is not None and size > 0 else None for size in found)


@dataclass
class Loop:
    """A loop.

    Args:
        kind: ``for``, ``while``, ``do``, or ``each`` for one over a container.
        first: declarations and expressions before it.
        condition: under which it goes on; None for ever.
        step: after each iteration.
        body: its statements.
        label: its name, or empty.
        line: where it begins.
        pragmas: directives in it, outside loops within.
        outer: loops around it within its function, outermost first.
    """

    kind: str
    first: list[Statement]
    condition: Expression | None
    step: Expression | None
    body: list[Statement]
    label: str = ""
    line: int = 0
    pragmas: list[Pragma] = field(default_factory=list)
    outer: tuple[Loop, ...] = ()
    span: tuple[int, int] = (0, 0)

    @property
    def variable(self) -> str:
        """The variable that it counts with, or empty."""
        for statement in self.first:
            if isinstance(statement, Declare):
                return statement.variable.name
            if isinstance(statement, Evaluate) and isinstance(statement.expression, Assign):
                target = statement.expression.target
                return target.text if isinstance(target, Name) else ""
        return ""

    def values(self, names: Mapping[str, int]) -> range | None:
        """What its variable takes; None where that is not known, or changes within the loop."""
        name = self.variable
        if self.kind != "for" or not name:
            return None
        begin = next((_begin(s, names) for s in self.first if _begin(s, names) is not None), None)
        step = _step(self.step, name, names)
        end, inclusive = _end(self.condition, name, names)
        if begin is None or not step or end is None:
            return None
        assert self.condition is not None
        if _backwards(self.condition, name, step) != (step < 0):
            return None
        if any(name in changed(statement) for statement in self.body):
            return None
        return range(begin, end + (inclusive if step > 0 else -inclusive), step)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass
class Branch:
    """``if``."""

    condition: Expression
    yes: list[Statement]
    no: list[Statement]


@dataclass
class Cases:
    """``switch``: the statements of every case."""

    value: Expression
    parts: list[list[Statement]]


@dataclass
class Declare:
    """A variable's declaration."""

    variable: Variable
    line: int = 0


@dataclass
class Evaluate:
    """An expression as a statement."""

    expression: Expression
    line: int = 0


@dataclass
class Jump:
    """``return``, ``break``, ``continue`` or ``goto``."""

    kind: str
    value: Expression | None = None
    line: int = 0


Statement: TypeAlias = Loop | Branch | Cases | Declare | Evaluate | Jump


@dataclass
class Function:
    """A function with its body.

    Args:
        name: without what qualifies it.
        parameters: in order.
        body: its statements.
        line: where it begins.
        result: its type as written.
        template: names of its template's parameters, those of classes around it too.
        pragmas: directives in it, outside loops.
        constants: values of its constants and those of its file.
    """

    name: str
    parameters: list[Variable]
    body: list[Statement]
    line: int = 0
    result: str = "void"
    template: tuple[str, ...] = ()
    pragmas: list[Pragma] = field(default_factory=list)
    constants: dict[str, int] = field(default_factory=dict)
    span: tuple[int, int] = (0, 0)

    @property
    def loops(self) -> list[Loop]:
        """All of them, each before those in it."""
        return [s for s in walk(self.body) if isinstance(s, Loop)]

    @property
    def every_pragma(self) -> list[Pragma]:
        """Those of its loops too, in order."""
        found = [*self.pragmas, *(p for loop in self.loops for p in loop.pragmas)]
        return sorted(found, key=lambda pragma: pragma.line)

    @property
    def variables(self) -> dict[str, Variable]:
        """Parameters and everything declared in it; of a name that is declared twice the first."""
        found = {p.name: p for p in self.parameters}
        for statement in walk(self.body):
            if isinstance(statement, Declare):
                found.setdefault(statement.variable.name, statement.variable)
        return found


@dataclass
class Source:
    """A parsed source.

    Args:
        functions: those with a body, in order.
        globals: variables outside functions.
        structs: fields of structures, by the structure's name and theirs.
        errors: lines that could not be understood; what else there is was read.
    """

    functions: list[Function]
    globals: dict[str, Variable]
    structs: dict[str, dict[str, Variable]]
    errors: list[int]

    def function(self, name: str) -> Function | None:
        """The first of that name."""
        return next((f for f in self.functions if f.name == name), None)

    def field(self, name: str) -> Variable | None:
        """A field of that name, of the first structure that has one."""
        return next((fields[name] for fields in self.structs.values() if name in fields), None)


def walk(statements: list[Statement]) -> Iterator[Statement]:
    """Statements and those within them, in the order of the text."""
    pending = list(reversed(statements))
    while pending:
        now = pending.pop()
        yield now
        pending.extend(reversed(inside(now)))


def inside(statement: Statement) -> list[Statement]:
    """The statements directly in one."""
    if isinstance(statement, Loop):
        return [*statement.first, *statement.body]
    if isinstance(statement, Branch):
        return [*statement.yes, *statement.no]
    if isinstance(statement, Cases):
        return [s for part in statement.parts for s in part]
    return []


def expressions(statement: Statement) -> list[Expression]:
    """The expressions directly in a statement, not those of statements within it."""
    found: list[Expression | None]
    if isinstance(statement, Loop):
        found = [statement.condition, statement.step]
    elif isinstance(statement, Branch):
        found = [statement.condition]
    elif isinstance(statement, Cases):
        found = [statement.value]
    elif isinstance(statement, Declare):
        found = [statement.variable.value]
    elif isinstance(statement, Evaluate):
        found = [statement.expression]
    else:
        found = [statement.value]
    return [e for e in found if e is not None]


def parts(expression: Expression) -> tuple[Expression, ...]:
    """The expressions directly in one."""
    match expression:
        case Indexing(base, index):
            return (base, index)
        case CallExpression(_, arguments, receiver):
            return arguments if receiver is None else (receiver, *arguments)
        case Unary(_, operand) | Member(operand, _) | Cast(_, operand):
            return (operand,)
        case Binary(_, left, right):
            return (left, right)
        case Assign(_, target, value):
            return (target, value)
        case Step(_, target, _):
            return (target,)
        case Choice(condition, yes, no):
            return (condition, yes, no)
        case Other(inner):
            return inner
    return ()


def within(expression: Expression) -> Iterator[Expression]:
    """An expression and all in it."""
    pending = [expression]
    while pending:
        now = pending.pop()
        yield now
        pending.extend(reversed(parts(now)))


def changed(statement: Statement) -> set[str]:
    """Names that a statement, or one within it, assigns or takes the address of."""
    found = set()
    for one in walk([statement]):
        for top in expressions(one):
            for expression in within(top):
                target = None
                if isinstance(expression, Assign | Step):
                    target = expression.target
                elif isinstance(expression, Unary) and expression.operator == "&":
                    target = expression.operand
                if isinstance(target, Name):
                    found.add(target.text)
    return found


# Beyond this many bits a value is not followed: a shift may ask for any.
_MOST_BITS = 128


def number(expression: Expression, values: Mapping[str, int]) -> int | None:
    """The value of an expression of whole numbers and of names with values; None for anything else."""
    match expression:
        case Number(value):
            return value
        case Name(text):
            return values.get(text)
        case Cast(_, operand):
            return number(operand, values)
        case Unary(operator, operand):
            inner = number(operand, values)
            return None if inner is None else unary(operator, inner)
        case Binary(operator, left, right):
            a, b = number(left, values), number(right, values)
            return None if a is None or b is None else binary(operator, a, b)
        case Choice(condition, yes, no):
            known = number(condition, values)
            return None if known is None else number(yes if known else no, values)
    return None


def unary(operator: str, value: int) -> int | None:
    """A sign, a complement or a negation."""
    return {"-": -value, "+": value, "~": ~value, "!": int(not value)}.get(operator)


def binary(operator: str, a: int, b: int) -> int | None:
    """Arithmetic as C does it on numbers that fit; None where it has no value."""
    value: int | None = None
    match operator:
        case "+":
            value = a + b
        case "-":
            value = a - b
        case "*":
            value = a * b
        case "/" if b:
            value = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        case "%" if b:
            value = abs(a) % abs(b) * (-1 if a < 0 else 1)
        case "<<" if 0 <= b < _MOST_BITS:
            value = a << b
        case ">>" if 0 <= b < _MOST_BITS:
            value = a >> b
        case "&":
            value = a & b
        case "|":
            value = a | b
        case "^":
            value = a ^ b
        case "<":
            value = int(a < b)
        case "<=":
            value = int(a <= b)
        case ">":
            value = int(a > b)
        case ">=":
            value = int(a >= b)
        case "==":
            value = int(a == b)
        case "!=":
            value = int(a != b)
        case "&&":
            value = int(bool(a) and bool(b))
        case "||":
            value = int(bool(a) or bool(b))
        case ",":
            value = b
    return value if value is not None and value.bit_length() <= _MOST_BITS else None


def _begin(statement: Statement, names: Mapping[str, int]) -> int | None:
    if isinstance(statement, Declare) and statement.variable.value is not None:
        return number(statement.variable.value, names)
    if isinstance(statement, Evaluate) and isinstance(statement.expression, Assign):
        assigned = statement.expression
        return number(assigned.value, names) if assigned.operator == "=" else None
    return None


def _step(step: Expression | None, name: str, names: Mapping[str, int]) -> int | None:
    """What is added to a variable at a time."""
    match step:
        case Step(operator, Name(text), _) if text == name:
            return 1 if operator == "++" else -1
        case Assign(operator, Name(text), value) if text == name and operator in ("+=", "-="):
            by = number(value, names)
            return by if by is None or operator == "+=" else -by
        case Assign("=", Name(text), Binary("+" | "-" as sign, Name(same), value)) if text == name == same:
            by = number(value, names)
            return by if by is None or sign == "+" else -by
        case Assign("=", Name(text), Binary("+", value, Name(same))) if text == name == same:
            return number(value, names)
    return None


def _end(condition: Expression | None, name: str, names: Mapping[str, int]) -> tuple[int | None, int]:
    """(the bound of a variable, 1 where it is reached)."""
    match condition:
        case Binary(("<" | ">" | "<=" | ">=" | "!=") as operator, Name(text), bound) if text == name:
            return number(bound, names), int(operator in ("<=", ">="))
        case Binary(("<" | ">" | "<=" | ">=" | "!=") as operator, bound, Name(text)) if text == name:
            return number(bound, names), int(operator in ("<=", ">="))
    return None, 0


def _backwards(condition: Expression, name: str, step: int) -> bool:
    """Whether a variable must fall to end a loop; where it must only meet its bound, as its step has it."""
    match condition:
        case Binary("!=", _, _):
            return step < 0
        case Binary(operator, Name(text), _) if text == name:
            return operator.startswith(">")
        case Binary(operator, _, _):
            return operator.startswith("<")
    return False
