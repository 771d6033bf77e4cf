"""The shelf: every card in this package's folder, in plugins, and in the folders that ``HASTEN_PAPERS`` names.

A folder of papers has ``cards/SLUG.toml`` and, for papers with checks, ``checks/SLUG.py`` (``_`` for ``-``). A package
of one's own offers such a folder by an entry point of the group ``hasten.papers`` that names the package it lies in.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from hasten.errors import HastenError
from hasten.papers.card import FIELDS, Paper, read_card

VARIABLE = "HASTEN_PAPERS"
GROUP = "hasten.papers"


def _folders() -> Iterator[Path]:
    yield Path(__file__).parent
    from importlib.metadata import entry_points

    for entry in entry_points(group=GROUP):
        spec = importlib.util.find_spec(entry.module)
        if spec is not None:
            yield from map(Path, spec.submodule_search_locations or ())
    yield from (Path(p) for p in os.environ.get(VARIABLE, "").split(os.pathsep) if p)


@functools.cache
def _shelf(variable: str) -> dict[str, Paper]:
    found: dict[str, Paper] = {}
    for folder in _folders():
        if not folder.is_dir():
            raise HastenError(f"{VARIABLE} names {folder}, which is no folder")
        for file in sorted((folder / "cards").glob("*.toml")):
            card = read_card(file, folder / "checks" / f"{file.stem.replace('-', '_')}.py")
            if card.slug in found:
                raise HastenError(f"two cards are called {card.slug}: rename {file}")
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
        HastenError: a check is of a claim that the card does not have.
    """
    file = card.checks_file
    if file is None:
        return None
    name = f"hasten.papers.checks.{file.stem}"
    if file.parent != Path(__file__).parent / "checks":
        name = f"hasten_papers_{file.stem}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, file)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module  # classes and functions of it can then be sent to other processes
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
    module = importlib.import_module(name)
    from hasten.papers.experiment import Check

    known = {c.id for c in card.claims}
    for value in vars(module).values():
        if isinstance(value, Check) and value.claim not in known:
            raise HastenError(f"{file} checks {value.claim}, which is no claim of {card.slug}")
    return module
