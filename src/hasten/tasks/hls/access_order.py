"""In which order a function touches the elements of its arrays: its loops are followed, without a compiler.

Loops are run as they stand on whole numbers alone. What comes from data is unknown, a condition on it goes the way
that is asked for. Sizes that a source does not say (parameters, a template's arguments) are given small numbers of
their own, so that ``a[i * n + j]`` is in order whatever n is; functions of the same source are entered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from hasten.tasks.hls.syntax import (
    Assign,
    Binary,
    Branch,
    CallExpression,
    Cases,
    Cast,
    Choice,
    Declare,
    Evaluate,
    Expression,
    Function,
    Indexing,
    Loop,
    Member,
    Name,
    Number,
    Source,
    Statement,
    Step,
    Unary,
    Variable,
    binary,
    changed,
    parts,
    unary,
)

# What a size is taken for that a source does not say.
_SUPPOSED = (6, 5, 7, 4, 9, 8, 11, 10)
# Statements followed in one statement of the function's own, and in all.
_MOST_IN_ONE, _MOST = 2_500, 25_000
# Iterations of a loop whose end is not known; calls within calls.
_TURNS, _DEEPEST = 2, 8


@dataclass(frozen=True)
class Touch:
    """An element that is read or written.

    Args:
        array: its array's name; ``function/name`` within a function that was called.
        element: its indices; None for what depends on data.
        write: whether it is written.
        loops: around it, outermost first, those around the call that led to it too.
        turns: how often each of them had gone round.
        nest: the number of the statement of the function's body in which it is.
        line: of the statement.
        part: whether only a field of it.
    """

    array: str
    element: tuple[int | None, ...]
    write: bool
    loops: tuple[Loop, ...]
    turns: tuple[int, ...]
    nest: int
    line: int
    part: bool = False


@dataclass
class Followed:
    """What following a function gave.

    Args:
        touches: in order.
        supposed: names whose values the source does not say.
        cut: numbers of statements that go on for longer than was followed.
        passed: arrays that went to functions of other sources, or whose pointer went on by what data say.
    """

    touches: list[Touch] = field(default_factory=list)
    supposed: dict[str, int] = field(default_factory=dict)
    cut: set[int] = field(default_factory=set)
    passed: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _View:
    """Where a pointer or the name of an array points: indices that are fixed, and a place along the next dimension."""

    array: str
    rank: int
    fixed: tuple[int | None, ...] = ()
    place: int | None = 0


_Value = int | _View | None


class _Enough(Exception):
    """So much is not followed."""


def follow(source: Source, function: Function, *, taken: bool = True) -> Followed:
    """Follows a function from its first statement to its last.

    Args:
        source: where functions that it calls are looked for.
        function: of it.
        taken: whether conditions that depend on data hold.
    """
    made = _Walker(source, taken)
    try:
        made.start(function)
    except RecursionError:  # expressions and calls within one another beyond what is followed
        made.found.cut.add(made.nest)
    return made.found


class _Walker:
    def __init__(self, source: Source, taken: bool) -> None:
        self.source, self.taken = source, taken
        self.found = Followed()
        self.loops: list[tuple[Loop, int]] = []
        self.calls: list[Function] = []
        self.names: dict[str, _Value] = {}
        self.constants: dict[str, int] = {}
        self.line = self.nest = self.steps = self.total = 0

    def start(self, function: Function) -> None:
        self.calls = [function]
        self.constants = function.constants
        self._globals()
        for parameter in function.parameters:
            if parameter.sizes or parameter.pointer:
                self.names[parameter.name] = _View(parameter.name, len(parameter.sizes) + parameter.pointer)
        for self.nest, statement in enumerate(function.body):
            self.steps = 0
            try:
                if self._statement(statement) == "return" and not isinstance(statement, Branch):
                    break
            except _Enough:
                self.found.cut.add(self.nest)
                self.loops.clear()
                del self.calls[1:]
                for name in changed(statement):
                    if name in self.names:
                        self.names[name] = None
                if self.total > _MOST:
                    break

    def _globals(self) -> None:
        for name, variable in self.source.globals.items():
            if variable.sizes:
                self.names[name] = _View(name, len(variable.sizes))
            elif not variable.constant:
                self.names[name] = None

    # Statements. What they return is how they end: "", or "break", "continue", "return".

    def _block(self, statements: list[Statement]) -> str:
        for statement in statements:
            end = self._statement(statement)
            if end:
                return end
        return ""

    def _statement(self, statement: Statement) -> str:
        self.steps += 1
        self.total += 1
        if self.steps > _MOST_IN_ONE or self.total > _MOST:
            raise _Enough
        if isinstance(statement, Loop):
            return self._loop(statement)
        if isinstance(statement, Branch):
            known = self._known(statement.condition)
            return self._block(statement.yes if (self.taken if known is None else known) else statement.no)
        if isinstance(statement, Cases):
            self._value(statement.value)
            end = self._block(statement.parts[0 if self.taken else -1]) if statement.parts else ""
            return "" if end == "break" else end
        self.line = statement.line
        if isinstance(statement, Declare):
            self._declare(statement.variable)
        elif isinstance(statement, Evaluate):
            self._value(statement.expression)
        else:
            if statement.value is not None:
                self.names["return"] = self._value(statement.value)
            return statement.kind if statement.kind in ("break", "continue", "return") else ""
        return ""

    def _loop(self, loop: Loop) -> str:
        self._block(loop.first)
        turn, end = 0, ""
        self.loops.append((loop, 0))
        while True:
            self.loops[-1] = (loop, turn)
            if loop.kind != "do" or turn:
                known = 1 if loop.condition is None and loop.kind != "each" else self._known(loop.condition)
                if known == 0 or (known is None and turn >= _TURNS):
                    break
            end = self._block(loop.body)
            if end in ("break", "return"):
                break
            if loop.step is not None:
                self._value(loop.step)
            turn += 1
            self.steps += 1
            self.total += 1
            if self.steps > _MOST_IN_ONE:
                raise _Enough
        self.loops.pop()
        return end if end == "return" else ""

    def _declare(self, variable: Variable) -> None:
        value = None if variable.value is None else self._value(variable.value)
        name = variable.name
        if variable.sizes:
            own = name if len(self.calls) == 1 else f"{self.calls[-1].name}/{name}"
            self.names[name] = _View(own, len(variable.sizes))
        elif not (variable.static and name in self.names):
            self.names[name] = value

    # Values.

    def _known(self, condition: Expression | None) -> int | None:
        value = None if condition is None else self._value(condition)
        return value if isinstance(value, int) else None

    def _value(self, expression: Expression) -> _Value:
        match expression:
            case Number(value):
                return value
            case Name(text):
                return self._name(text)
            case Cast(_, operand):
                return self._value(operand)
            case Choice(condition, yes, no):
                known = self._known(condition)
                return self._value(yes if (self.taken if known is None else known) else no)
            case Binary(("&&" | "||") as operator, left, right):
                a = self._known(left)
                if a is not None and bool(a) == (operator == "||"):
                    return int(bool(a))
                b = self._known(right)
                if b is not None and (a is not None or bool(b) == (operator == "||")):
                    return int(bool(b))
                return None
            case Binary(operator, left, right):
                return self._binary(operator, self._value(left), self._value(right))
            case Assign(operator, target, value):
                return self._assign(operator, target, value)
            case Step(operator, target, before):
                return self._change(target, operator[0], 1)[before]
            case Indexing() | Member() | Unary("*", _):
                return self._read(expression)
            case Unary("&", operand):
                return self._address(operand)
            case Unary(operator, operand):
                inner = self._value(operand)
                return unary(operator, inner) if isinstance(inner, int) else None
            case CallExpression():
                return self._call(expression)
        for part in parts(expression):
            self._value(part)
        return None

    def _name(self, text: str) -> _Value:
        if text in self.names:
            return self.names[text]
        if text in self.constants:
            return self.constants[text]
        field_of = self._member(text)
        if field_of is not None:
            return field_of
        return self._supposed(text)

    def _supposed(self, text: str) -> int:
        """The value of what another file says, or whoever calls."""
        if text not in self.found.supposed:
            self.found.supposed[text] = _SUPPOSED[len(self.found.supposed) % len(_SUPPOSED)]
        return self.found.supposed[text]

    def _member(self, text: str) -> _View | None:
        """An array that is a field of the class around the function."""
        variable = self.source.field(text)
        return None if variable is None or not variable.sizes else _View(text, len(variable.sizes))

    def _binary(self, operator: str, a: _Value, b: _Value) -> _Value:
        if isinstance(a, int) and isinstance(b, int):
            return binary(operator, a, b)
        if isinstance(b, _View) and operator == "+":
            a, b = b, a
        if isinstance(a, _View) and operator in "+-":
            known = isinstance(b, int) and a.place is not None
            moved = binary(operator, a.place or 0, b) if known and isinstance(b, int) else None
            return replace(a, place=moved)
        return b if operator == "," else None

    def _assign(self, operator: str, target: Expression, value: Expression) -> _Value:
        new = self._value(value)
        if operator != "=":
            return self._change(target, operator[:-1], new)[1]
        self._store(target, new)
        return new

    def _change(self, target: Expression, operator: str, by: _Value) -> tuple[_Value, _Value]:
        """(value before, after) of what is read and written in one; where it is, is found out once."""
        if isinstance(target, Name):
            old = self._name(target.text)
            new = self._binary(operator, old, by)
            self._store(target, new)
            return old, new
        view = self._view(target)
        if view is not None and len(view.fixed) >= view.rank:
            for write in (False, True):
                self._touch(view, write, isinstance(target, Member))
        return None, None

    def _store(self, target: Expression, value: _Value) -> None:
        if isinstance(target, Name):
            self.names[target.text] = value
            if isinstance(value, _View) and value.place is None:
                self.found.passed.add(value.array)  # from here on nobody can tell where it points
        elif isinstance(target, Cast):
            self._store(target.operand, value)
        elif isinstance(target, Indexing | Member) or (isinstance(target, Unary) and target.operator == "*"):
            view = self._view(target)
            if view is not None:
                self._touch(view, True, isinstance(target, Member))
        else:
            for part in parts(target):
                self._value(part)

    def _read(self, expression: Expression) -> _Value:
        view = self._view(expression)
        if view is None:
            # A number in a structure that somebody else filled.
            if isinstance(expression, Member) and isinstance(expression.operand, Name):
                owner = expression.operand.text
                return None if owner in self.names else self._supposed(f"{owner}.{expression.field}")
            return None
        if len(view.fixed) < view.rank:
            return view
        self._touch(view, False, isinstance(expression, Member))
        return None

    def _view(self, expression: Expression) -> _View | None:
        """Where an expression points, after all in it was evaluated."""
        match expression:
            case Indexing(base, index):
                view = self._inner(base)
                at = self._value(index)
                return None if view is None else self._within(view, at if isinstance(at, int) else None)
            case Unary("*", operand):
                value = self._value(operand)
                return self._within(value, 0) if isinstance(value, _View) else None
            case Member(Name(owner), name):
                variable = self.source.field(name)
                if variable is None or not variable.sizes:
                    value = self.names.get(owner)
                    # A field of a structure that a pointer points to.
                    return self._within(value, 0) if isinstance(value, _View) and value.rank == 1 else None
                return _View(f"{owner}.{name}", len(variable.sizes))
            case Member(Indexing() as operand, _):
                inner = self._view(operand)
                return inner if inner is not None and len(inner.fixed) >= inner.rank else None
        value = self._value(expression)
        return value if isinstance(value, _View) else None

    def _inner(self, base: Expression) -> _View | None:
        """What an index applies to."""
        if isinstance(base, Indexing | Member):
            view = self._view(base)
            if view is not None and len(view.fixed) >= view.rank:
                # A bit of an element, or an element of a vector in it.
                self._touch(view, False)
                return None
            return view
        value = self._value(base)
        return value if isinstance(value, _View) else None

    def _within(self, view: _View, at: int | None) -> _View | None:
        if len(view.fixed) >= view.rank:
            return None
        place = None if at is None or view.place is None else view.place + at
        return replace(view, fixed=(*view.fixed, place), place=0)

    def _touch(self, view: _View, write: bool, part: bool = False) -> None:
        loops, turns = zip(*self.loops) if self.loops else ((), ())
        self.steps += 1
        touch = Touch(view.array, view.fixed, write, loops, turns, self.nest, self.line, part)
        self.found.touches.append(touch)

    def _address(self, operand: Expression) -> _Value:
        if isinstance(operand, Indexing):
            view = self._inner(operand.base)
            at = self._value(operand.index)
            return None if view is None else self._binary("+", view, at)
        if isinstance(operand, Name) and not isinstance(self.names.get(operand.text), _View):
            self.names[operand.text] = None  # whoever has the address may change it
            return None
        return self._value(operand)

    # Calls.

    def _call(self, call: CallExpression) -> _Value:
        values = [self._value(argument) for argument in call.arguments]
        if call.receiver is not None:
            self._value(call.receiver)
            return None
        if call.name in ("min", "max") and len(values) == 2 and all(isinstance(v, int) for v in values):
            return (min if call.name == "min" else max)(v for v in values if isinstance(v, int))
        called = self.source.function(call.name)
        if called is None or called in self.calls or len(self.calls) >= _DEEPEST:
            if call.name not in ("memcpy", "memset", "assert", "printf"):
                self.found.passed |= {v.array for v in values if isinstance(v, _View)}
            numbers = all(isinstance(v, int) for v in values)
            return self._supposed(f"{call.name}({values})") if called is None and numbers else None
        outside, line, constants = self.names, self.line, self.constants
        self.names, self.constants = {}, called.constants
        self._globals()
        for parameter, value in zip(called.parameters, values):
            self.names[parameter.name] = value
        self.calls.append(called)
        self._block(called.body)
        self.calls.pop()
        result = self.names.pop("return", None)
        inside, self.names, self.line, self.constants = self.names, outside, line, constants
        for parameter, argument in zip(called.parameters, call.arguments):
            if parameter.reference and isinstance(argument, Name):
                self.names[argument.text] = inside.get(parameter.name)
        return result


def together(touches: list[Touch], parallel: dict[Loop, int | None]) -> Iterator[list[Touch]]:
    """Groups of touches that happen at the same time, or in one iteration of an innermost loop.

    Args:
        touches: within loops.
        parallel: for loops that are unrolled how many iterations at once, None for all; 0 for one that is pipelined, in
            which all loops are unrolled.
    """
    groups: dict[tuple[object, ...], list[Touch]] = {}
    for touch in touches:
        key: list[object] = []
        for loop, turn in zip(touch.loops, touch.turns):
            times = parallel.get(loop, 1)
            key.append((loop, turn if times in (0, 1) else 0 if times is None else turn // times))
            if times == 0:
                break
        if key:
            groups.setdefault(tuple(key), []).append(touch)
    yield from groups.values()
