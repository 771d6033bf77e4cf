"""Cards: complete, looked up, and refused in one line when they are none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hasten import papers
from hasten.errors import HastenError
from hasten.papers import Claim, Paper, read_card
from hasten.papers.card import FIELDS

ROOT = Path(__file__).parents[2]
GOOD = """
title = "A toy"
arxiv = "2401.00001"
year = 2024
field = "training"
summary = "A toy."
claims = [{ id = "A", metric = "speed", value = "2x" }]
"""


@pytest.mark.parametrize("card", papers.papers(), ids=lambda c: c.slug)
def test_a_card_is_complete(card: Paper) -> None:
    assert re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv)
    assert card.year == 2000 + int(card.arxiv[:2])
    assert card.title
    assert card.summary.endswith(".")
    assert card.field in FIELDS
    assert card.claims
    assert all(c.id and c.metric and c.value for c in card.claims)
    assert not any("`" in text or "verified" in text for c in card.claims for text in (c.metric, c.value, c.setting))
    assert card.as_dict()["status"] == card.status
    if card.page:
        assert (ROOT / card.page).is_file()


def card(*pieces: str) -> Paper:
    claims = (Claim(id="A", metric="speed", value="2x"), Claim(id="C", metric="scale", value="big", how="none"))
    return Paper("toy", "A toy", "2401.00001", 2024, "training", "A toy.", claims, pieces)


def test_status_is_looked_up(tmp_path: Path) -> None:
    there, not_there = "hasten.nn.packed:PackedLinear", "hasten.nn.packed:Nothing"
    assert card().status == "card"
    assert card(there).status == "built"
    assert card(there, not_there).status == "partial"
    assert card("hasten.nowhere.at_all").status == "card"
    checks = tmp_path / "toy.py"
    checks.write_text('@check("A", weight=2)\ndef speed(experiment): ...\n')
    (tmp_path / "toy.toml").write_text(GOOD.replace("claims", f"pieces = ['{there}']\nclaims"))
    read = read_card(tmp_path / "toy.toml", checks)
    assert read.status == "checked"
    (tmp_path / "toy.toml").write_text(GOOD.replace("claims", f"pieces = ['{there}', '{not_there}']\nclaims"))
    assert read_card(tmp_path / "toy.toml", checks).status == "partial"


@pytest.mark.parametrize(
    "decorated",
    [
        '@check("A")',
        "@check('A')",
        '@check(\n    "A",\n    weight=2,\n)',
        '@experiment.check("A")',
        '@check(claim="A")',
    ],
)
def test_checks_are_read_from_source(tmp_path: Path, decorated: str) -> None:
    (tmp_path / "toy.toml").write_text(GOOD)
    (tmp_path / "toy.py").write_text(f"raise SystemExit\n{decorated}\ndef _(experiment): ...\n# @check('B')\n")
    assert read_card(tmp_path / "toy.toml", tmp_path / "toy.py").checked == {"A"}


BAD = {
    "no TOML": "title =",
    "nested too deep": "a = " + "[" * 9000,
    "a long number": "year = " + "9" * 9000,
    "an impossible date": "year = 2024-13-45",
    "without a title": GOOD.replace("title", "name"),
    "an empty title": GOOD.replace("A toy", "", 1),
    "a long title": GOOD.replace("A toy", "a" * 3000, 1),
    "no arXiv number": GOOD.replace("2401.00001", "hep-th/1"),
    "a year that is none": GOOD.replace("year = 2024", "year = 1e300"),
    "a field that is none": GOOD.replace('"training"', '"cooking"'),
    "no claims": GOOD.replace("claims = [", "claims = [] # "),
    "a claim twice": GOOD.replace("claims = [", 'claims = [{ id = "A", metric = "x", value = "y" }, '),
    "a claim with markup for a name": GOOD.replace('id = "A"', 'id = "<b>"'),
    "a piece that is no name": GOOD.replace("claims", 'pieces = ["../x.py"]\nclaims'),
    "a page elsewhere": GOOD.replace("claims", 'page = "docs/../../x.md"\nclaims'),
    "a way of checking that is none": GOOD.replace('value = "2x"', 'value = "2x", how = "guess"'),
    "not UTF-8": b"title = '\xff'",
    "too long": GOOD + "#" * 1_100_000,
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_is_no_card_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    bad, file = BAD[case], tmp_path / "toy.toml"
    file.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
    with pytest.raises(HastenError) as raised:
        read_card(file)
    said = str(raised.value)
    assert str(file) in said
    assert len(said.splitlines()) == 1
    assert len(said) < 500


@pytest.mark.parametrize("name", ["Toy.toml", "to_y.toml", "-toy.toml", "t y.toml"])
def test_a_name_that_is_no_slug_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(GOOD)
    with pytest.raises(HastenError, match="small letters, digits and single hyphens"):
        read_card(tmp_path / name)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="No such file"):
        read_card(tmp_path / "toy.toml")
