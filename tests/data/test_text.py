"""Text to measure on: what Python carries, what a user gives, what assets hold."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

from hasten.data import assets
from hasten.data.text import brown, characters, default_text, documentation, headers, moby_dick, read_text, sources
from hasten.errors import HastenError


def need(name: str) -> None:
    if assets.cached(name) is None:
        pytest.skip(f"needs `hasten assets get {name}`")


def test_pythons_own_text_reads_as_prose() -> None:
    text = default_text()
    paragraphs = text.split("\n\n")
    assert len(text) > 100_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(p == " ".join(p.split()) and p.endswith(".") and len(p.split()) >= 25 for p in paragraphs)
    assert not any(mark in text for mark in ("`", "::=", ">>>", "+---"))
    assert default_text() == text


def test_docstrings_are_other_prose() -> None:
    text = documentation(50_000)
    paragraphs = text.split("\n\n")
    assert len(text) == 50_000
    assert all(p == " ".join(p.split()) and p.endswith(".") for p in paragraphs[:-1])  # the last is cut
    shared = set(paragraphs) & set(default_text().split("\n\n"))
    assert len(shared) < 0.02 * len(paragraphs)


def test_a_python_without_its_topics_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("pydoc_data"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.delitem(sys.modules, "pydoc_data.topics", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(HastenError, match="carries no pydoc_data"):
        default_text()


def test_a_users_file_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grüße,\nWorld".encode())
    assert read_text(tmp_path / "a.txt") == "Grüße,\nWorld"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"caf\xe9", r"is not UTF-8 text \(byte 3\)"),
        (b"\xff\xfea\0", r"is not UTF-8 text \(byte 0\)"),
    ],
)
def test_a_file_that_is_no_text_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(HastenError, match=message):
        read_text(tmp_path / "a.txt")


def test_a_missing_file_and_a_folder_are_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(HastenError, match="cannot read text file"):
            read_text(path)


@pytest.mark.asset
def test_brown_is_running_words_without_their_tags() -> None:
    need("brown")
    text = brown()
    assert len(text.split()) == 1_161_192
    assert text.startswith("The Fulton County Grand Jury said Friday an investigation of Atlanta's recent primary")


@pytest.mark.asset
def test_moby_dick_is_the_whole_novel() -> None:
    need("moby-dick")
    text = moby_dick()
    assert "Call me Ishmael." in text[:200]
    assert text.rstrip().endswith("five thousand years ago.")
    assert len(text) > 1_180_000


def test_characters_point_into_their_alphabet() -> None:
    ids, alphabet = characters("ab\n\u00e9")
    assert "".join(alphabet[i] for i in ids) == "ab\n~"
    assert len(alphabet) == 96


def test_sources_are_python() -> None:
    found = sources(50_000)
    assert len(found) == 50_000
    assert "import" in found
    assert "def " in found


def test_headers_are_another_language() -> None:
    text = headers(20_000)
    assert len(text) == 20_000
    assert "#include" in text
    assert "namespace" in text
    with pytest.raises(HastenError, match="no headers"):
        headers(10**12)
