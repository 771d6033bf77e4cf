"""C and C++ for high-level synthesis, read with tree-sitter's grammar: functions, loops, arrays, pragmas in them.

Whatever layout and dialect: signatures over many lines, templates, ``ap_int<>``, ``hls::stream``, classes, labels,
macros of the same file, pragmas in any case and in old and new notation, before or after a loop's brace. Files that are
included are not read, so names of theirs stay names. A part that is no C++ is left out and its lines are told.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hasten.errors import HastenError, MissingExtraError
from hasten.tasks.hls.preprocessing import Pragma, preprocess
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
    Jump,
    Loop,
    Member,
    Name,
    Number,
    Other,
    Source,
    Statement,
    Step,
    Unary,
    Variable,
    number,
    walk,
)

if TYPE_CHECKING:
    from tree_sitter import Node

# Statements within statements, and expressions within expressions: far beyond what people write.
_DEEPEST_STATEMENT = 100
_DEEPEST_EXPRESSION = 200

# Characters between a directive and the function that it precedes.
_NEAR = 2_000
_TEMPLATE = re.compile(r"template\s*<[^;{}]*>")
_CASTS = {"static_cast", "reinterpret_cast", "const_cast", "dynamic_cast"}
_SCOPES = {"struct_specifier", "class_specifier", "union_specifier", "namespace_definition"}


def parse(source: str) -> Source:
    """Reads a source.

    Raises:
        HastenError: it has no function with a body, statements nested over 100 deep, or over a million characters.
        MissingExtraError: tree-sitter or its grammar of C++ is not installed.
    """
    made = preprocess(source)
    reader = _Reader(_tree(made.code.encode("ascii", "replace")))
    found = reader.read()
    if not found.functions:
        where = f"; line {found.errors[0]} is no C++" if found.errors else ""
        raise HastenError(f"no function with a body is in this source{where}: give C or C++ for synthesis")
    _place(made.code, found.functions, made.pragmas)
    return found


def _tree(code: bytes) -> Node:
    try:
        import tree_sitter
        import tree_sitter_cpp
    except ImportError as error:
        raise MissingExtraError((error.name or "tree_sitter").replace("_", "-"), "hls") from None
    language = tree_sitter.Language(tree_sitter_cpp.language())
    return tree_sitter.Parser(language).parse(code).root_node


class _Reader:
    """Makes a `Source` of a tree."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.aliases: dict[str, tuple[str, tuple[Expression | None, ...], int]] = {}
        self.constants: dict[str, int] = {}
        self.globals: dict[str, Variable] = {}
        self.structs: dict[str, dict[str, Variable]] = {}
        self.errors: set[int] = set()

    def read(self) -> Source:
        bodies: list[tuple[Any, tuple[str, ...]]] = []
        # (node, scope's name, template's parameters)
        pending: list[tuple[Any, str, tuple[str, ...]]] = [(self.root, "", ())]
        while pending:
            node, scope, template = pending.pop()
            kind = node.type
            if kind == "ERROR" or node.is_missing:
                self.errors.add(node.start_point[0] + 1)
            if kind == "function_definition":
                bodies.append((node, template))
            elif kind in ("declaration", "field_declaration"):
                self._outside(node, scope, "field" in kind)
            elif kind in ("type_definition", "alias_declaration"):
                self._alias(node)
            elif kind == "enumerator":
                self._enumerator(node)
            elif kind == "template_declaration":
                template = (*template, *self._template(node))
            if kind in _SCOPES:
                name = node.child_by_field_name("name")
                scope = _text(name) if name is not None else scope
            if kind not in ("compound_statement", "parameter_list"):
                pending.extend((child, scope, template) for child in reversed(node.children))
            elif node.has_error:
                self._mark(node)
        functions = [f for node, template in bodies if (f := self._function(node, template)) is not None]
        return Source(functions, self.globals, self.structs, sorted(self.errors))

    def _mark(self, node: Any) -> None:
        pending = [node]
        while pending:
            now = pending.pop()
            if now.type == "ERROR" or now.is_missing:
                self.errors.add(now.start_point[0] + 1)
            elif now.has_error:
                pending.extend(now.children)

    # What stands outside functions.

    def _outside(self, node: Any, scope: str, is_field: bool) -> None:
        for variable in self._variables(node):
            if is_field and scope:
                self.structs.setdefault(scope, {})[variable.name] = variable
            else:
                self.globals.setdefault(variable.name, variable)
            if variable.constant and not variable.sizes and variable.value is not None:
                value = number(variable.value, self.constants)
                if value is not None:
                    self.constants.setdefault(f"{scope}::{variable.name}" if is_field else variable.name, value)
                    self.constants.setdefault(variable.name, value)

    def _alias(self, node: Any) -> None:
        if node.type == "alias_declaration":
            name, described = node.child_by_field_name("name"), node.child_by_field_name("type")
            if name is not None and described is not None:
                kind = described.child_by_field_name("type") or described
                self.aliases.setdefault(_text(name), (self._type(kind)[0], (), 0))
            return
        described = node.child_by_field_name("type")
        if described is None:
            return
        kind, sizes, pointer = self._type(described)
        for declarator in node.children_by_field_name("declarator"):
            made = self._declarator(declarator)
            if made is not None and made.name:
                self.aliases.setdefault(made.name, (kind, made.sizes + sizes, made.pointer + pointer))

    def _enumerator(self, node: Any) -> None:
        name, value = node.child_by_field_name("name"), node.child_by_field_name("value")
        if name is not None and value is not None:
            known = number(self._expression(value), self.constants)
            if known is not None:
                self.constants.setdefault(_text(name), known)

    def _template(self, node: Any) -> tuple[str, ...]:
        listed = node.child_by_field_name("parameters")
        found = []
        for parameter in listed.named_children if listed is not None else ():
            name = parameter.child_by_field_name("declarator") or parameter.child_by_field_name("name")
            name = name or next((c for c in parameter.named_children if c.type == "type_identifier"), None)
            if name is not None:
                found.append(_text(name))
        return tuple(found)

    # Functions and variables.

    def _function(self, node: Any, template: tuple[str, ...]) -> Function | None:
        declarator, body = node.child_by_field_name("declarator"), node.child_by_field_name("body")
        while declarator is not None and declarator.type != "function_declarator":
            inner = declarator.child_by_field_name("declarator")
            declarator = inner or next((c for c in declarator.named_children if "declarator" in c.type), None)
        if declarator is None or body is None or body.type != "compound_statement":
            return None
        name = declarator.child_by_field_name("declarator")
        parameters = []
        listed = declarator.child_by_field_name("parameters")
        for parameter in listed.named_children if listed is not None else ():
            if "parameter_declaration" in parameter.type:
                parameters += self._variables(parameter)
        result = node.child_by_field_name("type")
        made = Function(
            _text(name).rsplit("::", 1)[-1] if name is not None else "",
            [p for p in parameters if p.name],
            self._block(body, 0),
            node.start_point[0] + 1,
            _text(result) if result is not None else "",
            template,
            span=(node.start_byte, node.end_byte),
        )
        made.constants = dict(self.constants)
        shadowed = {p.name for p in made.parameters} | set(template)
        for name_ in shadowed:
            made.constants.pop(name_, None)
        for statement in walk(made.body):
            if isinstance(statement, Declare):
                variable = statement.variable
                value = None if variable.value is None else number(variable.value, made.constants)
                if variable.constant and not variable.sizes and value is not None:
                    made.constants[variable.name] = value
                else:
                    made.constants.pop(variable.name, None)
        for statement in walk(made.body):
            if isinstance(statement, Loop):
                _nest(statement)
        return made

    def _variables(self, node: Any, *, local: bool = False) -> list[Variable]:
        """What a declaration, a parameter or a field declares."""
        described = node.child_by_field_name("type")
        if described is None:
            return []
        kind, sizes, pointer = self._type(described)
        words = {_text(c) for c in node.children if c.type in ("type_qualifier", "storage_class_specifier")}
        found = []
        for declarator in node.children_by_field_name("declarator"):
            made = self._declarator(declarator, local=local)
            if made is None:
                continue
            default = node.child_by_field_name("default_value")
            if default is not None:
                made.value, made.initialized = self._expression(default), True
            made.type = kind
            made.sizes = made.sizes + sizes
            made.pointer += pointer
            made.constant = bool(words & {"const", "constexpr"}) and not made.pointer
            made.static = "static" in words
            made.line = node.start_point[0] + 1
            found.append(made)
        return found

    def _type(self, node: Any) -> tuple[str, tuple[Expression | None, ...], int]:
        """(type, sizes and pointers that an alias brings)."""
        text = " ".join(_text(node).split())
        return self.aliases.get(text, (text, (), 0))

    def _declarator(self, node: Any, *, local: bool = False) -> Variable | None:
        """Name, sizes, pointers and first value; None for a function's."""
        sizes: list[Expression | None] = []
        pointer, reference = 0, False
        value: Expression | None = None
        initialized = False
        while True:
            kind = node.type
            if kind in ("identifier", "field_identifier", "type_identifier", "qualified_identifier"):
                name = _text(node).rsplit("::", 1)[-1]
                return Variable(
                    name, "", tuple(sizes), pointer, reference, value=value, initialized=initialized
                )  # fmt: skip
            if kind == "init_declarator":
                given = node.child_by_field_name("value")
                initialized = given is not None
                if given is not None and given.type not in ("initializer_list", "argument_list"):
                    value = self._expression(given)
                elif given is not None and len(given.named_children) == 1:
                    # `int n{3}` and `int n(3)`; of a list for an array the value is not used.
                    value = self._expression(given.named_children[0])
            elif kind == "array_declarator":
                size = node.child_by_field_name("size")
                sizes.insert(0, None if size is None else self._expression(size))
            elif kind == "pointer_declarator":
                pointer += 1
            elif kind == "reference_declarator":
                reference = True
            elif kind == "function_declarator" and local:
                initialized = True  # within a function `task t(work, in)` is a variable
            elif kind != "parenthesized_declarator":
                return None
            inner = node.child_by_field_name("declarator")
            if inner is None:
                named = [c for c in node.named_children if c.type != "type_qualifier"]
                inner = named[0] if named else None
            if inner is None:
                return None
            node = inner

    # Statements.

    def _block(self, node: Any, depth: int) -> list[Statement]:
        if node.type == "compound_statement":
            found: list[Statement] = []
            for child in node.named_children:
                found += self._statement(child, depth)
            return found
        return self._statement(node, depth)

    def _statement(self, node: Any, depth: int, label: str = "") -> list[Statement]:
        if depth > _DEEPEST_STATEMENT:
            raise HastenError(f"line {node.start_point[0] + 1}: statements are nested over {_DEEPEST_STATEMENT} deep")
        kind, line, below = node.type, node.start_point[0] + 1, depth + 1
        if kind == "compound_statement":
            return self._block(node, below)
        if kind == "expression_statement":
            return [Evaluate(self._expression(child), line) for child in node.named_children[:1]]
        if kind == "declaration":
            return [Declare(variable, line) for variable in self._variables(node, local=True)]
        if kind in ("for_statement", "while_statement", "do_statement", "for_range_loop"):
            return [self._loop(node, below, label)]
        if kind == "if_statement":
            return self._branch(node, below)
        if kind == "switch_statement":
            return [self._switch(node, below)]
        if kind == "labeled_statement":
            name = node.child_by_field_name("label")
            found: list[Statement] = []
            for child in node.named_children:
                if child.type != "statement_identifier":
                    found += self._statement(child, below, _text(name) if name is not None else "")
            return found
        if kind in ("return_statement", "break_statement", "continue_statement", "goto_statement"):
            value = node.named_children[0] if kind == "return_statement" and node.named_children else None
            return [Jump(kind.split("_")[0], None if value is None else self._expression(value), line)]
        if kind in ("type_definition", "alias_declaration"):
            self._alias(node)
            return []
        if kind in ("comment", "using_declaration", "static_assert_declaration", "statement_identifier"):
            return []
        if kind in ("ERROR", "try_statement", "else_clause", "case_statement", "catch_clause"):
            found = []
            for child in node.named_children:
                found += self._statement(child, below)
            return found
        if kind.endswith(("_expression", "identifier")):
            return [Evaluate(self._expression(node), line)]
        return []

    def _loop(self, node: Any, depth: int, label: str) -> Loop:
        kind = {"f": "for", "w": "while", "d": "do"}[node.type[0]] if node.type != "for_range_loop" else "each"
        first: list[Statement] = []
        line = node.start_point[0] + 1
        begin = node.child_by_field_name("initializer")
        if begin is not None:
            if begin.type == "declaration":
                first = [Declare(variable, line) for variable in self._variables(begin)]
            else:
                first = [Evaluate(e, line) for e in _separated(self._expression(begin))]
        condition = None if kind == "each" else node.child_by_field_name("condition")
        if condition is not None and condition.type in ("condition_clause", "parenthesized_expression"):
            condition = condition.child_by_field_name("value") or next(iter(condition.named_children), None)
        step, body = node.child_by_field_name("update"), node.child_by_field_name("body")
        return Loop(
            kind,
            first,
            None if condition is None else self._expression(condition),
            None if step is None else self._expression(step),
            [] if body is None else self._block(body, depth),
            label,
            line,
            span=(node.start_byte, node.end_byte),
        )

    def _branch(self, node: Any, depth: int) -> list[Statement]:
        """An ``if`` with its chain of ``else if``, made from the last on so that a long chain is not deep."""
        chain, last = [], []
        now = node
        while now is not None and now.type == "if_statement":
            chain.append(now)
            other = now.child_by_field_name("alternative")
            now = None
            if other is not None:
                inner = other if other.type != "else_clause" else next(iter(other.named_children), None)
                if inner is not None and inner.type == "if_statement":
                    now = inner
                elif inner is not None:
                    last = self._block(inner, depth)
        for one in reversed(chain):
            condition = one.child_by_field_name("condition")
            if condition is not None and condition.type == "condition_clause":
                condition = condition.child_by_field_name("value") or condition
            yes = one.child_by_field_name("consequence")
            last = [
                Branch(
                    Other() if condition is None else self._expression(condition),
                    [] if yes is None else self._block(yes, depth),
                    last,
                )
            ]
        return last

    def _switch(self, node: Any, depth: int) -> Cases:
        condition, body = node.child_by_field_name("condition"), node.child_by_field_name("body")
        cases: list[list[Statement]] = []
        for child in body.named_children if body is not None else ():
            if child.type == "case_statement":
                value = child.child_by_field_name("value")
                cases.append([])
                for inner in child.named_children:
                    if value is None or inner.id != value.id:
                        cases[-1] += self._statement(inner, depth)
        return Cases(Other() if condition is None else self._expression(condition), cases)

    # Expressions.

    def _expression(self, node: Any, depth: int = 0) -> Expression:
        if depth > _DEEPEST_EXPRESSION:
            return Other(tuple(self._names(node)))
        kind, below = node.type, depth + 1

        def field(name: str) -> Expression:
            found = node.child_by_field_name(name)
            return Other() if found is None else self._expression(found, below)

        if kind in ("identifier", "qualified_identifier", "this", "type_identifier", "template_function"):
            return Name("".join(_text(node).split()))
        if kind == "number_literal":
            value = _whole(_text(node))
            return Other() if value is None else Number(value)
        if kind in ("true", "false"):
            return Number(int(kind == "true"))
        if kind == "char_literal":
            text = _text(node)[1:-1]
            return Number(ord(text)) if len(text) == 1 else Other()
        if kind in ("parenthesized_expression", "condition_clause"):
            inner = node.child_by_field_name("value") or next(iter(node.named_children), None)
            return Other() if inner is None else self._expression(inner, below)
        if kind == "subscript_expression":
            listed = node.child_by_field_name("indices")
            indices = listed.named_children if listed is not None else ()
            return Indexing(field("argument"), self._expression(indices[0], below) if indices else Other())
        if kind == "field_expression":
            name = node.child_by_field_name("field")
            return Member(field("argument"), "" if name is None else _text(name))
        if kind == "call_expression":
            return self._call(node, below)
        if kind in ("unary_expression", "pointer_expression"):
            return Unary(_text(node.child_by_field_name("operator")), field("argument"))
        if kind == "binary_expression":
            return Binary(_text(node.child_by_field_name("operator")), field("left"), field("right"))
        if kind == "comma_expression":
            return Binary(",", field("left"), field("right"))
        if kind == "assignment_expression":
            return Assign(_text(node.child_by_field_name("operator")), field("left"), field("right"))
        if kind == "update_expression":
            operator = node.child_by_field_name("operator")
            before = operator.start_byte == node.start_byte
            return Step(_text(operator), field("argument"), before)
        if kind == "cast_expression":
            described = node.child_by_field_name("type")
            return Cast("" if described is None else " ".join(_text(described).split()), field("value"))
        if kind == "conditional_expression":
            return Choice(field("condition"), field("consequence"), field("alternative"))
        return Other(tuple(self._expression(child, below) for child in node.named_children if child.type != "ERROR"))

    def _call(self, node: Any, depth: int) -> Expression:
        called, listed = node.child_by_field_name("function"), node.child_by_field_name("arguments")
        arguments = tuple(self._expression(c, depth) for c in (listed.named_children if listed is not None else ()))
        if called is None:
            return Other(arguments)
        if called.type == "field_expression":
            name = called.child_by_field_name("field")
            receiver = called.child_by_field_name("argument")
            return CallExpression(
                "" if name is None else _text(name),
                arguments,
                Other() if receiver is None else self._expression(receiver, depth),
            )
        if called.type == "template_function":
            name = called.child_by_field_name("name")
            text = "" if name is None else _text(name)
            if text in _CASTS and len(arguments) == 1:
                kind = called.child_by_field_name("arguments")
                return Cast("" if kind is None else _text(kind)[1:-1].strip(), arguments[0])
            return CallExpression(text, arguments)
        text = "".join(_text(called).split())
        if called.type in ("primitive_type", "sized_type_specifier", "template_type") and len(arguments) == 1:
            return Cast(text, arguments[0])
        if text.split("<")[0].rsplit("::", 1)[-1] in ("ap_int", "ap_uint") and len(arguments) == 1:
            return Cast(text, arguments[0])
        return CallExpression(text.split("<")[0].rsplit("::", 1)[-1], arguments)

    def _names(self, node: Any) -> Iterator[Expression]:
        pending = [node]
        while pending:
            now = pending.pop()
            if now.type == "identifier":
                yield Name(_text(now))
            pending.extend(now.named_children)


def _text(node: Any) -> str:
    return node.text.decode("ascii", "replace") if node is not None and node.text is not None else ""


def _whole(text: str) -> int | None:
    text = text.replace("'", "").rstrip("uUlL")
    try:
        return int(text, 8) if len(text) > 1 and text[0] == "0" and text[1:].isdigit() else int(text[:40], 0)
    except ValueError:
        return None


def _separated(expression: Expression) -> list[Expression]:
    """Expressions with commas between them, in order."""
    found = []
    while isinstance(expression, Binary) and expression.operator == ",":
        found.append(expression.right)
        expression = expression.left
    return [expression, *reversed(found)]


def _nest(loop: Loop) -> None:
    """Tells loops directly in one, or in its branches, what is around them."""
    pending = list(loop.body)
    while pending:
        now = pending.pop()
        if isinstance(now, Loop):
            now.outer = (*loop.outer, loop)
        elif isinstance(now, Branch):
            pending += [*now.yes, *now.no]
        elif isinstance(now, Cases):
            pending += [s for part in now.parts for s in part]


def _place(code: str, functions: list[Function], pragmas: list[tuple[int, Pragma]]) -> None:
    """Gives each pragma to the innermost loop or function that it stands in, or else right before."""
    functions = sorted(functions, key=lambda f: f.span)
    begins = [f.span[0] for f in functions]
    inside: dict[int, list[Loop]] = {}
    for place, pragma in pragmas:
        after = bisect_right(begins, place)
        function = functions[after - 1]
        if after == 0 or place >= function.span[1]:
            between = code[place : begins[after]] if after < len(functions) and begins[after] - place < _NEAR else "far"
            if not _TEMPLATE.sub("", between).strip():
                functions[after].pragmas.append(pragma)
            continue
        if after not in inside:
            inside[after] = function.loops
        loops = [loop for loop in inside[after] if loop.span[0] < place < loop.span[1]]
        owner: Function | Loop = min(loops, key=lambda o: o.span[1] - o.span[0]) if loops else function
        owner.pragmas.append(pragma)
