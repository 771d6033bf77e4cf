"""The page of all claims: every claim is on it, with what was seen, escaped, and nothing comes from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hasten.errors import HastenError
from hasten.papers import Claim, Paper, Result, papers
from hasten.report import write_claims
from hasten.report.claims_page import STATES, claims_page

NASTY = "</script><img src=x onerror=alert(1)>&\"'"


class Page(HTMLParser):
    """Elements with their attributes, and the text of each claim."""

    VOID = ("meta", "link", "input", "img", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str]] = []
        self.texts: dict[str, str] = {}
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.elements.append((tag, named))
        if tag not in self.VOID:
            self.open.append((tag, named.get("id") or ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self.open:
            if name:
                self.texts[name] = self.texts.get(name, "") + " " + " ".join(data.split())

    def attributes(self, name: str) -> dict[str, str | None]:
        return next(named for _, named in self.elements if named.get("id") == name)


@pytest.fixture
def card(tmp_path: Path) -> Paper:
    """A paper with a claim for each state, and text that would break a page."""
    kinds = {"h": "run", "d": "run", "f": "run", "e": "run", "j": "run", "u": "run", "n": "none", "x": "model"}
    claims = tuple(
        Claim(id=k, metric=f"metric {k} {NASTY}", value=f"value {k} {NASTY}", baseline=NASTY, how=how)  # type: ignore[arg-type]
        for k, how in kinds.items()
    )
    checks = tmp_path / "toy.py"
    checks.write_text("".join(f'@check("{k}")\n' for k in "hdfeju"))
    return Paper("toy", f"A toy {NASTY}", "2401.00001", 2024, "training", f"A toy {NASTY}.", claims,
                 ("hasten.errors:HastenError", "hasten.nothing"), "docs/mamba.md", checks)  # fmt: skip


def result(claim: str, verdict: str, **changed: Any) -> Result:
    fields: dict[str, Any] = {
        "slug": "toy", "claim": claim, "metric": "m", "paper": "p", "seen": f"saw {claim} {NASTY}", "verdict": verdict,
        "seconds": 75.0, "detail": NASTY, "versions": {"hasten": "9.9", NASTY: NASTY}, "when": "2026-01-02T03:04:05",
        "machine": {"processor": f"chip {NASTY}", "cores": "2", "system": "Linux"},
    }  # fmt: skip
    return Result(**{**fields, **changed})


RESULTS = [
    result("h", "not judged: needs 360 s", budget=6.0, length="quick", when="2026-01-09T00:00:00"),
    result("h", "holds", seed=3), result("d", "direction holds"), result("f", "does not hold"),
    result("e", f"error: {NASTY}"), result("j", "not judged: quick run"), result("x", "holds"),
    result("gone", "holds"), result("h", "holds", slug="elsewhere"),
]  # fmt: skip


def test_every_claim_has_its_state_beside_the_papers_value(card: Paper) -> None:
    page = Page(claims_page([card], RESULTS))
    states = {claim.id: page.attributes(f"toy-{claim.id}")["data-state"] for claim in card.claims}
    assert states == dict(zip("hdfejunx", ("holds", "direction", "fails", "error", "unjudged", "unrun", "elsewhere",
                                           "unchecked")))  # fmt: skip
    assert f"value h {NASTY}" in page.texts["toy-h"]
    assert f"saw h {NASTY}" in page.texts["toy-h"]
    assert "seed 3, 1 min 15 s, and 1 more" in page.texts["toy-h"]
    assert "not judged: needs 360 s" in page.texts["toy-h"]
    assert "the check has changed since" in page.texts["toy-h"]
    assert "nothing yet" in page.texts["toy-u"]
    assert "no check yet" in page.texts["toy-x"]
    assert "hasten/errors.py" in page.texts["toy"]
    assert "not here" in page.texts["toy"]
    assert "chip" in page.texts["where"]
    assert "seeds 0, 3" in " ".join(page.texts["where"].split())
    bar = next(named for _, named in page.elements if named.get("class") == "bar")
    assert bar["aria-label"] == ", ".join(f"1 {words}" for _, words, _ in STATES)


def test_what_others_wrote_is_text(card: Paper) -> None:
    page = Page(claims_page([card], RESULTS))
    assert not [1 for tag, _ in page.elements if tag == "img"]
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not [1 for _, named in page.elements if any(key.startswith("on") for key in named)]


def test_nothing_comes_from_elsewhere() -> None:
    html = claims_page(papers(), [])
    page = Page(html)
    for tag, named in page.elements:
        loaded = named.get("src") or (named.get("href") if tag == "link" else None)
        assert loaded in (None, "data:,")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", html)


def test_all_papers_are_on_it_and_say_when_nothing_is_known() -> None:
    cards = papers()
    page = Page(claims_page(cards, []))
    identities = [named["id"] for _, named in page.elements if named.get("id")]
    assert len(identities) == len(set(identities))
    for card in cards:
        assert page.attributes(card.slug)["data-field"] == card.field
        for claim in card.claims:
            assert page.attributes(f"{card.slug}-{claim.id}")["data-state"] in ("unrun", "elsewhere", "unchecked")
    labelled = [named for tag, named in page.elements if tag in ("input", "select")]
    assert labelled
    assert all(named.get("aria-label") for named in labelled)
    assert "where" not in identities


def test_it_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_claims(papers(), [], tmp_path / "new" / "claims.html")
    assert (tmp_path / "new" / "claims.html").read_text("utf-8").endswith("</html>\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(HastenError, match="cannot write"):
        write_claims(papers(), [], tmp_path / "file" / "claims.html")
