"""What a C preprocessor does to one file: comments and untaken branches go, macros are expanded, pragmas set apart.

Includes are not followed: what stands in other files stays unknown to whoever reads the result. Lines keep their
numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from hasten.errors import HastenError

# Characters of a source, and of what its macros grow to: thousands of times what a circuit has.
MOST_TEXT = 1_000_000
# Macros within macros, and conditions within conditions.
_DEEPEST = 64

_SPLICE = re.compile(r"\\[ \t]*\n")
_QUIET = re.compile(
    r"//[^\n]*|/\*.*?(?:\*/|\Z)|\"(?:\\.|[^\"\\\n])*\"|(?<![0-9a-zA-Z_])'(?:\\.|[^'\\\n])+'", re.DOTALL
)  # fmt: skip
_TOKEN = re.compile(
    r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'|[A-Za-z_]\w*|\.?\d(?:[eEpP][+-]|[\w.'])*|##|\s+|.", re.DOTALL
)  # fmt: skip
_WORD = re.compile(r"[A-Za-z_]\w*")
_DIRECTIVE = re.compile(r"\s*#\s*(\w+)\s*(.*)", re.DOTALL)
_DEFINED = re.compile(r"defined\s*(?:\(\s*(\w+)\s*\)|(\w+))")
_OPTION = re.compile(r"(\w+)\s*=\s*(\"[^\"]*\"|[^\s=,]+(?:\s*[-+*/%]\s*[^\s=,]+)*(?:\s*,\s*\w+)*)(?!\s*=)|([^\s=,]+)")
_OPERATOR = re.compile(r"_Pragma\s*\(\s*\"HLS\s+((?:\\.|[^\"\\])*)\"\s*\)\s*;?")


@dataclass(frozen=True)
class Pragma:
    """``#pragma HLS kind key=value flag``.

    Args:
        kind: the directive in lower case, such as ``pipeline``.
        options: values by key in lower case; of a key that is repeated, and of a list, all values, with commas.
        flags: words without a value, in lower case.
        line: counted from 1.
        text: as written, without the ``#pragma HLS``.
    """

    kind: str
    options: dict[str, str]
    flags: tuple[str, ...]
    line: int
    text: str

    def names(self, *keys: str) -> list[str]:
        """Names that an option lists, as ``variable=a, b`` does."""
        return [name.strip() for key in keys for name in self.options.get(key, "").split(",") if name.strip()]


@dataclass(frozen=True)
class Macro:
    """What a name is replaced by; ``parameters`` is None where it takes no arguments."""

    parameters: tuple[str, ...] | None
    body: str


@dataclass
class Preprocessed:
    """A source without directives.

    Args:
        code: its text, each character one byte.
        pragmas: the HLS directives, with their place in ``code``.
        macros: those that stand at the end.
    """

    code: str
    pragmas: list[tuple[int, Pragma]] = field(default_factory=list)
    macros: dict[str, Macro] = field(default_factory=dict)


def preprocess(source: str) -> Preprocessed:
    """Comments and untaken branches removed, macros expanded, pragmas apart.

    ``__SYNTHESIS__`` is defined, as synthesis tools do; any other unknown name in a condition is 0, as in the language.

    Raises:
        HastenError: over a million characters, here or after macros; conditions nested over 64 deep.
    """
    if len(source) > MOST_TEXT:
        raise HastenError(f"a source of {len(source):,} characters: at most {MOST_TEXT:,} are read")
    text = source.replace("\r\n", "\n").replace("\r", "\n").replace("\0", " ")
    # A spliced line's missing newlines are made up for after its end, so that numbers of lines stay.
    text = _SPLICE.sub("\x01", text)
    text = _QUIET.sub(_blank, text)
    text = re.sub(r"[^\x00-\x7f]", "_", text)
    made = Preprocessed("")
    made.macros["__SYNTHESIS__"] = Macro(None, "1")
    made.macros["hls_thread_local"] = Macro(None, "static")  # of the tools' own headers
    out: list[str] = []
    place, number = 0, 1
    taken: list[_Branch] = []
    for raw in text.split("\n"):
        line, extra = raw.replace("\x01", " "), raw.count("\x01")
        code = ""
        directive = _DIRECTIVE.fullmatch(line)
        active = all(branch.active for branch in taken)
        if directive is None:
            if active:
                code = _expand(line, made.macros)
                code = _operators(code, place, number, made)
        elif not _condition(directive[1], directive[2].strip(), taken, made.macros) and active:
            if directive[1] == "pragma":
                pragma = read_pragma(_expand(directive[2], made.macros), number)
                if pragma is not None:
                    made.pragmas.append((place, pragma))
            elif directive[1] == "define":
                _define(directive[2], made.macros)
            elif directive[1] == "undef":
                made.macros.pop(directive[2].strip(), None)
        code += "\n" * (1 + extra)
        out.append(code)
        place += len(code)
        number += 1 + extra
        if place > MOST_TEXT:
            raise HastenError(f"line {number}: macros grow the source beyond {MOST_TEXT:,} characters")
    made.code = "".join(out)
    return made


def read_pragma(text: str, line: int = 0) -> Pragma | None:
    """The pragma that the text after ``#pragma`` says; None for one of other tools."""
    words = text.split(None, 1)
    if len(words) < 2 or words[0].lower() != "hls":
        return None
    return _read(words[1].strip(), line)


def _read(text: str, line: int) -> Pragma | None:
    kind, _, rest = text.partition(" ") if " " in text else (text, "", "")
    options: dict[str, str] = {}
    flags = []
    for key, value, flag in _OPTION.findall(rest.replace("\t", " ")):
        if key:
            key, value = key.lower(), value.strip().strip('"')
            options[key] = f"{options[key]},{value}" if key in options else value
        else:
            flags.append(flag.lower())
    return Pragma(kind.lower(), options, tuple(flags), line, text) if kind else None


def _blank(found: re.Match[str]) -> str:
    """A comment's newlines, a string or a character as it is."""
    text = found[0]
    if text[0] in "\"'":
        return text
    return " " + re.sub(r"[^\n\x01]", "", text)


@dataclass
class _Branch:
    """One ``#if``: whether its present branch counts, and whether any did so far."""

    active: bool
    done: bool


def _condition(word: str, rest: str, taken: list[_Branch], macros: dict[str, Macro]) -> bool:
    """Whether a directive was about branches; ``taken`` is then up to date."""
    if word in ("if", "ifdef", "ifndef"):
        if len(taken) >= _DEEPEST:
            raise HastenError(f"conditions of the preprocessor are nested over {_DEEPEST} deep")
        if word == "if":
            value = _true(rest, macros)
        else:
            value = (re.split(r"\W", rest, maxsplit=1)[0] in macros) == (word == "ifdef")
        taken.append(_Branch(value, value))
        return True
    if word in ("elif", "else"):
        if taken:
            now = taken[-1]
            now.active = not now.done and (word == "else" or _true(rest, macros))
            now.done |= now.active
        return True
    if word == "endif":
        if taken:
            taken.pop()
        return True
    return False


def _true(text: str, macros: dict[str, Macro]) -> bool:
    """Whether a condition of ``#if`` holds; names that are not defined are 0, what cannot be read does not hold."""
    text = _DEFINED.sub(lambda m: str(int((m[1] or m[2]) in macros)), text)
    text = _expand(text, macros)
    text = re.sub(r"[A-Za-z_]\w*", "0", re.sub(r"\b(\d+)[uUlL]+\b", r"\1", text))
    if len(text) > 1000 or not re.fullmatch(r"[\dxX()+\-*/%<>=!&|^~ \t]*", text):
        return False
    if "**" in text or text.count("*") > 8 or re.search(r"<<\D*\d{3}|\d{40}|[\d)]\s*\(", text):
        return False  # calls, and values beyond any that a condition compares
    text = text.replace("&&", " and ").replace("||", " or ").replace("/", "//")
    text = re.sub(r"!(?!=)", " not ", text)
    try:
        return bool(eval(text, {"__builtins__": {}}))
    except (SyntaxError, ArithmeticError, TypeError, ValueError, MemoryError, RecursionError):
        return False


def _define(text: str, macros: dict[str, Macro]) -> None:
    found = re.match(r"(\w+)(\(([^)]*)\))?[ \t]*(.*)", text, re.DOTALL)
    if found is None:
        return
    parameters = None if found[2] is None else tuple(p.strip() for p in found[3].split(",") if p.strip())
    macros[found[1]] = Macro(parameters, found[4].strip())


def _expand(text: str, macros: dict[str, Macro], within: frozenset[str] = frozenset(), depth: int = 0) -> str:
    """``text`` with macros replaced; a macro within itself stays, as in the language.

    Raises:
        HastenError: it grows beyond `MOST_TEXT`, or calls of macros are nested over 64 deep.
    """
    if depth > _DEEPEST:
        raise HastenError(f"calls of macros are nested over {_DEEPEST} deep")
    if macros.keys().isdisjoint(_WORD.findall(text)):
        return text
    tokens = _TOKEN.findall(text)
    out: list[str] = []
    size, at = 0, 0
    while at < len(tokens):
        token = tokens[at]
        at += 1
        macro = macros.get(token)
        if macro is not None and token not in within and len(within) < _DEEPEST:
            body = macro.body
            if macro.parameters is not None:
                arguments, end = _arguments(tokens, at)
                if arguments is None:
                    out.append(token)
                    continue
                at = end
                body = _substitute(macro, [_expand(a, macros, within, depth + 1) for a in arguments])
            token = _expand(re.sub(r"\s*##\s*", "", body), macros, within | {token}, depth)
        out.append(token)
        size += len(token)
        if size > MOST_TEXT:
            raise HastenError(f"macros grow the source beyond {MOST_TEXT:,} characters")
    return "".join(out)


def _arguments(tokens: list[str], at: int) -> tuple[list[str] | None, int]:
    """A call's arguments, from its opening parenthesis on; None where there is none, or no end."""
    while at < len(tokens) and tokens[at].isspace():
        at += 1
    if at >= len(tokens) or tokens[at] != "(":
        return None, at
    depth, now = 0, ""
    found: list[str] = []
    while at < len(tokens):
        token = tokens[at]
        at += 1
        depth += (token in "([{") - (token in ")]}") if len(token) == 1 else 0
        if depth == 0:
            return [*found, now.strip()], at
        if token == "," and depth == 1:
            found.append(now.strip())
            now = ""
        elif not (token == "(" and depth == 1 and not now and not found):
            now += token
    return None, at


def _substitute(macro: Macro, arguments: list[str]) -> str:
    assert macro.parameters is not None
    values = dict(zip((p.removesuffix("...") for p in macro.parameters), arguments))
    if macro.parameters and macro.parameters[-1].endswith("..."):
        rest = ", ".join(arguments[len(macro.parameters) - 1 :])
        values[macro.parameters[-1].removesuffix("...") or "__VA_ARGS__"] = rest
    body = re.sub(r"(?<!#)#\s*(\w+)", lambda m: '"' + values.get(m[1], m[1]).replace('"', '\\"') + '"', macro.body)
    return "".join(values.get(token, token) for token in _TOKEN.findall(body))


def _operators(code: str, place: int, number: int, made: Preprocessed) -> str:
    """``_Pragma("HLS ...")`` set apart, with blanks in its place."""

    def aside(found: re.Match[str]) -> str:
        pragma = _read(_expand(found[1].replace('\\"', '"').strip(), made.macros), number)
        if pragma is not None:
            made.pragmas.append((place + found.start(), pragma))
        return " " * len(found[0])

    return _OPERATOR.sub(aside, code)
