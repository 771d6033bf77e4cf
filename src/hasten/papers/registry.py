"""The shelf: every module of this folder that has a ``paper``."""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil

from hasten.errors import HastenError
from hasten.papers.card import FIELDS, Context, Paper, Progress, Result


@functools.cache
def _shelf() -> dict[str, Paper]:
    package = importlib.import_module("hasten.papers")
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in ("card", "measures", "registry"):
            paper = importlib.import_module(f"hasten.papers.{module.name}").paper
            found[paper.slug] = paper
    return dict(sorted(found.items()))


def papers(field: str | None = None, text: str | None = None) -> list[Paper]:
    """Cards by slug.

    Args:
        field: only this field's.
        text: only those whose slug, title, summary or claims contain it, whatever the case.

    Raises:
        HastenError: no such field.
    """
    if field is not None and field not in FIELDS:
        raise HastenError(f"no field is called {field!r}: choose one of {', '.join(FIELDS)}")
    wanted = (text or "").casefold()

    def matches(p: Paper) -> bool:
        words = " ".join((p.slug, p.title, p.summary, p.arxiv, *(f"{c.metric} {c.setting}" for c in p.claims)))
        return (field is None or p.field == field) and wanted in words.casefold()

    return [p for p in _shelf().values() if matches(p)]


def paper(slug: str) -> Paper:
    """The card called ``slug``.

    Raises:
        HastenError: there is none; names the nearest.
    """
    shelf = _shelf()
    if slug not in shelf:
        near = difflib.get_close_matches(slug, shelf, 3)
        hint = f"did you mean {' or '.join(near)}?" if near else "hasten papers lists them"
        raise HastenError(f"no paper is called {slug!r}: {hint}")
    return shelf[slug]


def check(
    slug: str, *, budget: float = 300.0, seed: int = 0, progress: Progress = lambda message, share: None
) -> list[Result]:
    """Re-runs a paper's claims: a result for each, in the card's order.

    Args:
        slug: the paper.
        budget: seconds that its checks may take together, about.
        seed: of what is random.
        progress: told the check at hand and the share done.

    Raises:
        HastenError: no such paper, or a budget that is not positive.
    """
    if budget <= 0:
        raise HastenError("the budget must be positive: give seconds")
    return paper(slug).run(Context(budget, seed, progress))
