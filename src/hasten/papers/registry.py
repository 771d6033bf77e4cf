"""The shelf: every card in this package's folder, in plugins, and in the folders that ``HASTEN_PAPERS`` names.

A folder of papers has ``cards/SLUG.toml`` and, for papers with checks, ``checks/SLUG.py`` (``_`` for ``-``). A package
of one's own offers such a folder by an entry point of the group ``hasten.papers`` that names the package it lies in.
Modules that lie in a folder of ``HASTEN_PAPERS`` can be imported: a new block may stand beside its card.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from hasten.errors import HastenError
from hasten.files import read_bytes
from hasten.papers.card import FIELDS, Paper, read_card
from hasten.papers.experiment import Check
from hasten.papers.importing import OUTSIDE, import_file

VARIABLE = "HASTEN_PAPERS"
GROUP = "hasten.papers"


def _folders() -> Iterator[Path]:
    yield Path(__file__).parent
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        try:
            spec = importlib.util.find_spec(entry.module)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            owner = entry.dist.name if entry.dist else "an installed package"
            raise HastenError(f"{owner} offers papers in {entry.module}, which is no package here: install it again")
        yield from map(Path, spec.submodule_search_locations)
    for named in filter(None, os.environ.get(VARIABLE, "").split(os.pathsep)):
        if not Path(named).is_dir():
            raise HastenError(f"{VARIABLE} names {named}, which is no folder")
        folder = str(Path(named).resolve())
        if folder not in sys.path:  # last, so that nothing of it stands before what is installed
            sys.path.append(folder)
        yield Path(folder)


@functools.cache
def _shelf(variable: str) -> dict[str, Paper]:
    found: dict[str, Paper] = {}
    for folder in _folders():
        for file in sorted((folder / "cards").glob("*.toml")):
            card = read_card(file, folder / "checks" / f"{file.stem.replace('-', '_')}.py")
            if card.slug in found:
                raise HastenError(f"two papers are called {card.slug}: rename {file}")
            found[card.slug] = card
    return dict(sorted(found.items()))


def _all() -> dict[str, Paper]:
    return _shelf(os.environ.get(VARIABLE, ""))


def papers(field: str | None = None, text: str | None = None) -> list[Paper]:
    """Cards by slug.

    Args:
        field: only this field's.
        text: only those whose slug, title, summary or claims contain it, whatever the case.

    Raises:
        HastenError: no such field, or a card that cannot be read.
    """
    if field is not None and field not in FIELDS:
        raise HastenError(f"no field is called {field!r}: choose one of {', '.join(FIELDS)}")
    wanted = (text or "").casefold()

    def matches(p: Paper) -> bool:
        words = " ".join((p.slug, p.title, p.summary, p.arxiv, *(f"{c.metric} {c.setting}" for c in p.claims)))
        return (field is None or p.field == field) and wanted in words.casefold()

    return [p for p in _all().values() if matches(p)]


def paper(slug: str) -> Paper:
    """The card called ``slug``.

    Raises:
        HastenError: there is none; names the nearest.
    """
    shelf = _all()
    if slug not in shelf:
        near = difflib.get_close_matches(slug, shelf, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "hasten papers lists them"
        raise HastenError(f"no paper is called {slug!r}: {hint}")
    return shelf[slug]


def checks_of(card: Paper) -> ModuleType | None:
    """The module with a paper's checks, imported; None when it has none.

    Raises:
        HastenError: it cannot be imported, a check is of a claim that the card does not have, or two checks have the
            same name, so that one of them is lost.
    """
    file = card.checks_file
    if file is None:
        return None
    inside = file.parent == Path(__file__).parent / "checks"
    content = f"{file.resolve()}\0".encode() + read_bytes(file, "the checks")
    digest = hashlib.sha256(content).hexdigest()[:12]  # edited: another one
    name = f"hasten.papers.checks.{file.stem}" if inside else f"{OUTSIDE}{digest}_{file.stem}"
    try:
        module = import_file(name, str(file))
    except (HastenError, KeyboardInterrupt):
        raise
    except BaseException as error:  # it is a user's, and may raise what it likes
        what = " ".join(str(error).split())[:200]
        raise HastenError(f"{file} cannot be imported ({type(error).__name__}: {what})") from error

    found = {value.claim for value in vars(module).values() if isinstance(value, Check)}
    if unknown := found - {c.id for c in card.claims}:
        raise HastenError(f"{file} checks {' and '.join(sorted(unknown))}, which is no claim of {card.slug}")
    if lost := card.checked - found:
        raise HastenError(f"{file}: the check of {' and '.join(sorted(lost))} has the name of a later one: rename it")
    return module
