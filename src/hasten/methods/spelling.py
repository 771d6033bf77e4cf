"""How methods are written in a word, as on a command line: ``int4``, ``window:1024``, ``int4+kv-int8``.

Every registered method can be written by its name; those used most have short ways beside it, which their class says
(`Method.spellings`). Settings follow a colon, in the order of the method's fields or as ``setting=value``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.errors import HastenError, users_code
from hasten.methods.editing import outline
from hasten.methods.method import Method, ordered, registry
from hasten.workload.einsum import Workload

UNCHANGED = "unchanged"
_OWN = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_]\w*)(?::(?P<settings>.*))?")


@dataclass(frozen=True)
class Spelling:
    """A way to write a method.

    Args:
        text: the word; a capital ``N`` in it stands for a whole number.
        kind: the method.
        fixed: settings that the word stands for; the value ``"N"`` is the number's.
    """

    text: str
    kind: type[Method]
    fixed: tuple[tuple[str, Any], ...] = ()

    def match(self, text: str) -> tuple[dict[str, Any], str] | None:
        """The settings that ``text`` fixes when it is written so, and what follows its colon; None when it is not."""
        found = re.fullmatch(re.escape(self.text).replace("N", r"(\d{1,9})") + r"(?::(.*))?", text)
        if found is None:
            return None
        settings = {name: int(found[1]) if value == "N" else value for name, value in self.fixed}
        return settings, found.groups()[-1] or ""


@dataclass(frozen=True)
class Changed:
    """A workload as methods change it.

    Args:
        title: of the methods, ``unchanged`` without any.
        methods: in the order that they are applied.
        workload: that they make.
        notes: what the reader should know of them.
    """

    title: str
    methods: tuple[Method, ...]
    workload: Workload
    notes: tuple[str, ...] = ()


def spellings() -> list[Spelling]:
    """Every way to write every registered method: the short ones of a method before its name."""
    found = []
    for name, kind in sorted(registry().items()):
        found += [Spelling(text, kind, tuple(fixed.items())) for text, fixed in kind.spellings.items()]
        found.append(Spelling(name, kind))
    return found


def read_methods(text: str, workload: Workload, load: Callable[[Path, str], Any] | None = None) -> tuple[Method, ...]:
    """The methods that ``text`` names for a workload, in the order that they are applied.

    Args:
        text: spellings, joined by ``+``.
        workload: that they are for: some spellings leave settings to it.
        load: gives what a Python file defines under a name, for ``file.py:Class``; None to refuse those.

    Raises:
        HastenError: an unknown method or setting, a value that is not allowed, or methods that do not go together.
    """
    return tuple(ordered([_one(part.strip(), workload, load) for part in text.split("+")]))


def rewritten(
    workload: Workload, texts: Sequence[str], load: Callable[[Path, str], Any] | None = None
) -> list[Changed]:
    """The workload unchanged, then as each of ``texts`` changes it, each once.

    Raises:
        HastenError: as `read_methods`, or a method that this workload has nothing for.
    """
    found = [Changed(UNCHANGED, (), workload)]
    for text in texts:
        methods = read_methods(text, workload, load)
        if methods not in [known.methods for known in found]:
            found.append(_changed(workload, methods))
    return found


def _changed(workload: Workload, methods: tuple[Method, ...]) -> Changed:
    current, notes = workload, []
    for method in methods:
        if reason := method.why_not_described(current):
            raise HastenError(f"{method.title} does not apply to {workload.name}: {reason}")
        # A user's own method may fail in any way.
        with users_code(f"{method.title} cannot rewrite {workload.name}"):
            after = method.rewrite(current)
        if _same(after, current):
            notes.append(f"{method.title} changes nothing that is priced here")
        notes += method.remarks(current)
        current = after
    return Changed(" + ".join(m.title for m in methods), methods, current, tuple(notes))


def _same(one: Workload, other: Workload) -> bool:
    if one is other:
        return True
    if (one.weight_bytes, one.state_bytes, one.flops) != (other.weight_bytes, other.state_bytes, other.flops):
        return False
    first, second = outline(one), outline(other)
    return first["phases"] == second["phases"]


def _one(text: str, workload: Workload, load: Callable[[Path, str], Any] | None) -> Method:
    if (own := _OWN.fullmatch(text)) and load is not None:
        return _users(own, workload, load)
    known = spellings()
    # The longest word first: "2:4" is no "2" with the setting 4.
    for spelling in sorted(known, key=lambda s: -len(s.text)):
        if (found := spelling.match(text) or spelling.match(text.lower())) is not None:
            fixed, rest = found
            return _made(spelling.kind, text, {**_settings(spelling.kind, text, rest, fixed)}, workload)
    words = [s.text for s in known if s.text != s.kind.name] + [s.text for s in known if s.text == s.kind.name]
    close = difflib.get_close_matches(text.partition(":")[0], words, 1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    parts = text.split(",")
    if len(parts) > 1 and any(s.match(parts[0]) for s in known):
        meant = f" (methods in one line are joined by +: {'+'.join(parts)})"
    raise HastenError(f"unknown method {text[:60]!r}{meant}: give one of {', '.join(words)}, or file.py:Class")


def _users(own: re.Match[str], workload: Workload, load: Callable[[Path, str], Any]) -> Method:
    found = load(Path(own["file"]), own["name"])
    where = f"{own['file']}:{own['name']}"
    if isinstance(found, Method) and not own["settings"]:
        return found
    if not isinstance(found, type) or not issubclass(found, Method) or not dataclasses.is_dataclass(found):
        raise HastenError(f"{where} is no method: give a frozen dataclass derived from hasten.methods.Method")
    with users_code(f"{where} cannot be made"):
        return _made(found, where, _settings(found, where, own["settings"] or "", {}), workload)


def _made(kind: type[Method], text: str, settings: dict[str, Any], workload: Workload) -> Method:
    try:
        return kind.spelled(settings, workload)
    except HastenError:
        raise
    except (TypeError, ValueError) as error:
        raise HastenError(f"{text}: {error}") from None


def _settings(kind: type[Method], text: str, written: str, fixed: dict[str, Any]) -> dict[str, Any]:
    """What is written behind the colon, beside what the word fixes."""
    fields = [f.name for f in dataclasses.fields(kind) if f.init and f.name not in fixed]  # type: ignore[arg-type]
    found, values = dict(fixed), []
    for part in filter(None, (p.strip() for p in written.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            values.append(_value(part))
        elif name.strip() in found:
            raise HastenError(f"{text[:60]}: {name.strip()} is given twice")
        else:
            found[name.strip()] = _value(value.strip())
    if values and fields and str(kind.__annotations__.get(fields[0], "")).startswith("tuple"):
        values = [tuple(values)]
    free = [name for name in fields if name not in found]
    if len(values) > len(free):
        takes = f"{len(free)} value{'s' * (len(free) != 1)} ({', '.join(free)})" if free else "no values"
        raise HastenError(f"{text[:60]}: {kind.name} takes {takes} behind the colon, not {len(values)}")
    return found | dict(zip(free, values, strict=False))


def _value(text: str) -> Any:
    """A setting's value: a number, true or false, none, numbers joined by ``/``, or the word itself."""
    known = {"true": True, "false": False, "none": None}
    if text.lower() in known:
        return known[text.lower()]
    if "/" in text:
        return tuple(_value(part) for part in text.split("/") if part)
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
