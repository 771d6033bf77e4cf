"""The shelf: cards found by their folders, filtered, and each with its checks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hasten import papers
from hasten.errors import HastenError
from hasten.papers.experiment import Check, Outcome
from hasten.papers.registry import VARIABLE, checks_of

CARDS = Path(papers.__file__).parent / "cards"
DOSSIERS = Path(__file__).parents[2].parent / "shared" / "papers"


def test_every_file_is_a_card() -> None:
    slugs = sorted(file.stem for file in CARDS.glob("*.toml"))
    assert slugs
    assert [p.slug for p in papers.papers()] == slugs


@pytest.mark.skipif(not DOSSIERS.is_dir(), reason="the papers' dossiers do not lie beside this checkout")
def test_every_dossier_has_its_card() -> None:
    assert {p.slug for p in papers.papers()} == {file.stem for file in DOSSIERS.glob("*.md")}


def test_filters() -> None:
    assert {p.field for p in papers.papers(field="hardware")} == {"hardware"}
    assert "mamba" in {p.slug for p in papers.papers(text="SELECTIVE")}
    assert papers.papers(text="no such words") == []
    with pytest.raises(HastenError, match="choose one of"):
        papers.papers(field="cooking")


def test_unknown_paper_names_the_nearest() -> None:
    with pytest.raises(HastenError, match="did you mean mamba"):
        papers.paper("mamab")


@pytest.mark.parametrize("card", [c for c in papers.papers() if c.checks_file], ids=lambda c: c.slug)
def test_a_cards_checks_are_those_read_from_their_source(card: papers.Paper) -> None:
    module = checks_of(card)
    assert card.checked == {v.claim for v in vars(module).values() if isinstance(v, Check)}
    assert card.checked
    assert all(piece.file for piece in card.found_pieces()), "a piece has moved: mend the card"


def test_fusemax_is_checked_here(outcome: Callable[..., Outcome]) -> None:
    assert papers.paper("fusemax").checked == {f"F{i}" for i in range(1, 10)}
    assert outcome("fusemax", "F1").verdict == "holds"


def test_listing_imports_neither_torch_nor_checks() -> None:
    code = (
        "import sys; from hasten import papers; [p.as_dict() for p in papers.papers()];"
        " print([m for m in sys.modules if m == 'torch' or m.startswith(('hasten.papers.checks', 'hasten.nn'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_folder_of_ones_own(shelf: Path) -> None:
    card = papers.paper("doubling")
    assert card.checks_file == shelf / "checks" / "doubling.py"
    assert card.checked == {"D1", "D2"}
    assert card.status == "checked"
    (piece,) = card.found_pieces()
    assert piece.file is not None
    assert piece.file.parent == shelf
    assert piece.place == f"{piece.file.name}:5"
    assert "mamba" in {p.slug for p in papers.papers()}


def test_a_folder_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(HastenError, match="which is no folder"):
        papers.papers()


def test_two_papers_of_one_name_are_refused(shelf: Path) -> None:
    (shelf / "cards" / "mamba.toml").write_text((shelf / "cards" / "doubling.toml").read_text())
    with pytest.raises(HastenError, match="two papers are called mamba"):
        papers.papers()


def test_a_check_of_no_claim_is_refused(shelf: Path) -> None:
    file = shelf / "checks" / "doubling.py"
    file.write_text(file.read_text().replace('"D2"', '"D9"'))
    with pytest.raises(HastenError, match="checks D9, which is no claim of doubling"):
        checks_of(papers.paper("doubling"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = (", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise type('Odd', (BaseException,), {})", "Odd: "),
    ],
)
def test_checks_that_cannot_be_imported_are_refused_in_one_line(shelf: Path, text: str, said: str) -> None:
    (shelf / "checks" / "doubling.py").write_text(text)
    with pytest.raises(HastenError, match=f"cannot be imported .{said}"):
        checks_of(papers.paper("doubling"))


def test_a_check_hidden_by_another_is_refused(shelf: Path) -> None:
    file = shelf / "checks" / "doubling.py"
    file.write_text(file.read_text().replace("def norm(", "def total("))
    with pytest.raises(HastenError, match="the check of D1 has the name of a later one"):
        checks_of(papers.paper("doubling"))


def test_an_edited_file_of_checks_is_imported_again(shelf: Path) -> None:
    card = papers.paper("doubling")
    first = checks_of(card)
    assert checks_of(card) is first
    file = shelf / "checks" / "doubling.py"
    file.write_text(file.read_text() + "EDITED = True\n")
    assert hasattr(checks_of(card), "EDITED")
