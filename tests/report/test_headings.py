"""Headings of tables stick as one: no row of them can lie over a table's first row, however few rows there are."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hasten.report import write_search
from hasten.report.html import content_of, page
from hasten.search import Objective, Problem, Space, Study, integer
from hasten.tuning.outcome import TuneResult


class Tables(HTMLParser):
    """Each table of a page: rows of its head and of its body, a row the (class, columns) of its cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[dict[str, list[list[tuple[str, int]]]]] = []
        self.part = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if tag == "table":
            self.tables.append({"thead": [], "tbody": []})
        elif tag in ("thead", "tbody"):
            self.part = tag
        elif tag == "tr":
            self.tables[-1][self.part].append([])
        elif tag in ("td", "th"):
            assert (tag == "th") == (self.part == "thead")
            self.tables[-1][self.part][-1].append((facts.get("class") or "", int(facts.get("colspan") or 1)))


def search_page(folder: Path, trials: int, constraints: tuple[str, ...]) -> str:
    problem = Problem(
        "toy", Space([integer("n", 1, 12)]), (Objective("cost", unit="J"), Objective("gain", "maximize")),
        lambda params: {"cost": params["n"], "gain": params["n"] % 5, **dict.fromkeys(constraints, -1)}, constraints,
    )  # fmt: skip
    write_search(problem, Study().run(problem, sampler="random", trials=trials), folder)
    return (folder / "search.html").read_text("utf-8")


@pytest.fixture(params=["tune", "tune, one row", "search", "search, one row", "search, no constraint"])
def text(request: Any, result: TuneResult, tmp_path: Path) -> str:
    match request.param:
        case "tune":
            return page(result)
        case "tune, one row":
            single = [c for c in result.combinations if len(c.methods) == 1 and c.measured][:1]
            return page(result.model_copy(update={"combinations": single}))
        case "search":
            return search_page(tmp_path, 9, ("over",))
        case "search, one row":
            return search_page(tmp_path, 1, ("over",))
    return search_page(tmp_path, 9, ())


def test_every_row_of_a_table_has_the_columns_of_its_headings(text: str) -> None:
    tables = Tables(text).tables
    assert tables
    for table in tables:
        assert 1 <= len(table["thead"]) <= 2
        assert table["tbody"]
        widths = {sum(columns for _, columns in row) for part in table.values() for row in part}
        assert len(widths) == 1


def test_a_heading_is_set_as_its_column_is(text: str) -> None:
    for table in Tables(text).tables:
        for column, (kind, _) in enumerate(table["thead"][-1]):
            if kind in ("name", "mark"):
                assert all(kind in row[column][0].split() for row in table["tbody"])
            else:
                assert not any({"name", "mark"} & set(row[column][0].split()) for row in table["tbody"])


def rules(css: str) -> dict[str, str]:
    """Selector -> its declarations, all of them together."""
    found: dict[str, str] = {}
    for selectors, declared in re.findall(r"([^{}]+)\{([^{}]*)\}", re.sub(r"/\*.*?\*/", "", css, flags=re.S)):
        for selector in selectors.split(","):
            found[selector.strip()] = found.get(selector.strip(), "") + declared + ";"
    return found


@pytest.mark.parametrize("file", ["page.css", "claims.css"])
def test_what_sticks_in_a_table_is_its_whole_head(file: str) -> None:
    """A cell or a row that sticks by itself needs to know how high the rows above it are, or hides what is below."""
    found = rules(content_of(file))
    stuck = [s for s, declared in found.items() if "sticky" in declared and re.search(r"\b(thead|tr|th|td)\b", s)]
    assert stuck == (["thead"] if file == "page.css" else [])
    for selector, declared in found.items():
        if re.search(r"\b(tr|th|td)\b", selector):
            assert not re.search(r"\btop\s*:", declared)
    if file == "page.css":
        assert re.search(r"\btop:\s*0\s*;", found["thead"])
        assert "background" in found["th"]  # what scrolls below it does not show through
